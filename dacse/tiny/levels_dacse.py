"""Keeps a recording's own sound: only the levels of its bands are the model's, and what it lacks is generated.

Knows waveforms; knows no model, codec or file format.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

BANDS = 24  # equally spaced on the ERB scale (Glasberg and Moore, 1990)
SPECTRUM_SECONDS = 0.0116  # what a spectrum sees: 512 samples at 44.1 kHz
OVERLAP = 4  # spectra that see a sample
ABSENT = 0.01  # -20 dB: a recording with a smaller part of the generated power has nothing there
NO_POWER = 1e-12  # far below what 24 bits hold


def keep_recording(blocks: Iterable[np.ndarray], sampling_rate: int) -> Iterator[np.ndarray]:
    """Gives a recording the levels of the generated audio, band by band and moment by moment.

    The recording is lowered where the model lowered it, and stays as it is where the model left it alone or raised it:
    a model that keeps the codes of a recording gives the recording back. Where the recording has next to nothing and
    the model something (in lost packets, above the range of a narrow band), the generated audio is added.

    Args:
        blocks: float32 (3, channel, sample): the recording, the generated audio, and the recording as the codec alone
            gives it back, which tells the model's changes from those of the codec.
        sampling_rate: in Hz.

    Yields:
        float32 (channel, sample) pieces, as many samples in all as went in.
    """
    mixer, missing = None, 0
    for block in blocks:
        mixer = mixer or _Mixer(block.shape[1], sampling_rate)
        piece = mixer.push(block)
        missing += block.shape[2] - piece.shape[1]
        yield piece
    if mixer:
        yield mixer.push(np.zeros((3, mixer.channels, mixer.size), np.float32))[:, :missing]


def find_gains(recording: np.ndarray, generated: np.ndarray, coded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains of the recording's amplitudes and of the generated ones, from powers, which all have one shape.

    The first is Wiener's: the part of the power that the model takes for speech.

    >>> kept, added = find_gains(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.0]))
    >>> kept.round(2).tolist(), added.round(2).tolist()
    ([1.0, 0.5, 1.0], [0.0, 0.0, 1.0])
    """
    generated, coded = generated + NO_POWER, coded + NO_POWER
    kept = np.minimum(1, generated / coded)
    added = np.sqrt(np.maximum(0, 1 - (coded + recording / ABSENT) / generated))
    return kept, added


def band_shapes(size: int, sampling_rate: int) -> np.ndarray:
    """Triangles (band, bin) over the bins of a spectrum of `size` samples, which add up to 1 at every bin.

    >>> band_shapes(512, 44100).shape, np.allclose(band_shapes(512, 44100).sum(0), 1)
    ((24, 257), True)
    """
    erbs = 21.4 * np.log10(1 + 0.00437 * np.fft.rfftfreq(size, 1 / sampling_rate))
    places = erbs / erbs[-1] * (BANDS - 1)
    return np.maximum(0, 1 - np.abs(places - np.arange(BANDS)[:, None])).astype(np.float32)


class _Mixer:
    """Takes blocks as `keep_recording` does and gives back what is finished, three quarters of a spectrum behind."""

    def __init__(self, channels: int, sampling_rate: int):
        self.channels, self.size = channels, 2 ** round(math.log2(SPECTRUM_SECONDS * sampling_rate))
        self.hop = self.size // OVERLAP
        self.window = np.hanning(self.size + 1)[:-1].astype(np.float32)
        self.closing = self.window * (self.hop / np.square(self.window).sum())  # what overlaps adds up to 1
        self.shapes = band_shapes(self.size, sampling_rate)
        self.early = self.size - self.hop  # samples that come out before the recording's first
        self.waiting = np.zeros((3, channels, self.early), np.float32)  # for the rest of their spectrum
        self.tail = np.zeros((channels, OVERLAP - 1, self.hop), np.float32)  # finished samples but for later spectra

    def push(self, block: np.ndarray) -> np.ndarray:
        """A block (3, channel, sample) in, finished samples (channel, sample) out."""
        samples = np.concatenate([self.waiting, block], axis=2)
        count = (samples.shape[2] - self.size) // self.hop + 1
        self.waiting = samples[..., max(0, count) * self.hop :]
        if count < 1:
            return np.zeros((self.channels, 0), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.size, axis=2)[:, :, :: self.hop]
        spectra = np.fft.rfft(frames * self.window)
        kept, added = find_gains(*(np.square(np.abs(spectra)) @ self.shapes.T))
        mixed = kept @ self.shapes * spectra[0] + added @ self.shapes * spectra[1]
        return self._overlap(np.fft.irfft(mixed) * self.closing)

    def _overlap(self, frames: np.ndarray) -> np.ndarray:
        """Adds frames (channel, frame, sample) up, each a hop behind the one before; gives what is finished."""
        count = frames.shape[1]
        parts = frames.reshape(self.channels, count, OVERLAP, self.hop)
        sums = np.zeros((self.channels, count + OVERLAP - 1, self.hop), np.float32)
        sums[:, : OVERLAP - 1] = self.tail
        for place in range(OVERLAP):
            sums[:, place : place + count] += parts[:, :, place]
        self.tail = sums[:, count:]
        finished = sums[:, :count].reshape(self.channels, -1)
        dropped = min(self.early, finished.shape[1])
        self.early -= dropped
        return finished[:, dropped:]
