"""Many short files through `dacse enhance --ray local`, against one process.

    python benchmarks/cluster.py --files 1000 --seconds 1 [--rounds 3] [--threads 2] [--model DIR]

Interleaves one process and Ray with a worker on each core. Prints the median time of each, start included, the ratio,
and whether both wrote the same, which they do where the process has one thread, as the workers have.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from machine import describe_machine

import dacse

WAYS = {"process": [], "ray": ["--ray", "local"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=dacse.default_model())
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0, help="Of each file, on average.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="Of the one process.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_recordings(Path(folder, "in"), args.files, args.seconds)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                started = time.perf_counter()
                enhance(Path(folder), way, args.model, args.threads)
                times[way].append(time.perf_counter() - started)
        written = [read_all(Path(folder, way)) for way in WAYS]
    print(f"{describe_machine()}; {args.model}")
    alone, shared = (statistics.median(measured) for measured in times.values())
    print(f"{args.files} files of {args.seconds:g} s: {alone:.1f} s in one process, {shared:.1f} s on Ray")
    print(f"ratio {shared / alone:.2f} (at most 0.60 wanted); same audio: {written[0] == written[1]}")


def make_recordings(folder: Path, count: int, seconds: float) -> None:
    """Noise of half to one and a half times `seconds`, at 44.1 kHz."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        length = round(generator.uniform(0.5, 1.5) * seconds * 44_100)
        soundfile.write(folder / f"{number:05}.wav", 0.1 * generator.standard_normal(length), 44_100)


def enhance(folder: Path, way: str, model: str, threads: int) -> None:
    command = [sys.executable, "-m", "dacse", "enhance", "in", "-o", way, "--overwrite", "--model", model, *WAYS[way]]
    subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)


def read_all(folder: Path) -> dict[str, bytes]:
    """Samples of every result, by name."""
    return {path.name: soundfile.read(path, dtype="int16")[0].tobytes() for path in folder.iterdir()}


if __name__ == "__main__":
    main()
