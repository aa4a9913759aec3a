"""Draws spectrograms of recordings before and after enhancement, all on one scale.

python examples/before_after.py examples/audio/*.wav --output docs/before_after.png
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
from transformers import pipeline

import dacse  # noqa: F401  (registers the pipeline)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FULL_SCALE_DB, FLOOR_DB = -20, -110  # of the power spectral density, relative to full scale


def draw(axis, waveform: np.ndarray, sampling_rate: int, title: str, highest_hz: float) -> None:
    """One spectrogram of a mono waveform, (sample,)."""
    length = round(0.025 * sampling_rate)
    waveform = waveform + 1e-6 * np.random.default_rng(0).standard_normal(len(waveform))  # no log of zero
    grid = {"NFFT": length, "Fs": sampling_rate, "noverlap": length * 3 // 4}
    axis.specgram(waveform, **grid, vmin=FLOOR_DB, vmax=FULL_SCALE_DB, cmap="magma")
    axis.set(title=title, ylim=(0, highest_hz), xlabel="seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--model", default=None, help="directory or Hub id; the embedded model when not given")
    parser.add_argument("--output", type=Path, default=Path("before_after.png"))
    args = parser.parse_args()

    enhance = pipeline("audio-enhancement", model=args.model)
    figure, axes = plt.subplots(2, len(args.recordings), figsize=(4 * len(args.recordings), 6), squeeze=False)
    for (before, after), path in zip(axes.T, args.recordings, strict=True):
        noisy, rate = soundfile.read(path, dtype="float32", always_2d=True)
        enhanced = enhance(str(path))
        highest_hz = enhanced["sampling_rate"] / 4
        draw(before, noisy.mean(1), rate, path.stem, highest_hz)
        mono = np.atleast_2d(enhanced["audio"]).mean(0)
        draw(after, mono, enhanced["sampling_rate"], "enhanced", highest_hz)
    axes[0, 0].set_ylabel("Hz")
    axes[1, 0].set_ylabel("Hz")
    figure.tight_layout()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=80)


if __name__ == "__main__":
    main()
