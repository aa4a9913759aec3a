"""Reads audio of any kind as a float32 waveform (channel, sample) and resamples it. Knows no codec and no token.

Whatever cannot be read whole and right is an error that names the source: nothing is cut, filled or guessed.
"""

import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf
import soxr
import torch

# What libsndfile writes to its log when a chunk of audio, or a file that is all audio, promises more than there is:
# WAV "data : 88200 (should be 44100)", AIFF "SSND", AU "Data Size", W64 "riff", RF64 "Riff size". The "RIFF" size of a
# plain WAV is left out: many programs write it wrong by a few bytes around complete audio.
_BROKEN_PROMISE = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)

_REMEDY = "get the file again, or rewrite it, for example with `ffmpeg -i IN OUT.wav`"


class AudioStream(NamedTuple):
    """An audio file opened for reading block by block."""

    sampling_rate: int  # Hz
    channels: int
    num_samples: int  # per channel; the blocks hold exactly as many
    blocks: Iterator[np.ndarray]  # float32 (channel, sample)


def load_audio(source: Any, sampling_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Reads a whole recording.

    Args:
        source: one of
            - a path, or an http(s) address;
            - the content of an audio file: `bytes`, or a file object opened for reading bytes;
            - a numpy array or torch tensor: `(sample,)`, `(channel, sample)` or `(sample, channel)`. The shorter axis
              is the channels; of two equal ones, the first. Integers are scaled from their full range to [-1, 1),
              unsigned ones around their middle; floats are taken as they are;
            - `{"array" or "raw": array, "sampling_rate": Hz}`, or `{"bytes": content, "path": name}` as `datasets`
              stores audio, or its decoded value (anything with `get_all_samples()`).
        sampling_rate: of a bare array, in Hz. Every other source knows its own.

    Returns:
        The waveform, float32 (channel, sample), the caller's to change, and its sampling rate in Hz.

    Raises:
        ValueError: not audio, damaged, shorter than its header promises, without samples, with NaN or infinity, or an
            array without a rate or of a shape or type that is not audio.
        OSError: the file or address cannot be opened (`FileNotFoundError`, `PermissionError`, ...).

    >>> load_audio(np.array([0, 16384, -32768], dtype=np.int16), sampling_rate=8000)
    (array([[ 0. ,  0.5, -1. ]], dtype=float32), 8000)
    """
    if isinstance(source, dict):
        if "array" in source or "raw" in source:
            array = source["array"] if "array" in source else source["raw"]
            return _from_array(array, source.get("sampling_rate", sampling_rate))
        if source.get("bytes") is not None:
            return _from_file(io.BytesIO(source["bytes"]), source.get("path") or "the given bytes")
        if source.get("path") is not None:
            return load_audio(source["path"])
        raise ValueError(f"audio given as a dict with the keys {list(source)}; give array and sampling_rate, or path")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source, sampling_rate)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), "the given bytes")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _from_file(io.BytesIO(_download(source)), source)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(source, os.fspath(source))
    if hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        return _from_array(samples.data, samples.sample_rate)
    if hasattr(source, "read"):
        content = source.read()
        if isinstance(content, str):
            raise ValueError(f"{source!r} reads text; open audio files with mode 'rb'")
        return _from_file(io.BytesIO(content), getattr(source, "name", "the given file object"))
    raise ValueError(f"audio of type {type(source).__name__}; give a path, address, bytes, file object, array or dict")


def stream_audio(path: str | os.PathLike, block_seconds: float = 10.0) -> AudioStream:
    """Opens an audio file for reading in blocks, so that its length does not matter.

    The header is checked at once, the audio as it is read: the errors are those of `load_audio`.
    """
    return _open(path, os.fspath(path), block_seconds)


def resample_blocks(blocks: Iterable[np.ndarray], rate_in: int, rate_out: int) -> Iterator[np.ndarray]:
    """Resamples (soxr, HQ) a waveform that comes in blocks (channel, sample); `resample` is this with one block.

    Yields:
        float32 blocks with `round(samples * rate_out / rate_in)` samples in all. However the waveform was cut into
        blocks, they are the same samples, up to the rounding of float32.
    """
    if rate_in == rate_out:
        yield from blocks
        return
    resampler, read, written = None, 0, 0
    for block in blocks:
        if resampler is None:
            resampler = soxr.ResampleStream(rate_in, rate_out, len(block), dtype="float32", quality="HQ")
        read += block.shape[1]
        resampled = resampler.resample_chunk(np.ascontiguousarray(block.T, dtype=np.float32))
        written += len(resampled)
        yield np.ascontiguousarray(resampled.T)
    if resampler is not None:
        # soxr rounds the total its own way; silence behind the end, heard by no sample we keep, makes it long enough
        silence = np.zeros((rate_in // rate_out + 2, len(block)), dtype=np.float32)
        rest = resampler.resample_chunk(silence, last=True)
        yield np.ascontiguousarray(rest[: round(read * rate_out / rate_in) - written].T)


def resample(waveform: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resamples (soxr, HQ) a waveform (channel, sample) to exactly `round(samples * rate_out / rate_in)` samples.

    >>> resample(np.zeros((2, 3), dtype=np.float32), 44100, 48000).shape
    (2, 3)
    """
    return np.concatenate(list(resample_blocks([waveform], rate_in, rate_out)), axis=1)


def _open(source: Any, name: str, block_seconds: float) -> AudioStream:
    if not isinstance(source, io.BytesIO):
        open(source, "rb").close()  # the system's own error for a path that cannot be read: libsndfile hides it
    try:
        file = sf.SoundFile(source)
    except (sf.LibsndfileError, TypeError) as error:  # TypeError: headerless audio, named .raw
        raise ValueError(f"{name} cannot be read as audio ({error}); give wav, flac, ogg or mp3") from error
    for promised, present in _BROKEN_PROMISE.findall(file.extra_info):
        if int(promised) > int(present):
            raise ValueError(f"{name} promises {promised} bytes of audio and has {present}; {_REMEDY}")
    if file.frames == 0:
        raise ValueError(f"{name} has no samples; {_REMEDY}")
    return AudioStream(file.samplerate, file.channels, file.frames, _blocks(file, name, block_seconds))


def _blocks(file: sf.SoundFile, name: str, block_seconds: float) -> Iterator[np.ndarray]:
    size, read = max(1, round(block_seconds * file.samplerate)), 0
    with file:
        while read < file.frames:
            try:
                block = np.ascontiguousarray(file.read(size, dtype="float32", always_2d=True).T)
            except sf.LibsndfileError as error:
                raise ValueError(f"{name} is damaged after {read} samples ({error}); {_REMEDY}") from error
            if block.shape[1] == 0:
                raise ValueError(f"{name} promises {file.frames} samples and has {read}; {_REMEDY}")
            _check_finite(block, name, read)
            read += block.shape[1]
            yield block


def _from_file(source: Any, name: str) -> tuple[np.ndarray, int]:
    stream = _open(source, name, block_seconds=60.0)
    return np.concatenate(list(stream.blocks), axis=1), stream.sampling_rate


def _from_array(array: np.ndarray | torch.Tensor, sampling_rate: int | None) -> tuple[np.ndarray, int]:
    if sampling_rate is None:
        raise ValueError("an array does not know its sampling rate; pass sampling_rate in Hz beside it")
    if sampling_rate < 1 or sampling_rate != int(sampling_rate):
        raise ValueError(f"sampling rate {sampling_rate}; give a whole number of Hz above 0")
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    array = np.asarray(array)
    if array.ndim not in (1, 2):
        raise ValueError(f"audio array of shape {array.shape}; give (sample,), (channel, sample) or (sample, channel)")
    if array.size == 0:
        raise ValueError(f"audio array of shape {array.shape} has no samples; give at least one")
    array = np.atleast_2d(array)
    waveform = _full_scale(array if array.shape[0] <= array.shape[1] else array.T)
    _check_finite(waveform, "the audio array", 0)
    return waveform, int(sampling_rate)


def _full_scale(array: np.ndarray) -> np.ndarray:
    """Copies any integer or float type to contiguous float32, integers divided by their full scale.

    >>> _full_scale(np.array([0, 128, 255], dtype=np.uint8))
    array([-1.       ,  0.       ,  0.9921875], dtype=float32)
    """
    if array.dtype.kind not in "fiu":
        raise ValueError(f"audio array of type {array.dtype}; give integers or floats")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused as such
        waveform = np.array(array, dtype=np.float32, order="C")
    if array.dtype.kind == "f":
        return waveform
    half = np.float32(2.0 ** (8 * array.dtype.itemsize - 1))
    return waveform / half - np.float32(array.dtype.kind == "u")


def _check_finite(waveform: np.ndarray, name: str, offset: int) -> None:
    finite = np.isfinite(waveform).all(axis=0)
    if not finite.all():
        raise ValueError(f"{name} has NaN or infinity, first at sample {offset + finite.argmin()}; repair it first")


def _download(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "dacse"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()
    except urllib.error.URLError as error:
        raise OSError(f"cannot download {address} ({error}); check the address and the connection") from error
