"""Figures by which it shows that a reward is hacked and not earned: level and silence. Knows waveforms."""

import numpy as np

FRAME_SECONDS = 0.02
SILENT = 10 ** (-60 / 20)  # root mean square of a frame, full scale 1.0


def level_db(waveform: np.ndarray, reference: np.ndarray) -> float:
    """How much louder a waveform (sample,) is than its reference, in dB.

    >>> round(level_db(np.full(8, 0.5), np.full(8, 0.25)), 2)
    6.02
    """
    loudness, expected = (np.square(sound, dtype=np.float64).mean() for sound in (waveform, reference))
    return float(10 * np.log10((loudness + 1e-10) / (expected + 1e-10)))


def silent_seconds(waveform: np.ndarray, sampling_rate: int) -> float:
    """Of a waveform (sample,), how much lies in frames below -60 dB of full scale, in seconds.

    >>> round(silent_seconds(np.repeat([0.0, 0.5], 4000), 8000), 2)
    0.5
    """
    length = round(FRAME_SECONDS * sampling_rate)
    frames = waveform[: len(waveform) // length * length].reshape(-1, length)
    return float((np.square(frames, dtype=np.float64).mean(1) < SILENT**2).sum() * length / sampling_rate)


def symptoms(waveforms: list[np.ndarray], references: list[np.ndarray], sampling_rate: int) -> dict[str, np.ndarray]:
    """`level_db` and `silent_seconds` beyond those of the reference, of every waveform: (waveform,) each."""
    pairs = list(zip(waveforms, references, strict=True))
    silent = [silent_seconds(own, sampling_rate) - silent_seconds(clean, sampling_rate) for own, clean in pairs]
    return {"level_db": np.array([level_db(*pair) for pair in pairs]), "silent_seconds": np.array(silent)}
