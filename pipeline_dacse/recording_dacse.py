"""One recording on its way: read once, encoded, cut into windows; enhanced windows joined, decoded, levelled, mixed.

Works through the processor's public methods; knows no model, token layout, codec or file format.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import ProcessorMixin

from .levels_dacse import hold_quiet, keep_recording
from .options_dacse import EnhanceOptions
from .windows_dacse import Span, frames_in_regions, overlap_frames, span_weights, split_windows, window_frames

FADE_SECONDS = 0.01  # between samples of the input and enhanced ones


class Piece(NamedTuple):
    """Enhanced audio as it comes."""

    audio: np.ndarray  # float32 (channel, sample)
    confidence: np.ndarray | None  # float32 (channel, frame): of the frames finished since the piece before


@dataclass(frozen=True)
class Window:
    """One channel of one window of a recording."""

    index: int  # which window of the recording
    channel: int
    span: Span
    codes: torch.LongTensor  # noisy, (codebook, frame)
    sounds: bool  # False: digital silence from end to end
    free: torch.BoolTensor  # (frame,): the model's to choose, for it is inside a region and not after what is kept

    @property
    def is_generated(self) -> bool:
        """Whether the model is asked about it."""
        return self.sounds and bool(self.free.any())


@dataclass(frozen=True)
class EnhancedWindow:
    """What the model made of a window; what it was not asked about stays as it was."""

    window: Window
    codes: torch.LongTensor  # (codebook, frame)
    confidence: torch.Tensor | None = None  # (frame,): mean probability of the tokens of a frame

    def owned(self, frames: torch.Tensor) -> torch.Tensor:
        """Of its frames (..., frame), those this window owns."""
        span = self.window.span
        return frames[..., span.first - span.start : span.last - span.start]


class Recording:
    """A recording between its first sample in and its last sample out.

    The audio is read once, block by block. What reads later than the encoder (the levels, the mix with the input) gets
    the same blocks, which are kept until then: as many as lie between a window's encoding and its decoding.

    Args:
        processor: Reads, encodes, decodes, resamples.
        audio: Of any kind the processor reads; a file is read as it goes.
        options: Of the call.
        max_frames: That fit the model's context.

    Raises:
        ValueError: If it cannot be read, or the window does not suit the model.
        OSError: If it cannot be opened.

    Attributes:
        stream: What the processor says of the input: its rate, how long it may be, its sample type and tags.
        sampling_rate: Of the output, in Hz.
        channels: Of input and output.
        num_samples: Of the input, once it has been read to its end.
    """

    def __init__(self, processor: ProcessorMixin, audio: Any, options: EnhanceOptions, max_frames: int):
        self.processor, self.options = processor, options
        self.window, self.overlap = window_lengths(processor, options, max_frames)
        self.stream = processor.stream_audio(audio, options.sampling_rate)
        self.input_rate, self.channels = self.stream.sampling_rate, self.stream.channels
        rate = options.output_sampling_rate
        self.sampling_rate = {None: processor.sampling_rate, "input": self.input_rate}.get(rate, rate)
        self.num_samples: int | None = None
        self.num_frames: int | None = None
        blocks = self._count(self.stream.blocks)
        self.for_mix: Iterator[np.ndarray] | None = None
        if options.strength < 1 or options.regions is not None:
            blocks, self.for_mix = itertools.tee(blocks)
        blocks = self._complete(processor.resample_blocks(blocks, self.input_rate, processor.sampling_rate))
        self.for_encoder, self.for_levels = itertools.tee(blocks)

    def expect_frames(self) -> int | None:
        """How many frames there are, or will be if the header is right; None if it does not say."""
        samples = self.stream.estimated_samples
        if self.num_frames is not None or samples is None:
            return self.num_frames
        return _frames_of(samples, self.input_rate, self.processor)

    def windows(self) -> Iterator[Window]:
        """Yields its windows, every channel of each in turn, encoded as one piece.

        A recording shorter than a window gives a shorter one, or is completed with silence for a model that knows one
        length alone.

        Raises:
            ValueError: If the audio turns out to be damaged, or a region begins after its end.
        """
        sounds = _SoundWatch(self.channels, self.processor.hop_length)
        pieces = self.processor.encode_blocks(sounds.observe(self.for_encoder))
        codes, position = torch.zeros(self.channels, self.processor.num_codebooks, 0, dtype=torch.long), 0

        def reach(stop: int) -> int:
            nonlocal codes
            while position + codes.shape[-1] < stop and (more := next(pieces, None)) is not None:
                codes = torch.cat([codes, more], dim=-1)
            return stop if self.num_frames is None else min(stop, self.num_frames)

        is_whole = self.processor.window_frames is not None
        for index, span in enumerate(split_windows(reach, self.window, self.overlap, is_whole)):
            reach(span.stop)
            codes, position = codes[..., span.start - position :], span.start
            length, sounding = span.stop - span.start, sounds.sounds(span)
            free = torch.from_numpy(self._free_frames(span))
            for channel in range(self.channels):
                yield Window(index, channel, span, codes[channel, :, :length], bool(sounding[channel]), free)

    def render(self, rows: Iterator[EnhancedWindow]) -> Iterator[Piece]:
        """Joins enhanced windows, every one of the recording in order, and mixes them with the input.

        Yields:
            Pieces of `round(num_samples * rate_out / rate_in)` samples in all.
        """
        confidences: list[np.ndarray] = []
        enhanced = self._enhance_sound(self._join_codes(rows, confidences))
        mix = self.processor.resample_blocks(self.for_mix or iter(()), self.input_rate, self.sampling_rate)
        dry, position = _Reader(mix, self.channels), 0
        for block in self.processor.resample_blocks(enhanced, self.processor.sampling_rate, self.sampling_rate):
            if self.num_samples is not None:
                block = block[:, : round(self.num_samples * self.sampling_rate / self.input_rate) - position]
            if self.for_mix is not None:
                weights = self._weights(position + np.arange(block.shape[1]))
                block = weights * block + (1 - weights) * dry.read(block.shape[1])
            position += block.shape[1]
            confidence = None
            if self.options.return_confidence:
                confidence = np.concatenate([np.zeros((self.channels, 0), np.float32), *confidences], axis=1)
                confidences.clear()
            yield Piece(block, confidence)

    def _count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        count = 0
        for block in blocks:
            count += block.shape[1]
            yield block
        self.num_samples = count
        seconds = count / self.input_rate
        if self.options.regions and self.options.regions[-1][0] >= seconds:  # they ascend
            raise ValueError(
                f"region {self.options.regions[-1]} begins after the end of the recording, which lasts {seconds:.6g} s"
            )

    def _complete(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """At the codec's rate: as many samples as it takes to decode to the end of the input at any output rate."""
        count = 0
        for block in blocks:
            count += block.shape[1]
            yield block
        self.num_frames = _frames_of(self.num_samples, self.input_rate, self.processor)
        frames = max(self.num_frames, self.processor.window_frames or 0)
        yield np.zeros((self.channels, frames * self.processor.hop_length - count), dtype=np.float32)

    def _free_frames(self, span: Span) -> np.ndarray:
        """Which frames of a window are the model's to choose, (frame,)."""
        free = np.ones(span.stop - span.start, dtype=bool)
        if self.options.regions is not None:
            free = frames_in_regions(self.options.regions, span.start, span.stop, self.processor.frame_rate)
        free[span.last - span.start :] = False  # no frame depends on those after it
        return free

    def _join_codes(
        self, rows: Iterator[EnhancedWindow], confidences: list[np.ndarray]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields the codes each window owns, (channel, codebook, frame): as generated, and as they were."""
        while group := list(itertools.islice(rows, self.channels)):
            if self.options.return_confidence:
                confidences.append(np.stack([row.owned(row.confidence).numpy() for row in group]))
            generated = torch.stack([row.owned(row.codes) for row in group])
            yield generated, torch.stack([row.owned(row.window.codes) for row in group])

    def _enhance_sound(self, codes: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[np.ndarray]:
        """Yields the enhanced audio at the codec's rate, (channel, sample)."""
        rate, keep = self.processor.sampling_rate, self.options.keep_recording
        own, own_again = (_Reader(blocks, self.channels) for blocks in itertools.tee(self.for_levels))
        if self.processor.keep_recording if keep is None else keep:
            both = self.processor.decode_blocks(torch.cat(pair) for pair in codes)
            stacks = (np.stack([own_again.read(block.shape[1]), *np.split(block, 2)]) for block in both)
            blocks = keep_recording(stacks, rate)
        else:
            del own_again  # or what it does not read would be kept for it
            blocks = self.processor.decode_blocks(generated for generated, _ in codes)
        return hold_quiet((np.stack([own.read(block.shape[1]), block]) for block in blocks), rate)

    def _weights(self, samples: np.ndarray) -> np.ndarray:
        """Weights of the enhanced audio at samples of the output, float32 (sample,)."""
        weights = np.full(len(samples), self.options.strength, dtype=np.float32)
        if self.options.regions is not None:
            seconds = math.inf if self.num_samples is None else self.num_samples / self.input_rate
            weights *= span_weights(self.options.regions, FADE_SECONDS, seconds, samples / self.sampling_rate)
        return weights


def window_lengths(processor: ProcessorMixin, options: EnhanceOptions, max_frames: int) -> tuple[int, int]:
    """Frames of a window and of an overlap, for a model whose context holds `max_frames`.

    Raises:
        ValueError: If the model does not take windows of that length.
    """
    rate = processor.frame_rate
    window = window_frames(options.window_seconds, rate, max_frames, processor.window_frames)
    return window, overlap_frames(options.overlap_seconds, rate, window)


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
        wanted, self.buffer = np.split(self.buffer, [num_samples], axis=1)
        return wanted


def _frames_of(num_samples: int, sampling_rate: int, processor: ProcessorMixin) -> int:
    """Frames that reach the end of a recording at any output rate: samples are rounded up, and frames."""
    samples = -(-num_samples * processor.sampling_rate // sampling_rate)
    return -(-samples // processor.hop_length)
