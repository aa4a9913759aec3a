"""Recordings of every format that is read, made here by the libraries that write them."""

import fractions
import io
import struct
from dataclasses import dataclass
from functools import partial

import av
import numpy as np
import soundfile

LAYOUTS = {1: "mono", 2: "stereo"}


def speech(samples: int, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Something like syllables, (channel, sample): a buzz with formants that comes and goes, and a little noise."""
    time = np.arange(samples) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).standard_normal((channels, samples))
    return (0.15 * buzz * (0.5 + 0.5 * np.sin(2 * np.pi * (3 + seed) * time)) + 0.01 * noise).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """How a format is written, and how well it keeps what was recorded."""

    container: str
    coding: str
    rate: int = 44100
    error: float | None = 0.03  # largest (root mean square; `speech` has 0.17); None: a voice coder keeps no waveform
    delay: int = (
        0  # samples before the recording that the format has no place to tell of; below 0, lost by its encoder
    )
    is_exact: bool = True  # holds as many samples as were recorded
    rounding: int = 0  # samples that may be missing at the end of one that is exact
    sample_type: str | None = None  # as it is read
    channels: tuple[int, ...] = (1, 2)
    other_rates: tuple[int, ...] = ()
    shortest: int = 1  # samples it can hold, or whose number it can tell
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_written_by_libsndfile(self) -> bool:
        return self.container.isupper()


STEP = 2**-15  # of 16 bits
ANY = (1000, 3500, 8000, 11025, 16000, 22050, 32000, 48000, 96000, 192_000)
COMMON = (16000, 22050, 24000, 32000, 48000)
FRAGMENTS = (("movflags", "frag_keyframe+empty_moov"),)
KINDS = {
    "wav": Kind("WAV", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "wav of 8 bits": Kind("WAV", "PCM_U8", error=2**-6, sample_type="uint8", other_rates=ANY),
    "wav of 24 bits": Kind("WAV", "PCM_24", error=2**-23, sample_type="int24", other_rates=ANY),
    "wav of 32 bits": Kind("WAV", "PCM_32", error=2**-23, sample_type="int32", other_rates=ANY),
    "wav of floats": Kind("WAV", "FLOAT", error=0, sample_type="float32", other_rates=ANY),
    "wav of doubles": Kind("WAV", "DOUBLE", error=0, sample_type="float64", other_rates=ANY),
    "wav of A-law": Kind("WAV", "ALAW", error=0.01, other_rates=ANY),
    "wav extensible": Kind("WAVEX", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "rf64": Kind("RF64", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "w64": Kind("W64", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "aiff": Kind("AIFF", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "au": Kind("AU", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "caf": Kind("CAF", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "nist": Kind("NIST", "PCM_16", error=STEP, sample_type="int16"),
    "flac": Kind("FLAC", "PCM_16", error=STEP, sample_type="int16", other_rates=ANY),
    "flac of 24 bits": Kind("FLAC", "PCM_24", error=2**-23, sample_type="int24", other_rates=ANY),
    "flac in ogg": Kind("ogg", "flac", error=STEP, sample_type="int16", other_rates=ANY),
    "ogg": Kind("OGG", "VORBIS", other_rates=COMMON),
    "opus": Kind("OGG", "OPUS", 48000),
    "mp3": Kind("MP3", "MPEG_LAYER_III", shortest=600, other_rates=COMMON),
    "mp3 of lame": Kind("mp3", "libmp3lame", is_exact=False, shortest=2000),  # FFmpeg may count 46 samples too many
    # FFmpeg writes the length of these in thousandths of a second, and reads no packet that begins after that.
    "m4a": Kind("ipod", "aac", rounding=23, shortest=100, other_rates=COMMON),
    "alac": Kind("ipod", "alac", error=2**-23, rounding=23, sample_type="int24", shortest=100, other_rates=COMMON),
    "mp4 of opus": Kind("mp4", "libopus", 48000, rounding=24, shortest=1000),
    "fragmented mp4": Kind("mp4", "aac", is_exact=False, delay=1024, options=FRAGMENTS, other_rates=COMMON),
    "aac": Kind("adts", "aac", is_exact=False, delay=1024, shortest=3000, other_rates=COMMON),
    "webm": Kind("webm", "libopus", 48000, shortest=1000),
    "webm of a browser": Kind("webm", "libopus", 48000, shortest=1000, options=(("live", "1"),)),
    "mkv": Kind("matroska", "aac", is_exact=False, other_rates=COMMON),
    "wma": Kind("asf", "wmav2", is_exact=False, error=0.04, delay=-2048, shortest=9000),
    "amr": Kind("amr", "libopencore_amrnb", 8000, is_exact=False, error=None, channels=(1,), shortest=2000),
    "3gp": Kind("3gp", "libopencore_amrnb", 8000, is_exact=False, error=None, channels=(1,), shortest=2000),
    "flv": Kind("flv", "aac", is_exact=False, delay=1024),
    "avi": Kind("avi", "libmp3lame", is_exact=False, delay=1105, shortest=3000),
    "mpegts": Kind("mpegts", "aac", is_exact=False, delay=1024, shortest=3000, other_rates=COMMON),
    "mpeg": Kind("mpeg", "mp2", 48000, is_exact=False, delay=481, shortest=3000),
}


def encode(waveform: np.ndarray, kind: str, rate: int | None = None) -> bytes:
    """A file of a kind that holds a waveform (channel, sample), by default at the kind's first rate."""
    form, file = KINDS[kind], io.BytesIO()
    rate = rate or form.rate
    if form.is_written_by_libsndfile:
        sound = soundfile.SoundFile(file, "w", rate, len(waveform), form.coding, format=form.container)
        with sound:
            for first in range(0, waveform.shape[1], 1 << 15):  # libsndfile dies of long blocks of Vorbis
                sound.write(waveform[:, first : first + (1 << 15)].T)
        return file.getvalue()
    with av.open(file, "w", format=form.container, options=dict(form.options)) as container:
        stream = add_track(container, form.coding, rate, len(waveform))
        fill_track(container, stream, waveform)
    return file.getvalue()


def caf(samples: np.ndarray, order: tuple[int, ...], rate: int = 44100) -> bytes:
    """A CAF of int16 samples (channel, sample) that says which channel is which: 1 left, 2 right, 3 centre, ..."""
    count, number = len(samples), partial(int.to_bytes, length=4, byteorder="big")
    description = struct.pack(">d4s5I", rate, b"lpcm", 2, 2 * count, 1, count, 16)  # 2: little-endian integers
    layout = bytes(8) + number(count) + b"".join(number(label) + bytes(16) for label in order)
    audio = bytes(4) + samples.T.astype("<i2").tobytes()
    chunks = {b"desc": description, b"chan": layout, b"data": audio}
    return b"caff\0\1\0\0" + b"".join(name + struct.pack(">q", len(body)) + body for name, body in chunks.items())


def add_track(container: av.container.OutputContainer, coding: str, rate: int, channels: int = 1) -> av.AudioStream:
    stream = container.add_stream(coding, rate=rate, layout=LAYOUTS[channels])
    if coding in ("aac", "wmav2"):
        stream.bit_rate = 128_000
    return stream


def fill_track(
    container: av.container.OutputContainer, stream: av.AudioStream, waveform: np.ndarray, start: int = 0
) -> None:
    layout = LAYOUTS[len(waveform)]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = stream.rate, start
    for part in (frame, None):
        container.mux(stream.encode(part))


def video(
    tracks: list[np.ndarray], rate: int = 48000, container: str = "mp4", sound: str = "aac", delay: int = 0
) -> bytes:
    """A second of a grey picture with sound tracks, each (channel, sample) and begun so many samples later."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        picture = output.add_stream("mpeg4" if container == "mp4" else "libvpx", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        streams = [add_track(output, sound, rate, len(track)) for track in tracks]
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 9 * number, np.uint8), format="yuv420p")
            frame.pts, frame.time_base = number, fractions.Fraction(1, 25)
            output.mux(picture.encode(frame))
        output.mux(picture.encode(None))
        for stream, track in zip(streams, tracks, strict=True):
            fill_track(output, stream, track, delay)
    return file.getvalue()
