"""Decodes the content of audio and video files, whatever they are called, to blocks of samples. Knows no other source.

FFmpeg does the work, through PyAV. What it passes over in silence is said here: sound that is missing in the middle,
and a file that is shorter than it claims.
"""

import itertools
import re
import warnings
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.audio.frame import format_dtypes
from av.audio.plane import AudioPlane

from .audio_arrays_dacse import RESCALE, AudioWarning, check_rate, check_values, full_scale
from .audio_containers_dacse import find_parts
from .audio_parts_dacse import Part, PartFile

# FFmpeg's names of what is read. A list, for it knows formats that name other files and addresses to be read in turn.
FORMATS = "wav,w64,aiff,au,caf,nistsphere,flac,ogg,mp3,aac,mov,matroska,asf,amr,avi,flv,mpegts,mpeg"
LOSSLESS = {"flac", "alac"}  # codings beside PCM that keep samples as they were
COUNTED = {"flac", "nistsphere", "mov", "matroska", "flv", "mp3"}  # formats whose length, if given, was counted
EXACT_CLOCKS = {"flac", "ogg"}  # formats whose times are counts of samples; others round or measure them
LARGEST_GAP = 0.2  # seconds by which the times of other formats may jump ahead with nothing missing
LARGEST_LOSS = 1800.0  # seconds that may be missing (who is muted in a call sends nothing), or as much as is there
TOLERANCE = 0.1  # seconds by which claims differ from what is there, through delays and rounding
LARGEST_FILLING = 1 << 13  # samples of a packet
ROUNDING = 0.002  # seconds by which an MP4 may be wrong about how long it is to be played
TRIMMED_WRONG = {("ogg", "vorbis"), ("caf", "alac")}  # at whose end FFmpeg takes too many or too few samples away
LARGEST_BLOCK = 1 << 24  # samples of all channels together
REMEDY = "get the file again, or rewrite it, for example with `ffmpeg -i IN OUT.wav`"


class AudioFormat(NamedTuple):
    """What does not change in a recording."""

    sampling_rate: int  # Hz
    channels: int

    def __str__(self) -> str:
        return f"{self.sampling_rate} Hz with {self.channels} channel{'s' * (self.channels > 1)}"


class FileDecoder:
    """All recordings of a file as one.

    Args:
        file: Can be sought, and stays the caller's; it is read while blocks are asked for.
        name: What to call it in messages.

    Raises:
        ValueError: No format that is read, no sound in it, or not a sample that can be decoded.

    Attributes:
        format: Its rate and channels.
        sample_type: "uint8", "int16", "int24", "float32", ...; None where the samples are not kept as they were.
        estimated_samples: Per channel, as a header says or None.
        tags: Title, artist, date, comment, ... by their names in lower case.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        self.parts = find_parts(file)
        first = TrackDecoder(file, self.parts[0], name)
        arrays = first.arrays()
        start = next(arrays, None)
        if start is None:
            raise ValueError(f"{name} has no samples that can be decoded; {REMEDY}")
        self.format, self.sample_type, self.tags = first.format, first.sample_type, first.tags
        seconds = first.estimated_seconds
        self.estimated_samples = round(seconds * self.format.sampling_rate) * len(self.parts) if seconds else None
        self._arrays = itertools.chain([start], arrays, self._following())

    def blocks(self, seconds: float) -> Iterator[np.ndarray]:
        """Yields float32 (channel, sample), all of that length but the last; once."""
        rate, channels = self.format
        size = max(1, min(round(seconds * rate), LARGEST_BLOCK // channels))
        is_float = self.sample_type is not None and self.sample_type.startswith("float")
        remedy = RESCALE if is_float else "it is damaged"
        waiting, count, done = [], 0, 0
        for array in itertools.chain(self._arrays, [None]):
            if array is not None:
                waiting.append(array)
                count += array.shape[1]
                if count < size:
                    continue
            samples = np.concatenate(waiting, axis=1) if waiting else np.zeros((channels, 0), np.float32)
            stop = count if array is None else count - count % size
            for first in range(0, stop, size):
                block = np.ascontiguousarray(samples[:, first : min(first + size, stop)])
                check_values(block, self.name, done, remedy)
                done += block.shape[1]
                yield block
            waiting, count = [samples[:, stop:]], count - stop

    def _following(self) -> Iterator[np.ndarray]:
        for number, part in enumerate(self.parts[1:], 2):
            place = f"recording {number} of {len(self.parts)} in it, from byte {part.start},"
            track = TrackDecoder(self.file, part, self.name)
            empty = True
            for array in track.arrays():
                if track.format != self.format:
                    raise ValueError(
                        f"{self.name} begins in {self.format}, and {place} is in {track.format}; take it apart"
                    )
                empty = False
                yield array
            if empty:
                _warn(self.name, f"holds nothing that can be decoded where {place} should be")


class TrackDecoder:
    """The first sound track of one recording in a file."""

    def __init__(self, file: BinaryIO, part: Part, name: str):
        self.part, self.name = part, name
        self.file = PartFile(file, part)
        self.container = _open_container(self.file, part, name)
        self.stream = self.container.streams.audio[0]
        self.kind = self.container.format.name.split(",")[0]
        self.decoder = self.stream.codec_context
        if part.kind == "rifx":  # of which FFmpeg takes the samples, unlike the header, for little-endian ones
            self.decoder = av.CodecContext.create(re.sub("le$", "be", self.decoder.name), "r")
            self.decoder.sample_rate = self.stream.rate
        if self.decoder.name == "flac":  # else what its checksums find is decoded all the same
            self.decoder.options = {"err_detect": "crccheck+explode"}
        self.coding = self.decoder.name
        self._forget_order_of_channels()
        self.is_trimmed_here = (self.kind, self.coding) in TRIMMED_WRONG
        self.tags = {key.lower(): value for key, value in (self.container.metadata | self.stream.metadata).items()}
        self.format: AudioFormat | None = None  # of its first frame: a header may know half of it
        self.sample_type: str | None = None
        self.ticks = Fraction(0)  # samples per unit of its time
        self.origin: int | None = None  # of its first frame, in units of its time
        self.end = 0  # of its packets, in units of its time
        self.is_broken = False  # what came last could not be decoded
        self.lost: list[tuple[int, int]] = []  # sample and length of what is missing
        self.count = 0  # samples so far, with silence for what is missing

    def _forget_order_of_channels(self) -> None:
        """Has the decoder know how many channels there are, and not which is which.

        Of channels in an order of their own ("right, left") PyAV frees the list once for each object that shows it,
        which ends the process.
        """
        shown = self.stream.codec_context.layout  # frees the list when it goes, which nothing else then knows
        if shown.nb_channels:
            self.stream.codec_context.layout = self.decoder.layout = f"{shown.nb_channels} channels"

    @property
    def estimated_seconds(self) -> float | None:
        """Its length, as far as its header or its size tells."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        if self.container.duration and len(self.container.streams) == 1:
            return self.container.duration / av.time_base
        return None

    @property
    def promised_seconds(self) -> float | None:
        """Its length, if something in the file has counted it."""
        if self.part.end is not None:
            return float((self.part.end - (self.stream.start_time or 0)) * self.stream.time_base)
        return self.estimated_seconds if self.kind in COUNTED and self.part.is_counted else None

    def arrays(self) -> Iterator[np.ndarray]:
        """Yields float32 (channel, sample) of any length, once; says what was amiss when all is read."""
        with self.container:
            held, count = deque(), 0
            for array in self._placed():
                held.append(array)
                count += array.shape[1]
                while count - held[0].shape[1] >= LARGEST_FILLING:
                    count -= held[0].shape[1]
                    yield held.popleft()
            if held:
                end = np.concatenate(held, axis=1)
                yield end[:, : count - self._filling()]
                self._report()

    def _placed(self) -> Iterator[np.ndarray]:
        """What is decoded, with silence where its times say that something is missing."""
        due = None
        for frame in self._frames():
            if frame is None:
                self.is_broken = True
                continue
            array = self._to_array(frame)
            begins = due if frame.pts is None else _scaled(frame.pts, self.ticks)
            if due is not None:
                yield from self._silence(begins - due)
            self.is_broken = False
            self.count += array.shape[1]
            due = None if begins is None else begins + array.shape[1]
            if array.shape[1]:
                yield array

    def _frames(self) -> Iterator[av.AudioFrame | None]:
        """Frames as they are decoded, and None for what cannot be."""
        is_pcm = self.coding.startswith("pcm_")  # of which any part of a packet is sound
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                self.file.check()
                yield None
                return
            except IndexError:  # of PyAV, at the end, where further tracks came up on the way (MPEG-TS)
                packet = None
            self.file.check()
            if packet is None:
                return
            if packet.pts is not None and packet.duration:
                self.end = packet.pts + packet.duration
            try:
                frames = self.decoder.decode(self._whole(packet)) if is_pcm or not packet.is_corrupt else [None]
            except av.FFmpegError:
                frames = [None]
            yield from frames

    def _whole(self, packet: av.Packet) -> av.Packet:
        """A packet of which FFmpeg takes nothing away where it would take the wrong things away: see `_filling`."""
        if self.is_trimmed_here and packet.has_sidedata("skip_samples"):
            nothing = packet.get_sidedata("skip_samples")
            nothing.update(bytes(nothing.buffer_size))
            packet.set_sidedata(nothing)
        return packet

    def _to_array(self, frame: av.AudioFrame) -> np.ndarray:
        # Not `frame.to_ndarray()`: PyAV looks for the end of eight planes or more beyond it, which ends the process.
        channels, dtype = frame.layout.nb_channels, format_dtypes[frame.format.name]
        if frame.format.is_planar:
            planes = (AudioPlane(frame, index) for index in range(channels))
            array = np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in planes])
        else:
            array = np.frombuffer(AudioPlane(frame, 0), dtype, frame.samples * channels).reshape(-1, channels).T
        form = AudioFormat(frame.sample_rate, channels)
        if self.format is None:
            check_rate(form.sampling_rate, self.name)
            self.format, self.ticks, self.origin = form, self.stream.time_base * form.sampling_rate, frame.pts
            self.sample_type = _sample_type(self.coding, array)
        elif form != self.format:
            raise ValueError(f"{self.name} changes from {self.format} to {form} on its way; take it apart")
        return full_scale(array)

    def _silence(self, gap: int) -> Iterator[np.ndarray]:
        """Zeros for samples that are missing, unless the gap is one of rounding."""
        rate, channels = self.format
        is_exact = self.is_broken or (self.kind in EXACT_CLOCKS and self.coding != "vorbis")
        if gap <= (0 if is_exact else LARGEST_GAP * rate):
            return
        self.lost.append((self.count, gap))
        missing = sum(length for _, length in self.lost)
        if missing > max(LARGEST_LOSS * rate, self.count):
            raise ValueError(
                f"{self.name} is damaged: {missing / rate:.6g} s are missing after {self.count / rate:.6g} s; {REMEDY}"
            )
        self.count += gap
        for first in range(0, gap, LARGEST_BLOCK // channels):
            yield np.zeros((channels, min(LARGEST_BLOCK // channels, gap - first)), dtype=np.float32)

    def _filling(self) -> int:
        """Samples at the end that fill the last packet and are no part of the recording.

        FFmpeg leaves them there in an MP4, which says how long its last packet is, and how long all is to be played,
        which may be rounded to a thousandth of a second. Of a short Ogg Vorbis it takes too many or too few away, of
        ALAC in a CAF always as many as its last packet is shorter.
        """
        filling = 0
        if self.kind == "mov" and self.origin is not None and self.end:
            stop = _scaled(self.end - self.origin, self.ticks)
            played = _scaled(self.stream.duration or self.end, self.ticks)
            filling = self.count - (played if stop - played > ROUNDING * self.format.sampling_rate else stop)
        elif self.is_trimmed_here and self.part.end is not None:
            filling = self.count - self.part.end + (self.stream.start_time or 0)
        elif self.is_trimmed_here and self.stream.duration:
            filling = self.count - _scaled(self.stream.duration, self.ticks)
        return filling if 0 < filling <= LARGEST_FILLING else 0

    def _report(self) -> None:
        if self.part.fault:
            _warn(self.name, self.part.fault)
        rate = self.format.sampling_rate
        ends = f"ends after {self.count / rate:.6g} s"
        if self.lost:
            seconds, first = sum(length for _, length in self.lost) / rate, self.lost[0][0] / rate
            places = f"{len(self.lost)} places, first" if len(self.lost) > 1 else "one place,"
            _warn(
                self.name, f"lacks {seconds:.3g} s in {places} at {first:.6g} s (damaged, or paused): read as silence"
            )
        promised = self.promised_seconds
        if promised is not None and self.count / rate < promised - TOLERANCE:
            _warn(self.name, f"{ends} of the {promised:.6g} s that it promises: it was cut; what is there is read")
        elif self.is_broken and promised is None and self.part.fault is None:
            _warn(self.name, f"{ends} in what cannot be decoded: it was cut or damaged; what is there is read")


def _open_container(file: PartFile, part: Part, name: str) -> av.container.InputContainer:
    try:
        container = av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except av.FFmpegError as error:
        file.check()
        reason = "it is of no format that is read" if part.kind is None else f"it is damaged: {error.strerror}"
        if part.kind == "mp4":
            reason = "its index is missing or damaged: the end, where that mostly stands, was cut off"
        elif part.start == part.stop:
            reason = "it is empty"
        raise ValueError(f"{name} cannot be read as audio ({reason}); {REMEDY}") from error
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise ValueError(f"{name} has no sound, only {kinds}; give a recording with sound")
    if container.streams.audio[0].codec_context is None:
        container.close()
        raise ValueError(f"{name} has sound in an unknown or protected coding; {REMEDY}")
    return container


def _sample_type(coding: str, array: np.ndarray) -> str | None:
    """What the samples of a coding are, given the first of them.

    >>> _sample_type("pcm_s24le", np.zeros((1, 1), np.int32)), _sample_type("opus", np.zeros((1, 1), np.float32))
    ('int24', None)
    """
    if match := re.match(r"pcm_([suf])(\d+)", coding):
        return {"s": "int", "u": "uint", "f": "float"}[match[1]] + match[2]
    if coding in LOSSLESS:
        return "int24" if array.dtype == np.int32 and not (array & 0xFF).any() else str(array.dtype)
    return None


def _scaled(number: int, factor: Fraction) -> int:
    """Their product, rounded to the next whole number; ten times as fast as that of the fractions module.

    >>> _scaled(7, Fraction(1, 2)), _scaled(-7, Fraction(4, 2))
    (4, -14)
    """
    return (2 * number * factor.numerator + factor.denominator) // (2 * factor.denominator)


def _warn(name: str, what: str) -> None:
    warnings.warn(AudioWarning(name, what), stacklevel=2)
