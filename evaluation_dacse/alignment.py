"""Puts what a system returned where it belongs: same rate, same length, same time, same level. Knows no metric."""

import numpy as np
from scipy.fft import next_fast_len

from .audio import FAINT, resample, rms

MAX_DELAY_SECONDS = 0.1
WHITENING = 0.7  # 1 is GCC-PHAT, 0 plain correlation
CLEAR_PEAK = 15  # over the mean: 4 to 7 between unrelated recordings, 40 and more where one is in the other
MAX_GAIN = 1 / FAINT
LOUD = 0.95  # quantile of the levels that are compared: where there is speech, if there is any
FFT_SIZE = 1024
BLOCK = 16


def find_delay(output: np.ndarray, heard: np.ndarray, longest: int) -> int:
    """Samples by which `output` lags behind `heard`, both (sample,), within +-`longest`.

    The peak of their generalised cross-correlation (Knapp and Carter 1976), whitened in part: whitened whole, noise
    would weigh as much as speech; not at all, peaks a pitch period away would come close. 0 when no peak stands out: a
    generative system may choose every phase anew.

    >>> heard = np.random.default_rng(0).standard_normal(100)
    >>> find_delay(np.roll(heard, 7), heard, longest=40)
    7
    """
    size = next_fast_len(len(output) + len(heard), real=True)
    spectrum = np.fft.rfft(output, size) * np.conj(np.fft.rfft(heard, size))
    magnitude = np.maximum(np.abs(spectrum), 1e-12)
    lags = np.arange(-longest, longest + 1)
    correlation = np.abs(np.fft.irfft(spectrum / magnitude**WHITENING, size)[lags])
    return int(lags[np.argmax(correlation)]) if correlation.max() > CLEAR_PEAK * correlation.mean() else 0


def shift(waveform: np.ndarray, delay: int, num_samples: int) -> np.ndarray:
    """Takes `delay` samples off the start of (sample,), or puts them on, and makes it `num_samples` long with zeros.

    >>> shift(np.array([1.0, 2.0, 3.0]), 1, 3), shift(np.array([1.0, 2.0, 3.0]), -1, 3)
    (array([2., 3., 0.]), array([0., 1., 2.]))
    """
    waveform = waveform[delay:] if delay > 0 else np.pad(waveform, (-delay, 0))
    return np.pad(waveform, (0, max(0, num_samples - len(waveform))))[:num_samples]


def spectral_gain(waveform: np.ndarray, reference: np.ndarray) -> float:
    """The gain that brings the speech in a waveform (sample,) to the level of the reference.

    The loudest twentieth of two coarse spectrograms is brought to one level: what is quieter than speech, or missing,
    counts nothing, nor do the fine structure and phase that generative systems choose anew. At most 60 dB up or down.

    >>> x = np.random.default_rng(0).standard_normal(5000)
    >>> round(spectral_gain(0.5 * x, x), 6)
    2.0
    """
    level, wanted = (float(np.quantile(magnitudes(x), LOUD)) for x in (waveform, reference))
    return float(np.clip(wanted / level, 1 / MAX_GAIN, MAX_GAIN)) if level > 0 else 1.0


def magnitudes(waveform: np.ndarray) -> np.ndarray:
    """Spectrogram of (sample,): RMS over blocks of BLOCK frames by BLOCK bins, at 44.1 kHz 190 ms by 690 Hz."""
    padded = np.pad(waveform, (0, FFT_SIZE + -len(waveform) % (BLOCK * FFT_SIZE // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[:: FFT_SIZE // 2]
    frames = frames[: len(frames) // BLOCK * BLOCK] * np.hanning(FFT_SIZE)
    power = np.abs(np.fft.rfft(frames)[:, :-1]) ** 2  # without the last bin, a whole number of blocks
    blocks = power.reshape(len(power) // BLOCK, BLOCK, -1, BLOCK)
    return np.sqrt(blocks.mean(axis=(1, 3)))


def align(
    output: np.ndarray, output_rate: int, heard: np.ndarray, reference: np.ndarray | None, sampling_rate: int
) -> tuple[np.ndarray, int, float]:
    """Prepares a system's output for scoring.

    Args:
        output: what the system returned, (sample,) at `output_rate`.
        heard: what it was given, (sample,) at `sampling_rate`: the delay is found against it.
        reference: the clean recording, (sample,), for the level; None takes that of `heard`.

    Returns:
        the output at `sampling_rate`, as long as `heard`, and the delay (samples) and gain that were taken out. What
        is 60 dB fainter than `heard` is silence, and not blown up.
    """
    output = resample(output, output_rate, sampling_rate)
    if rms(output) <= FAINT * rms(heard):
        return np.zeros(len(heard), np.float32), 0, 1.0
    delay = find_delay(output, heard, round(MAX_DELAY_SECONDS * sampling_rate))
    output = shift(output, delay, len(heard))
    gain = spectral_gain(output, heard if reference is None else reference)
    return (output * np.float32(gain)).astype(np.float32), delay, gain
