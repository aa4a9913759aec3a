"""A tiny corpus, synthesised: what the tests of training and evaluation read in place of recordings."""

from pathlib import Path

import numpy as np
import soundfile

from evaluation_dacse.rendering import render_test_set
from evaluation_dacse.testsets import TestSet

RATE = 8000
RECIPE = """
clip_seconds: [0.5, 0.5]
tasks:
  white_noise: {steps: [{kind: white_noise, snr_db: [0, 10]}]}
  packet_loss: {steps: [{kind: packet_loss, drop_probability: [0.5, 0.5]}]}
"""


def voice(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A harmonic tone that glides and comes in syllables, float32 (sample,), RMS near 0.1."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
    return (0.15 * tone * np.abs(np.sin(2 * np.pi * rng.uniform(1, 3) * time + 1))).astype(np.float32)


def write_corpus(folder: Path, speech: int = 6, seconds: float = 1.0) -> Path:
    """Speech, noise and a room response in two splits, a MANIFEST.tsv as the real corpus has, and a recipe."""
    rng = np.random.default_rng(0)
    rows = ["path\tkind\tsplit\tseconds\tsnr_db"]
    for split in ("train", "valid"):
        waveforms = {
            ("speech", f"{split}{seed}"): voice(seed + 100 * (split == "valid"), seconds) for seed in range(speech)
        }
        waveforms["noise", f"{split}"] = 0.1 * rng.standard_normal(4 * RATE).astype(np.float32)
        response = np.exp(-np.arange(RATE // 10) / 100) * rng.standard_normal(RATE // 10)
        waveforms["rir", f"{split}"] = np.append(np.zeros(20), np.append(5.0, response)).astype(np.float32) / 6
        for (kind, name), waveform in waveforms.items():
            path = folder / kind / f"{name}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, waveform, RATE)
            rows.append(f"{kind}/{path.name}\t{kind}\t{split}\t{len(waveform) / RATE}\t40")
    (folder / "MANIFEST.tsv").write_text("\n".join(rows) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def render_corpus(folder: Path, output: Path, seed: int = 0) -> TestSet:
    """Two clips of each task of the recipe of a corpus."""
    options = {"clips_per_task": 2, "sampling_rate": RATE, "split": "valid", "seed": seed}
    return render_test_set(str(folder), folder / "recipe.yaml", output, **options)
