"""Short stretches of speech, some with noise behind, for training a codec. Knows recordings; no codec, no token."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from processing_dacse.audio_dacse import load_audio, resample

from ..clips.sources import Clips

QUIET_RMS = 3e-3  # -50 dB: pauses, of which a codec needs only a few
QUIET_SHARE = 0.05
CANDIDATES = 8  # stretches drawn for each segment, of which the first that is loud enough is taken


class CodecSegments:
    """Draws batches from recordings held in memory, on the device that trains: an hour at 44.1 kHz takes 320 MB.

    A codec that is to read noisy speech must have heard some: a part of the segments has noise behind.

    Args:
        speech, noise: the recordings.
        sampling_rate: in Hz.
        device: where they are held and batches come from.
        noise_probability: share of the segments with noise.
        snr_db, level_db: ranges of the speech above the noise, and of the gain of a segment.
    """

    def __init__(
        self,
        speech: Clips,
        noise: Clips,
        sampling_rate: int,
        device: str | torch.device = "cpu",
        noise_probability: float = 0.3,
        snr_db: tuple[float, float] = (-5.0, 20.0),
        level_db: tuple[float, float] = (-20.0, 4.0),
    ):
        self.speech, self.noise = (joined(clips, sampling_rate).to(device) for clips in (speech, noise))
        self.noise_probability, self.snr_db, self.level_db = noise_probability, snr_db, level_db

    def __call__(self, batch_size: int, num_samples: int, seed: int, first: int = 0) -> Iterator[Tensor]:
        """Yields float32 waveforms (batch, sample) without end: batch `first` of a seed's sequence, the next, ..."""
        for number in itertools.count(first):
            yield self.draw(batch_size, num_samples, np.random.default_rng((seed, number)))

    def draw(self, batch_size: int, num_samples: int, rng: Generator) -> Tensor:
        """One batch (batch, sample), within full scale."""
        candidates = crops(self.speech, (batch_size, CANDIDATES), num_samples, rng)
        quiet_too = self.on_device(rng.random((batch_size, CANDIDATES)) < QUIET_SHARE)
        usable = (rms(candidates).squeeze(-1) >= QUIET_RMS) | quiet_too
        speech = candidates[torch.arange(batch_size), usable.int().argmax(1)]
        noise = crops(self.noise, (batch_size,), num_samples, rng)
        ratio = self.on_device(10 ** (-rng.uniform(*self.snr_db, (batch_size, 1)) / 20))
        noisy = self.on_device(rng.random((batch_size, 1)) < self.noise_probability)
        segments = speech + noisy * ratio * rms(speech) / rms(noise).clamp(min=1e-8) * noise
        segments = segments * self.on_device(10 ** (rng.uniform(*self.level_db, (batch_size, 1)) / 20))
        return segments / segments.abs().amax(1, keepdim=True).clamp(min=1.0)

    def on_device(self, values: np.ndarray) -> Tensor:
        """Drawn numbers beside the recordings; numbers are float32."""
        return torch.from_numpy(values).to(self.speech.device, torch.bool if values.dtype == bool else torch.float32)


def rms(waveforms: Tensor) -> Tensor:
    """(..., sample) -> (..., 1)."""
    return waveforms.square().mean(-1, keepdim=True).sqrt()


def joined(clips: Clips, sampling_rate: int) -> Tensor:
    """All recordings one after the other, mono float16 (sample,)."""
    waveforms = (load_audio(clips.open(index)) for index in range(len(clips)))
    mono = (resample(waveform.mean(0, keepdims=True), rate, sampling_rate)[0] for waveform, rate in waveforms)
    return torch.from_numpy(np.concatenate([waveform.astype(np.float16) for waveform in mono]))


def crops(recording: Tensor, shape: tuple[int, ...], num_samples: int, rng: Generator) -> Tensor:
    """Random stretches (*shape, sample) as float32."""
    if len(recording) < num_samples:
        raise ValueError(f"the recordings hold {len(recording)} samples; a segment needs {num_samples}")
    starts = torch.from_numpy(rng.integers(len(recording) - num_samples + 1, size=shape)).to(recording.device)
    return recording.unfold(0, num_samples, 1)[starts].float()
