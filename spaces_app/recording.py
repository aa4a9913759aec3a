"""A visitor's file becomes a waveform, or a line in words for whoever uploaded it. Knows no page and no model."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
from offer import Settings

SILENCE = 2**-15  # a peak below one step of 16 bits
MAX_CHANNELS = 2  # what a browser plays without mixing
ONE_AT_A_TIME = threading.Lock()  # Python has one list of warnings for all threads


@dataclass(frozen=True)
class UploadedRecording:
    """A file that has been read.

    Args:
        name: of the file.
        digest: of its content, the same for the same recording.
        waveform: float32 (channel, sample).
        sampling_rate: Hz.
        warnings: what is wrong with it and did not hinder reading, in words.
    """

    name: str
    digest: str
    waveform: np.ndarray
    sampling_rate: int
    warnings: tuple[str, ...] = ()


def read_recording(
    path: str | None, stream_audio: Callable[..., Any], rate_out: int, settings: Settings
) -> UploadedRecording:
    """Reads what a visitor gave, and no more of it than the Space takes.

    Args:
        path: of the file; None where there is none.
        stream_audio: a processor's reader of audio in blocks.
        rate_out: of the enhanced audio, in Hz.
        settings: with the limits.

    Raises:
        ValueError: it is no audio, has no samples, holds values that are no numbers, is silent, too long, too short or
            too large, or has too many channels.
    """
    if path is None:
        raise ValueError("There is no recording yet. Upload one, record one, or pick an example.")
    name, size = Path(path).name, Path(path).stat().st_size
    if size > settings.max_megabytes * 1e6:
        raise ValueError(f"{name} has {size / 1e6:.0f} MB; this demo takes up to {settings.max_megabytes:g} MB.")
    with ONE_AT_A_TIME, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        waveform, rate = _read_blocks(path, name, stream_audio, settings.max_minutes)
    if np.abs(waveform).max() < SILENCE:
        raise ValueError(f"{name} is silent. Check the microphone, then record again.")
    if round(waveform.shape[1] * rate_out / rate) == 0:
        raise ValueError(f"{name} is too short: not even one sample at {rate_out} Hz. Record again.")
    with open(path, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    damage = [str(warning.message) for warning in said if warning.category.__name__ == "AudioWarning"]
    return UploadedRecording(name, digest, waveform, rate, tuple(damage))


def _read_blocks(path: str, name: str, stream_audio: Callable[..., Any], max_minutes: float) -> tuple[np.ndarray, int]:
    """The waveform and its rate. A header's word for its length is not trusted: what counts is what is there."""
    stream = stream_audio(path)
    try:
        if stream.channels > MAX_CHANNELS:
            raise ValueError(f"{name} has {stream.channels} channels; this demo takes mono and stereo.")
        blocks, samples = [], 0
        for block in stream.blocks:
            samples += block.shape[1]
            if samples > max_minutes * 60 * stream.sampling_rate:
                raise ValueError(
                    f"{name} lasts longer than the {max_minutes:g} minutes that this demo takes. "
                    "Cut it, or run `dacse enhance` on your own machine, which takes any length."
                )
            blocks.append(block)
    finally:
        stream.file.close()
    return np.concatenate(blocks, axis=1), stream.sampling_rate
