"""What a million files or ten thousand hours take, computed from docs/speed.json into docs/scale.md.

    python benchmarks/scale.py [--files 20000]

Measures besides what the plan of a command takes for each file: seconds of processor and bytes.
"""

import argparse
import json
import math
import re
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

from machine import describe_machine
from tabulate import tabulate

from command_dacse.cluster import MOST_ITEMS
from command_dacse.files import plan_jobs

ROOT = Path(__file__).parents[1]
WORK = {"10,000 hours, files of 10 minutes": (60_000, 600.0), "1 million files of 5 s": (1_000_000, 5.0)}
WINDOW, OVERLAP = 4.0, 0.2  # seconds, the defaults of a call
RATE, BYTES = 44_100, 2  # Hz, of a sample: one channel of 16 bits
TOKENS = RATE / 512 * 9  # a second, of the released codec
CORES = 2  # of the machine that measured the rows without a GPU
PART = re.compile("(?<=<!-- computed -->\n).*?(?=<!-- /computed -->)", re.DOTALL)


def compute(speed: list[dict]) -> str:
    """The tables, from the rows of docs/speed.json."""
    rows = {row["row"]: row for row in speed}
    batch, codec, embedded = rows["gpu_batched"], rows["codec_released"], rows["file"]
    windows = int(re.search(r"(\d+) windows of 4 s", batch["what"])[1])
    seconds = statistics.median(batch["seconds"]["dacse"])
    factor = seconds / (windows * WINDOW)
    limit = float(batch["facts"]["of the memory limit"].rstrip("%")) / 100
    codec_factor = codec["facts"]["real-time factor"] * CORES
    embedded_factor = statistics.median(embedded["seconds"]["with the recording kept"]) / 60 * CORES
    measured = [
        ("1B on an H100, windows a second", windows / seconds),
        ("1B on an H100, seconds of it per second of audio", factor),
        ("share of its memory's speed", limit),
        ("released codec there and back, core-seconds per second of audio", codec_factor),
        ("released codec there and back, tokens a second on a core", TOKENS / codec_factor),
        ("embedded model, core-seconds per second of audio", embedded_factor),
    ]
    table = {
        name: work(files, length, factor, limit, codec_factor, embedded_factor)
        for name, (files, length) in WORK.items()
    }
    facts = [[fact, *(row[fact] for row in table.values())] for fact in next(iter(table.values()))]
    settings = {"tablefmt": "pipe", "disable_numparse": True}
    figures = [(name, f"{value:.3g}") for name, value in measured]
    return "\n\n".join(
        [tabulate(figures, ["measured", ""], **settings), tabulate(facts, ["computed", *table], **settings)]
    )


def work(
    files: int, seconds: float, factor: float, limit: float, codec_factor: float, embedded_factor: float
) -> dict[str, str]:
    """What some files of a length take, fact by fact."""
    windows = 1 + max(0, math.ceil((seconds - WINDOW) / (WINDOW - OVERLAP)))
    audio, generated = files * seconds, files * (seconds + (windows - 1) * OVERLAP)
    hours = generated * factor / 3600
    read = RATE * BYTES
    facts = {
        "hours of audio": audio / 3600,
        "windows": files * windows,
        "H100-hours of the 1B": hours,
        "H100-hours at its memory's full speed": hours * limit,
        "H100s for a day of it": hours / 24,
        "core-hours of its codec, were that on CPUs": audio * codec_factor / 3600,
        "core-hours of the embedded model": audio * embedded_factor / 3600,
        "GB to read, and to write": audio * read / 1e9,
        "MB a second to read, and to write, for each H100": audio * read / (hours * 3600) / 1e6,
        "GB of noisy and clean tokens (16 bits)": 2 * audio * TOKENS * 2 / 1e9,
        "files a second that a day allows": files / 86_400,
        "chunks of a cluster": math.ceil(files / MOST_ITEMS),
    }
    return {name: f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for name, value in facts.items()}


def measure_plan(files: int) -> tuple[float, float]:
    """Seconds of processor, and bytes, that planning takes for each of so many files."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            Path(folder, f"{number:08}.wav").touch()
        started = time.process_time()
        plan_jobs([folder], f"{folder}/out", None)
        seconds = time.process_time() - started
        tracemalloc.start()
        plan = plan_jobs([folder], f"{folder}/out", None)
        held = tracemalloc.get_traced_memory()[0]
        assert len(plan.jobs) == files
        return seconds / files, held / files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    args = parser.parse_args()
    speed, document = ROOT / "docs/speed.json", ROOT / "docs/scale.md"
    seconds, held = measure_plan(args.files)
    plan = (
        f"The plan of a command takes {seconds * 1e6:.0f} microseconds of a core and {held:.0f} bytes a file: of a"
        f" million files {seconds * 1e6:.0f} s and {held / 1e3:.2g} GB ({args.files} files; {describe_machine()})."
    )
    text = PART.sub(lambda _: f"\n{compute(json.loads(speed.read_text()))}\n\n{plan}\n\n", document.read_text())
    document.write_text(text)


if __name__ == "__main__":
    main()
