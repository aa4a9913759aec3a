"""Peak memory of `dacse enhance` on a long file against a short one.

    python benchmarks/memory.py --seconds 10 3600 [--model DIR]

Without --model it builds a very small random one: what grows with the length of a file is not the model's, and stands
out the better.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from machine import describe_machine
from transformers import DacConfig, DacModel

import dacse

RATE = 44100


def save_small_model(folder: Path) -> None:
    """One codebook and hops of 1024 samples: few tokens per second."""
    codec = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        downsampling_ratios=[4, 4, 8, 8],
        n_codebooks=1,
        codebook_size=64,
        sampling_rate=RATE,
    )
    config = dacse.DacSeConfig.from_size(
        "tiny", num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_codebooks=1, codebook_size=64
    )
    processor = dacse.DacSeProcessor.from_codec(DacModel(codec))
    dacse.AudioEnhancementPipeline(model=dacse.DacSeForEnhancement(config), processor=processor).save_pretrained(
        folder
    )


def write_noise(path: Path, seconds: float) -> None:
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(round(seconds)):
            file.write(0.1 * generator.standard_normal(RATE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 3600.0])
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()

    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or os.path.join(folder, "model")
        if args.model is None:
            save_small_model(Path(model))
        peaks = []
        for seconds in args.seconds:
            noisy, clean = Path(folder, "noisy.wav"), Path(folder, "clean.wav")
            write_noise(noisy, seconds)
            command = [sys.executable, "-m", "dacse", "enhance", str(noisy), "-o", str(clean), "--overwrite"]
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--model", model, "--batch-size", str(args.batch_size)])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"dacse enhance ended with {os.waitstatus_to_exitcode(status)}")
            if soundfile.info(clean).frames != soundfile.info(noisy).frames:
                raise SystemExit("the output has not the input's length")
            peaks.append(usage.ru_maxrss / 2**20)
            print(
                f"{seconds:g} s of audio: peak {peaks[-1]:.3f} GB, {time.perf_counter() - started:.0f} s", flush=True
            )
    print(f"grown by {max(peaks) - peaks[0]:.3f} GB (at most 1 GB wanted)")


if __name__ == "__main__":
    main()
