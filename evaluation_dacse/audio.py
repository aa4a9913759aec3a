"""Audio as this room takes it: mono float32 (sample,), read and resampled by `processing_dacse`. Knows no clip."""

from pathlib import Path

import numpy as np

from processing_dacse.audio_dacse import load_audio
from processing_dacse.audio_dacse import resample as resample_channels

__all__ = ["FAINT", "load_audio", "read_mono", "resample", "resample_channels", "rms"]

FAINT = 10 ** (-60 / 20)  # of the level beside it: what is below is silence, whatever it holds


def read_mono(path: str | Path) -> tuple[np.ndarray, int]:
    """A recording (sample,) and its rate in Hz.

    Raises:
        OSError, ValueError: it cannot be read whole, or has several channels.
    """
    waveform, rate = load_audio(path)
    if len(waveform) != 1:
        raise ValueError(f"{path} has {len(waveform)} channels; a test set is mono: give each channel as a clip")
    return waveform[0], rate


def resample(waveform: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resamples (sample,) to `round(samples * rate_out / rate_in)` samples.

    >>> resample(np.zeros(3, dtype=np.float32), 44100, 48000).shape
    (3,)
    """
    return resample_channels(waveform[None], rate_in, rate_out)[0]


def rms(waveform: np.ndarray) -> float:
    """Root mean square.

    >>> rms(np.array([3.0, -3.0]))
    3.0
    """
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
