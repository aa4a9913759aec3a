"""One recording on its way: read in blocks, encoded, cut into windows; enhanced windows joined, decoded, mixed.

Works through the processor's public methods; knows no model, token layout, codec or file format.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from .levels_dacse import keep_recording
from .windows_dacse import Span, frames_in_regions, span_weights, split_windows

BLOCK_SAMPLES = 1 << 19  # in which a waveform in memory is gone through: no second copy of all of it
FADE_SECONDS = 0.01  # between samples of the input and enhanced ones


@dataclass(frozen=True)
class Recording:
    """Audio that can be read from its start more than once, block by block."""

    sampling_rate: int  # Hz
    channels: int
    num_samples: int  # per channel
    source: str | os.PathLike | np.ndarray  # a path, or a waveform (channel, sample)
    regions: list[tuple[float, float]] | None  # seconds to enhance; None for everything

    def resampled(self, processor: ProcessorMixin, sampling_rate: int) -> Iterator[np.ndarray]:
        """Its audio from the start, in float32 blocks (channel, sample)."""
        if isinstance(self.source, np.ndarray):
            blocks = np.split(self.source, range(BLOCK_SAMPLES, self.num_samples, BLOCK_SAMPLES), axis=1)
        else:
            blocks = processor.stream_audio(self.source).blocks
        return processor.resample_blocks(blocks, self.sampling_rate, sampling_rate)


@dataclass(frozen=True)
class Window:
    """One channel of one window of a recording."""

    recording: Recording
    num_frames: int  # of the whole recording
    span: Span
    codes: torch.Tensor  # noisy, (codebook, frame)
    sounds: bool  # False: digital silence from end to end
    free: np.ndarray  # bool (frame,): the model's to choose, for it is inside a region and not behind what is kept

    @property
    def is_generated(self) -> bool:
        return self.sounds and bool(self.free.any())


@dataclass(frozen=True)
class EnhancedWindow:
    """What the model made of a window; what it was not asked about stays as it was."""

    window: Window
    codes: torch.Tensor  # (codebook, frame)
    confidence: torch.Tensor | None = None  # (frame,): mean probability of the tokens of a frame

    def owned(self, frames: torch.Tensor) -> torch.Tensor:
        """Of its frames (..., frame), those this window owns."""
        span = self.window.span
        return frames[..., span.first - span.start : span.last - span.start]


def open_recording(processor: ProcessorMixin, audio: Any, sampling_rate: int | None, regions) -> Recording:
    """Opens audio of any kind; a path is read as it is needed, everything else is in memory.

    Raises:
        ValueError, OSError: it cannot be read, or a region begins behind its end.
    """
    if isinstance(audio, (str, os.PathLike)) and os.path.isfile(audio):
        stream = processor.stream_audio(audio)
        num_samples = sum(block.shape[1] for block in stream.blocks)  # a header only estimates it
        recording = Recording(stream.sampling_rate, stream.channels, num_samples, audio, regions)
    else:
        waveform, rate = processor.load_audio(audio, sampling_rate)
        recording = Recording(rate, *waveform.shape, waveform, regions)
    seconds = recording.num_samples / recording.sampling_rate
    if regions and regions[-1][0] >= seconds:  # they ascend
        raise ValueError(f"region {regions[-1]} begins behind the end of the recording, which lasts {seconds:.6g} s")
    return recording


def cut_recording(
    processor: ProcessorMixin, recording: Recording, window: int, overlap: int, whole: bool = False
) -> Iterator[Window]:
    """Encodes a recording as one piece and yields its windows of `window` frames, every channel of each in turn.

    A recording shorter than a window gives a shorter one, or with `whole` is completed with silence.
    """
    # Rounded up, so that the decoded frames reach the end of the input at any output rate.
    num_samples = _ceil_div(recording.num_samples * processor.sampling_rate, recording.sampling_rate)
    num_frames = _ceil_div(num_samples, processor.hop_length)
    blocks = recording.resampled(processor, processor.sampling_rate)
    watch = _SoundWatch(recording.channels, processor.hop_length)
    encoded_frames = max(num_frames, window) if whole else num_frames
    padded = _pad_blocks(blocks, encoded_frames * processor.hop_length, recording.channels)
    pieces = processor.encode_blocks(watch.observe(padded))
    codes, position = next(pieces), 0
    for span in split_windows(num_frames, window, overlap, whole):
        while position + codes.shape[-1] < span.stop:
            codes = torch.cat([codes, next(pieces)], dim=-1)
        codes, position = codes[..., span.start - position :], span.start
        sounds, length = watch.sounds(span), span.stop - span.start
        free = np.ones(length, dtype=bool)
        if recording.regions is not None:
            free = frames_in_regions(recording.regions, span.start, span.stop, processor.frame_rate)
        free[span.last - span.start :] = False  # no frame depends on those behind it
        for channel in range(recording.channels):
            yield Window(recording, num_frames, span, codes[channel, :, :length], bool(sounds[channel]), free)


def render_recording(
    processor: ProcessorMixin, rows: Iterator[EnhancedWindow], strength: float, sampling_rate: int, keep: bool
) -> Iterator[np.ndarray]:
    """Joins enhanced windows and mixes them with the input.

    Args:
        processor: decodes and resamples.
        rows: every window of one recording, in order.
        strength: 0 for the input, 1 for the enhanced audio, in between for a mix.
        sampling_rate: of the output, in Hz.
        keep: enhanced audio is the recording at the levels of what was generated, and not that itself.

    Yields:
        float32 (channel, sample) pieces, `round(samples * rate_out / rate_in)` samples in all.
    """
    first = next(rows)
    recording = first.window.recording
    sounding = [[] for _ in range(recording.channels)]
    codes = _join_codes(itertools.chain([first], rows), processor.frame_rate, sounding)
    if keep:
        blocks = keep_recording(_decode_beside(processor, first.window, codes), processor.sampling_rate)
    else:
        blocks = processor.decode_blocks(generated for generated, _ in codes)
    enhanced = processor.resample_blocks(blocks, processor.sampling_rate, sampling_rate)
    dry = _Reader(recording.resampled(processor, sampling_rate), recording.channels)
    total, position = round(recording.num_samples * sampling_rate / recording.sampling_rate), 0
    seconds = recording.num_samples / recording.sampling_rate
    for block in enhanced:
        block = block[:, : total - position]
        times = (position + np.arange(block.shape[1])) / sampling_rate
        weights = np.stack([span_weights(stretches, FADE_SECONDS, seconds, times) for stretches in sounding])
        if recording.regions is not None:
            weights *= span_weights(recording.regions, FADE_SECONDS, seconds, times)
        weights *= strength
        position += block.shape[1]
        yield weights * block + (1 - weights) * dry.read(block.shape[1])


def _decode_beside(
    processor: ProcessorMixin, window: Window, codes: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[np.ndarray]:
    """Yields (3, channel, sample): the window's whole recording, and generated and noisy codes as they sound."""
    recording, num_samples = window.recording, window.num_frames * processor.hop_length
    blocks = recording.resampled(processor, processor.sampling_rate)
    own = _Reader(_pad_blocks(blocks, num_samples, recording.channels), recording.channels)
    for block in processor.decode_blocks(torch.cat(pair) for pair in codes):
        yield np.stack([own.read(block.shape[1]), *np.split(block, 2)])


def _join_codes(
    rows: Iterator[EnhancedWindow], frame_rate: float, sounding: list[list[tuple[float, float]]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the codes each window owns, (channel, codebook, frame): as generated, and as they were.

    Notes in `sounding`, for each channel and one window ahead of the codes, the seconds that are not digital silence.
    """
    waiting = None
    while group := list(itertools.islice(rows, len(sounding))):
        for stretches, row in zip(sounding, group, strict=True):
            window = row.window
            if window.sounds:
                start = window.span.first / frame_rate
                if stretches and stretches[-1][1] == start:
                    start = stretches.pop()[0]
                stop = math.inf if window.span.last == window.num_frames else window.span.last / frame_rate
                stretches.append((start, stop))
        if waiting is not None:
            yield waiting
        generated = torch.stack([row.owned(row.codes) for row in group])
        waiting = generated, torch.stack([row.owned(row.window.codes) for row in group])
    yield waiting


class _SoundWatch:
    """Notes which frames of passing blocks hold any sample but 0."""

    def __init__(self, channels: int, hop_length: int):
        self.hop_length = hop_length
        self.rest = np.zeros((channels, 0), dtype=np.float32)  # samples of a frame that has begun
        self.frames, self.position = np.zeros((channels, 0), dtype=bool), 0

    def observe(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            samples = np.concatenate([self.rest, block], axis=1)
            whole = samples.shape[1] // self.hop_length * self.hop_length
            frames = samples[:, :whole].reshape(len(samples), -1, self.hop_length).any(axis=2)
            self.frames, self.rest = np.concatenate([self.frames, frames], axis=1), samples[:, whole:]
            yield block

    def sounds(self, span: Span) -> np.ndarray:
        """bool (channel,): whether the span holds sound. Spans ascend; what lies before one is forgotten."""
        self.frames, self.position = self.frames[:, span.start - self.position :], span.start
        return self.frames[:, : span.stop - span.start].any(axis=1)


class _Reader:
    """Takes blocks (channel, sample) and gives them back in the lengths asked for."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int):
        self.blocks, self.buffer = blocks, np.zeros((channels, 0), dtype=np.float32)

    def read(self, num_samples: int) -> np.ndarray:
        while self.buffer.shape[1] < num_samples:
            self.buffer = np.concatenate([self.buffer, next(self.blocks)], axis=1)
        taken, self.buffer = np.split(self.buffer, [num_samples], axis=1)
        return taken


def _pad_blocks(blocks: Iterable[np.ndarray], num_samples: int, channels: int) -> Iterator[np.ndarray]:
    """Appends silence to make the blocks `num_samples` in all."""
    for block in blocks:
        num_samples -= block.shape[1]
        yield block
    yield np.zeros((channels, num_samples), dtype=np.float32)


def _ceil_div(dividend: int, divisor: int) -> int:
    """
    >>> _ceil_div(7, 3), _ceil_div(6, 3)
    (3, 2)
    """
    return (dividend + divisor - 1) // divisor
