"""Any recording in: reads audio of every kind as float32 waveforms (channel, sample), and resamples them.

Knows where audio comes from; knows no container, codec or token.
"""

import http.client
import io
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import soxr
import torch

from .audio_arrays_dacse import read_array
from .audio_decoder_dacse import FileDecoder

WEB = ("http://", "https://")
RESERVED = "%/:?#[]@!$&'()*+,;=~"  # letters of an address that mean something (RFC 3986, section 2.2), and escapes
DOWNLOAD_TIMEOUT = 30  # seconds without an answer
MEMORY_BYTES = 1 << 26  # of what cannot be sought; more goes to the disk
COPY_BYTES = 1 << 20


@dataclass
class AudioStream:
    """A recording opened for reading block by block.

    Attributes:
        sampling_rate: In Hz.
        channels: How many.
        estimated_samples: Per channel, as a header says, to show progress by; None where none does.
        blocks: float32 (channel, sample), once. What they hold in all is the recording's length.
        sample_type: "uint8", "int16", "int24", "float32", ...; None where samples are not kept as they were (MP3).
        tags: Title, artist, date, comment, ... by their names in lower case.
        file: What is read, closed with the last block; whoever wants no more blocks closes it.
    """

    sampling_rate: int
    channels: int
    estimated_samples: int | None
    blocks: Iterator[np.ndarray]
    sample_type: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None


def load_audio(source: Any, sampling_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Reads a whole recording.

    Args:
        source: One of
            - a path of a file, pipe or device, or an http(s) address;
            - the content of an audio or video file: `bytes`, or a file object opened for reading bytes, which is read
              from where it stands, or from its beginning if it was just written;
            - a numpy array or torch tensor: `(sample,)`, `(channel, sample)` or `(sample, channel)`. The shorter axis
              is the channels; of two equal ones, the first. Integers are scaled from their full range to [-1, 1),
              unsigned ones around their middle. Wide integers, and floats that are whole numbers, are taken for
              samples of 16 bits where they stay within those, which is warned of;
            - `{"array", "raw" or "audio": array, "sampling_rate": Hz}`, or `{"bytes": content, "path": name}` as
              `datasets` stores audio, or its decoded value (anything with `get_all_samples()`), or a row with one of
              all these in its column `audio`.
        sampling_rate: Of a bare array, in Hz. Every other source knows its own.

    Returns:
        The waveform, float32 (channel, sample), the caller's to change, and its sampling rate in Hz.

    Raises:
        ValueError: Not audio, without samples, with NaN or infinity or far above full scale, or an array without a
            rate or of a shape, type or scale that is not audio.
        OSError: The file or address cannot be opened (`FileNotFoundError`, `PermissionError`, ...).

    Warns:
        AudioWarning: The recording is shorter than its header promises, or damaged: what is there is read.

    >>> load_audio(np.array([0, 16384, -32768], dtype=np.int16), sampling_rate=8000)
    (array([[ 0. ,  0.5, -1. ]], dtype=float32), 8000)
    """
    stream = stream_audio(source, sampling_rate, block_seconds=60.0)
    return np.concatenate(list(stream.blocks), axis=1), stream.sampling_rate


def stream_audio(source: Any, sampling_rate: int | None = None, block_seconds: float = 10.0) -> AudioStream:
    """Opens a recording of any kind for reading in blocks, so that the length of a file does not matter.

    Takes what `load_audio` takes and raises what it raises: what shows at its beginning at once, the rest as the
    blocks are read. The formats are told by their content; a name or its ending says nothing.
    """
    if isinstance(source, dict):
        return _stream_dict(source, sampling_rate, block_seconds)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _stream_array(source, sampling_rate, block_seconds)
    if hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        return _stream_array(samples.data, samples.sample_rate, block_seconds)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _stream_file(io.BytesIO(source), "the given bytes", block_seconds)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        file = _downloaded(name) if str(name).startswith(WEB) else _opened(name)
        return _stream_file(file, name, block_seconds)
    if hasattr(source, "read"):
        name = getattr(source, "name", "the given file object")
        return _stream_file(_rest(source), str(name), block_seconds)
    raise ValueError(f"audio of type {type(source).__name__}; give a path, address, bytes, file object, array or dict")


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
        # soxr rounds the total its own way; silence after the end, heard by no sample we keep, makes it long enough
        silence = np.zeros((rate_in // rate_out + 2, len(block)), dtype=np.float32)
        rest = resampler.resample_chunk(silence, last=True)
        yield np.ascontiguousarray(rest[: round(read * rate_out / rate_in) - written].T)


def resample(waveform: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resamples (soxr, HQ) a waveform (channel, sample) to exactly `round(samples * rate_out / rate_in)` samples.

    >>> resample(np.zeros((2, 3), dtype=np.float32), 44100, 48000).shape
    (2, 3)
    """
    return np.concatenate(list(resample_blocks([waveform], rate_in, rate_out)), axis=1)


def _stream_dict(source: dict, sampling_rate: int | None, block_seconds: float) -> AudioStream:
    if "audio" in source and "sampling_rate" not in source:  # a row of a data set
        return stream_audio(source["audio"], sampling_rate, block_seconds=block_seconds)
    for key in ("array", "raw", "audio"):
        if key in source:
            return _stream_array(source[key], source.get("sampling_rate", sampling_rate), block_seconds)
    if source.get("bytes") is not None:
        return _stream_file(io.BytesIO(source["bytes"]), source.get("path") or "the given bytes", block_seconds)
    if source.get("path") is not None:
        return stream_audio(source["path"], block_seconds=block_seconds)
    raise ValueError(f"audio given as a dict with the keys {list(source)}; give array and sampling_rate, or path")


def _stream_array(array: Any, sampling_rate: int | None, block_seconds: float) -> AudioStream:
    waveform, rate = read_array(array, sampling_rate)
    size = max(1, round(block_seconds * rate))
    firsts = range(0, waveform.shape[1], size)
    blocks = (np.ascontiguousarray(waveform[:, first : first + size]) for first in firsts)
    return AudioStream(rate, *waveform.shape, blocks)


def _stream_file(file: BinaryIO, name: str, block_seconds: float) -> AudioStream:
    """The file is closed with the last block."""
    try:
        decoder = FileDecoder(file, name)
    except BaseException:
        file.close()
        raise
    rate, channels = decoder.format
    blocks = _closing(file, decoder.blocks(block_seconds))
    return AudioStream(rate, channels, decoder.estimated_samples, blocks, decoder.sample_type, decoder.tags, file)


def _closing(file: BinaryIO, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    with file:
        yield from blocks


def _opened(path: str | os.PathLike) -> BinaryIO:
    """A file to seek in; pipes and devices are read to their end first."""
    if "://" in str(path):
        raise ValueError(
            f"{path} is no address that is read: give http(s), or a file that was opened there, such as"
            f" fsspec.open({str(path)!r}).open()"
        )
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{path} is a folder; give a list of its files, such as sorted(pathlib.Path({str(path)!r}).glob('*.wav')),"
            " or use `dacse enhance`"
        )
    file = open(path, "rb")
    if file.seekable():
        return file
    with file:
        return _copied(file)


def _rest(source: Any) -> BinaryIO:
    """What a file object still holds; all of it if it stands at its end, where writing leaves it."""
    file = _copied(source)
    if file.tell() == 0 and getattr(source, "seekable", bool)():
        file.close()
        source.seek(0)
        file = _copied(source)
    return file


def _downloaded(address: str) -> BinaryIO:
    request = urllib.request.Request(urllib.parse.quote(address, safe=RESERVED), headers={"User-Agent": "dacse"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            file = _copied(response)
            if response.length:  # which counts down
                file.close()
                raise http.client.HTTPException(f"it broke off {response.length} bytes before its end")
            return file
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
        raise OSError(f"cannot download {address} ({error}); check the address and the connection") from error


def _copied(source: Any) -> BinaryIO:
    """What is left to read, in memory, or on the disk if it is long; never to be seen by others, nor left over."""
    file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)
    try:
        while content := source.read(COPY_BYTES):
            if isinstance(content, str):
                raise ValueError(f"{source!r} reads text; open audio files with mode 'rb'")
            file.write(content)
    except BaseException:
        file.close()
        raise
    return file
