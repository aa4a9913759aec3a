"""Levels of a recording and of what was generated from it. Knows waveforms; knows no model, codec or file format.

`keep_recording` keeps the recording's own sound: only the levels of its bands are the model's, and what it lacks is
generated. `hold_quiet` keeps whatever was made of a pause as quiet as the pause.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BANDS = 24  # equally spaced on the ERB scale (Glasberg and Moore, 1990)
SPECTRUM_SECONDS = 0.0116  # what a spectrum sees: 512 samples at 44.1 kHz
OVERLAP = 4  # spectra that see a sample
ABSENT = 0.01  # -20 dB: a recording with a smaller part of the generated power has nothing there
NO_POWER = 1e-12  # far below what 24 bits hold

LEVEL_SECONDS = 0.01  # of which a level is taken
LONGEST_GAP = 0.5  # seconds of silence that may be lost sound, the model's to fill; longer ones are pauses
QUIET = 1e-3  # -60 dBFS: a level well below it stays as it is, one well above is the model's
HEADROOM = 1.7  # 4.6 dB by which what is made of a quiet stretch may be louder: 6 dB where its own level wavers


def keep_recording(blocks: Iterable[np.ndarray], sampling_rate: int) -> Iterator[np.ndarray]:
    """Gives a recording the levels of the generated audio, band by band and moment by moment.

    The recording is lowered where the model lowered it, and stays as it is where the model left it alone or raised it:
    a model that keeps the codes of a recording gives the recording back. Where the recording has next to nothing and
    the model something (in lost packets, above the range of a narrow band), the generated audio is added.

    Args:
        blocks: float32 (3, channel, sample): the recording, the generated audio, and the recording as the codec alone
            gives it back, which tells the model's changes from those of the codec.
        sampling_rate: In Hz.

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


def hold_quiet(blocks: Iterable[np.ndarray], sampling_rate: int) -> Iterator[np.ndarray]:
    """Lowers what was made of the quiet stretches of a recording to their level.

    A model may answer silence, dither or faint noise with a hum of its own. Gaps of up to `LONGEST_GAP` take the level
    around them, for a lost packet is to be filled; in longer ones the audio comes out at most 6 dB louder than the
    recording, and digital silence stays silent. Sound above some -50 dBFS is left as it is, to the bit.

    Args:
        blocks: float32 (2, channel, sample): the recording and the enhanced audio.
        sampling_rate: In Hz.

    Yields:
        float32 (channel, sample) pieces of the enhanced audio, as many samples in all as went in, up to two gaps late.
    """
    holder, missing = None, 0
    for block in blocks:
        holder = holder or _Holder(block.shape[1], sampling_rate)
        piece = holder.push(block)
        missing += block.shape[2] - piece.shape[1]
        yield piece
    if holder:
        yield holder.finish()[:, :missing]


def close_gaps(levels: np.ndarray, reach: int) -> np.ndarray:
    """Raises levels (channel, frame) in gaps of up to `2 * reach` frames to those around: a morphological closing.

    Beyond the ends there is neither sound nor silence.

    >>> close_gaps(np.array([[0.0, 0, 9, 0, 9, 0, 0, 0, 0, 9, 9]]), reach=1).tolist()
    [[0.0, 0.0, 9.0, 9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 9.0, 9.0]]
    """
    edges = (0, 0), (reach, reach)
    dilated = sliding_window_view(np.pad(levels, edges), 2 * reach + 1, axis=1).max(-1)
    return sliding_window_view(np.pad(dilated, edges, constant_values=np.inf), 2 * reach + 1, axis=1).min(-1)


def quiet_gains(recording: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
    """Gains that bring levels of the enhanced audio down to those of a quiet recording, all of one shape.

    >>> quiet_gains(np.array([0.0, 1e-5, 0.1]), np.array([1e-3, 1e-3, 0.5])).round(3).tolist()
    [0.0, 0.017, 1.0]
    """
    allowed = HEADROOM * recording * (1 + (recording / QUIET) ** 4)
    return np.where(enhanced > allowed, allowed / np.maximum(enhanced, NO_POWER), 1.0)


class _Holder:
    """Takes blocks as `hold_quiet` does and gives back what is finished, as soon as the gaps around it are known."""

    def __init__(self, channels: int, sampling_rate: int):
        self.size = max(1, round(LEVEL_SECONDS * sampling_rate))  # samples of a frame
        self.reach = round(LONGEST_GAP / LEVEL_SECONDS / 2)  # frames
        self.waiting = np.zeros((2, channels, 0), np.float32)  # from the first frame that is not finished
        self.gain = np.ones((channels, 1))  # of the frame before it
        self.past = np.zeros((channels, 0))  # levels of the recording before it, as far back as a gap reaches

    def push(self, block: np.ndarray) -> np.ndarray:
        self.waiting = np.concatenate([self.waiting, block], axis=2)
        known = self.waiting.shape[2] // self.size
        ready = known - 2 * self.reach
        return self._finish_frames(known, ready) if ready > 0 else self.waiting[1, :, :0]

    def finish(self) -> np.ndarray:
        rest = -self.waiting.shape[2] % self.size
        self.waiting = np.pad(self.waiting, ((0, 0), (0, 0), (0, rest)))
        known = self.waiting.shape[2] // self.size
        return self._finish_frames(known, known) if known else self.waiting[1, :, :0]

    def _finish_frames(self, known: int, ready: int) -> np.ndarray:
        """Lowers the first `ready` of the `known` frames that wait."""
        frames = self.waiting[:, :, : known * self.size].reshape(*self.waiting.shape[:2], known, self.size)
        recording, enhanced = np.sqrt(np.square(frames, dtype=np.float64).mean(-1))
        levels, first = np.concatenate([self.past, recording], axis=1), self.past.shape[1]
        closed = close_gaps(levels, self.reach)[:, first : first + ready]
        self.past = levels[:, max(0, first + ready - 2 * self.reach) : first + ready]
        gains = np.concatenate([self.gain, quiet_gains(closed, enhanced[:, :ready])], axis=1)
        finished = self.waiting[1, :, : ready * self.size]
        if (gains < 1).any():
            # From the lower gain of two neighbours at their border to that at the next: never above a frame's own.
            borders = np.minimum(gains[:, :-1], gains[:, 1:])
            borders = np.concatenate([borders, gains[:, -1:]], axis=1)
            ramp = np.arange(self.size) / self.size
            curve = borders[:, :-1, None] * (1 - ramp) + borders[:, 1:, None] * ramp
            finished = finished * curve.reshape(len(finished), -1).astype(np.float32)
        self.gain = gains[:, -1:]
        self.waiting = self.waiting[:, :, ready * self.size :]
        return finished


class _Mixer:
    """Takes blocks as `keep_recording` does and gives back what is finished, three quarters of a spectrum later."""

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
        frames = sliding_window_view(samples, self.size, axis=2)[:, :, :: self.hop]
        spectra = np.fft.rfft(frames * self.window)
        kept, added = find_gains(*(np.square(np.abs(spectra)) @ self.shapes.T))
        mixed = kept @ self.shapes * spectra[0] + added @ self.shapes * spectra[1]
        return self._overlap(np.fft.irfft(mixed) * self.closing)

    def _overlap(self, frames: np.ndarray) -> np.ndarray:
        """Adds frames (channel, frame, sample) up, each a hop after the one before; gives what is finished."""
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
