"""Short stretches of speech, some with noise behind, for training a codec. Knows recordings; no codec, no token."""

from collections.abc import Iterator

import numpy as np
import torch

from processing_dacse.audio_dacse import load_audio, resample

from .degradations import add_at_ratio, rms
from .sources import Clips

QUIET_RMS = 3e-3  # -50 dB: pauses, of which a codec needs only a few
QUIET_SHARE = 0.05


class CodecSegments:
    """Draws batches from recordings held in memory: at half precision an hour at 44.1 kHz takes 320 MB.

    A codec that is to read noisy speech must have heard some: a part of the segments has noise behind.

    Args:
        speech, noise: the recordings.
        sampling_rate: in Hz.
        noise_probability: share of the segments with noise.
        snr_db, level_db: ranges of the speech above the noise, and of the gain of a segment.
    """

    def __init__(
        self,
        speech: Clips,
        noise: Clips,
        sampling_rate: int,
        noise_probability: float = 0.3,
        snr_db: tuple[float, float] = (-5.0, 20.0),
        level_db: tuple[float, float] = (-10.0, 4.0),
    ):
        self.speech, self.noise = (joined(clips, sampling_rate) for clips in (speech, noise))
        self.noise_probability, self.snr_db, self.level_db = noise_probability, snr_db, level_db

    def __call__(self, batch_size: int, num_samples: int, seed: int) -> Iterator[torch.Tensor]:
        """Yields float32 waveforms (batch, sample) without end, the same ones for the same seed."""
        rng = np.random.default_rng(seed)
        while True:
            yield torch.from_numpy(np.stack([self.draw(num_samples, rng) for _ in range(batch_size)]))

    def draw(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """One segment (sample,), within full scale."""
        segment = crop(self.speech, num_samples, rng)
        while rms(segment) < QUIET_RMS and rng.random() > QUIET_SHARE:
            segment = crop(self.speech, num_samples, rng)
        if rng.random() < self.noise_probability:
            segment = add_at_ratio(segment, crop(self.noise, num_samples, rng), rng.uniform(*self.snr_db))
        segment = segment * np.float32(10 ** (rng.uniform(*self.level_db) / 20))
        return segment / max(1.0, np.abs(segment).max())


def joined(clips: Clips, sampling_rate: int) -> np.ndarray:
    """All recordings one after the other, mono float16 (sample,)."""
    waveforms = (load_audio(clips.open(index)) for index in range(len(clips)))
    return np.concatenate(
        [
            resample(waveform.mean(0, keepdims=True), rate, sampling_rate)[0].astype(np.float16)
            for waveform, rate in waveforms
        ]
    )


def crop(recording: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A random stretch as float32."""
    if len(recording) < num_samples:
        raise ValueError(f"the recordings hold {len(recording)} samples; a segment needs {num_samples}")
    start = int(rng.integers(len(recording) - num_samples + 1))
    return recording[start : start + num_samples].astype(np.float32)
