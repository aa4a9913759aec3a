"""What the formats of results can hold: channels, rates, sample types, tags. Knows no file."""

from collections.abc import Callable
from dataclasses import dataclass

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
LARGEST_WAV = 2**32 - 2**16  # bytes; the header counts in 32 bits
SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
# FFmpeg's names of tags, with libsndfile's and those of ID3 frames.
TAGS = {
    "title": ("title", b"TIT2"),
    "artist": ("artist", b"TPE1"),
    "album": ("album", b"TALB"),
    "date": ("date", b"TDRC"),
    "genre": ("genre", b"TCON"),
    "track": ("tracknumber", b"TRCK"),
    "copyright": ("copyright", b"TCOP"),
    "comment": ("comment", b"COMM"),
}


@dataclass(frozen=True)
class Format:
    """What libsndfile writes in one format, and what it dies of elsewhere.

    Attributes:
        channels: At most.
        rates: In Hz, for people.
        holds_rate: Whether it holds a rate in Hz.
        sample_types: What a sample type becomes; any other becomes `otherwise`.
        bits: Of the largest of those types; None where samples are not kept as they are.
    """

    channels: int
    rates: str
    holds_rate: Callable[[int], bool]
    sample_types: dict[str, str]
    otherwise: str
    bits: int | None = None


INTEGERS = {"int8": "PCM_U8", "uint8": "PCM_U8", "int16": "PCM_16", "int24": "PCM_24"}
FORMATS = {
    "wav": Format(
        1024,
        "any",
        lambda rate: True,
        INTEGERS | {"int32": "PCM_32", "int64": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"},
        "PCM_16",
    ),
    "flac": Format(
        8,
        "up to 65535, and multiples of 10 up to 655350",
        lambda rate: rate <= 65535 or (rate <= 655350 and rate % 10 == 0),
        INTEGERS
        | {"int8": "PCM_S8", "uint8": "PCM_S8"}
        | dict.fromkeys(("int32", "int64", "float32", "float64"), "PCM_24"),
        "PCM_16",
        bits=24,
    ),
    "ogg": Format(255, "up to 200000", lambda rate: rate <= 200_000, {}, "VORBIS"),
    "mp3": Format(2, ", ".join(map(str, MP3_RATES)), lambda rate: rate in MP3_RATES, {}, "MPEG_LAYER_III"),
}


@dataclass(frozen=True)
class Encoding:
    """libsndfile's names of a format and a sample type, and what is lost by them."""

    container: str
    subtype: str
    loss: str | None = None


def choose_encoding(
    audio_format: str, sample_type: str | None, sampling_rate: int, channels: int, seconds: float
) -> Encoding:
    """How a result is written: in the sample type of its input where the format has that.

    A wav that may come beyond the 4 GB its header can count becomes RF64, its extension for that.

    Args:
        audio_format: One of `FORMATS`.
        sample_type: Of the input ("int16", "float32", ...); None where it has none.
        sampling_rate: In Hz.
        channels: How many.
        seconds: How long it may be, at most.

    Raises:
        ValueError: The format cannot hold it.

    >>> choose_encoding("wav", "int24", 44100, 2, 60)
    Encoding(container='WAV', subtype='PCM_24', loss=None)
    >>> choose_encoding("flac", "float32", 44100, 2, 60).loss
    'flac holds 24 bits at most: float32 samples are rounded to those'
    >>> choose_encoding("wav", None, 44100, 1, 1e5).container
    'RF64'
    """
    form = FORMATS[audio_format]
    if channels > form.channels:
        raise ValueError(f"{audio_format} holds {form.channels} channels at most, not {channels}; write wav")
    if not form.holds_rate(sampling_rate):
        raise ValueError(
            f"{audio_format} holds no rate of {sampling_rate} Hz, only {form.rates}; write wav, or drop --keep-rate"
        )
    subtype = form.sample_types.get(sample_type, form.otherwise)
    container = audio_format.upper()
    if container == "WAV" and seconds * sampling_rate * channels * SAMPLE_BYTES[subtype] > LARGEST_WAV:
        container = "RF64"
    loss = None
    if form.bits == 24 and subtype == "PCM_24" and sample_type != "int24":
        loss = f"{audio_format} holds {form.bits} bits at most: {sample_type} samples are rounded to those"
    return Encoding(container, subtype, loss)


def id3_tag(tags: dict[str, str]) -> bytes:
    """An ID3v2.4 tag with text in UTF-8 (libsndfile's is in Latin-1), nothing if there are no tags that it has.

    Source: id3.org, "ID3 tag version 2.4.0", sections 3.1, 4.2 and 4.10.

    >>> id3_tag({"title": "é"}), id3_tag({"encoder": "x"})
    (b'ID3\\x04\\x00\\x00\\x00\\x00\\x00\\rTIT2\\x00\\x00\\x00\\x03\\x00\\x00\\x03\\xc3\\xa9', b'')
    """
    frames = b""
    for name, text in tags.items():
        if name in TAGS:
            frame = TAGS[name][1]
            content = b"\3" + (b"und\0" if frame == b"COMM" else b"") + text.encode()  # 3 is UTF-8
            frames += frame + _seven_bits(len(content)) + b"\0\0" + content
    return b"ID3\4\0\0" + _seven_bits(len(frames)) + frames if frames else b""


def _seven_bits(number: int) -> bytes:
    """28 bits in four bytes."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))
