"""Arrays as waveforms: which axis is which, what full scale is, what cannot be sound. Knows no file."""

import math
import numbers
import warnings
from typing import Any

import numpy as np
import torch

LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000  # Hz
LOUDEST = 100.0  # 40 dB above full scale; what is louder was scaled otherwise
RESCALE = "divide it by its own full scale (32768 for 16 bits)"
AMBIGUOUS = "so that its full scale is not known; divide it by that (2**23 for 24 bits), or convert it to that type"


class AudioWarning(UserWarning):
    """Something about a recording that was read, and not as it promises.

    Attributes:
        name: Of the recording.
    """

    def __init__(self, name: str, what: str):
        super().__init__(f"{name} {what}")
        self.name = name


def read_array(array: Any, sampling_rate: Any, name: str = "the audio array") -> tuple[np.ndarray, int]:
    """A waveform (channel, sample) of an array, tensor or list, and its rate.

    Raises:
        ValueError: See `load_audio`.
    """
    rate = check_rate(sampling_rate, name)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} has rows of different lengths; give one array a recording") from error
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} has the shape {array.shape}; give (sample,), (channel, sample) or (sample, channel)")
    if array.size == 0:
        raise ValueError(f"{name} of shape {array.shape} has no samples; give at least one")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of type {array.dtype}; give integers or floats")
    array = np.atleast_2d(array)
    waveform = _scaled(array if array.shape[0] <= array.shape[1] else array.T, name)
    check_values(waveform, name, 0)
    return waveform, rate


def check_rate(sampling_rate: Any, name: str) -> int:
    """A sampling rate as an int.

    Raises:
        ValueError: There is none, or it is not one of sound.
    """
    if sampling_rate is None:
        raise ValueError(f"{name} does not know its sampling rate; pass sampling_rate in Hz beside it")
    if isinstance(sampling_rate, (torch.Tensor, np.ndarray)) and math.prod(sampling_rate.shape) == 1:
        sampling_rate = sampling_rate.item()
    is_whole = isinstance(sampling_rate, numbers.Real) and not isinstance(sampling_rate, bool)
    if not is_whole or sampling_rate % 1 or not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
        raise ValueError(
            f"{name} has a sampling rate of {sampling_rate!r}; give whole Hz from {LOWEST_RATE} to {HIGHEST_RATE}"
        )
    return int(sampling_rate)


def check_values(waveform: np.ndarray, name: str, offset: int, remedy: str = RESCALE) -> None:
    """Raises ValueError for samples (channel, sample) that no sound has; `offset` is the number of the first one."""
    if max(waveform.max(), -waveform.min()) <= LOUDEST:  # which is not so for nan
        return
    peaks = np.abs(waveform).max(axis=0)
    first = int((~(peaks <= LOUDEST)).argmax())
    if np.isfinite(peaks[first]):
        place = f"{peaks[first]:.6g} at sample {offset + first}"
        raise ValueError(f"{name} reaches {place}, where full scale is 1; {remedy}")
    raise ValueError(f"{name} has NaN or infinity, first at sample {offset + first}; repair it first")


def full_scale(array: np.ndarray) -> np.ndarray:
    """Copies integers or floats to contiguous float32, integers divided by the full scale of their type.

    >>> full_scale(np.array([0, 128, 255], dtype=np.uint8))
    array([-1.       ,  0.       ,  0.9921875], dtype=float32)
    """
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused as such
        waveform = np.array(array, dtype=np.float32, order="C")
    if array.dtype.kind == "f":
        return waveform
    waveform /= np.float32(2.0 ** (8 * array.dtype.itemsize - 1))
    return waveform - np.float32(1) if array.dtype.kind == "u" else waveform


def _scaled(array: np.ndarray, name: str) -> np.ndarray:
    """float32 by the full scale of the array's type, or the one that its values show where they cannot be that."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind == "f":
        peak = float(np.abs(array).max())
        if not LOUDEST < peak <= 2**15 or (array % 1).any():
            return full_scale(array)
        return _as_16_bit(array, name)
    if bits <= 16:
        return full_scale(array)
    peak = max(-int(array.min()), int(array.max()))
    if peak == 0:
        return full_scale(array)
    if kind == "u":
        if peak < 2 ** (bits - 1):
            raise ValueError(f"{name} is of type {array.dtype} and stays in its lower half, {AMBIGUOUS}")
        return full_scale(array)
    if peak <= 2**15:
        return _as_16_bit(array, name)
    if peak <= 2**23:  # loud samples of 24 bits, or quiet ones of 32
        raise ValueError(f"{name} is of type {array.dtype} and reaches {peak} only, {AMBIGUOUS}")
    if peak <= 2**31:
        return (array / 2.0**31).astype(np.float32)
    return full_scale(array)


def _as_16_bit(array: np.ndarray, name: str) -> np.ndarray:
    warnings.warn(AudioWarning(name, f"holds {array.dtype} samples of 16 bits, and is read as such"), stacklevel=2)
    return (array / 2.0**15).astype(np.float32)
