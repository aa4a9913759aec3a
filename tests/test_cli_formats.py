"""What the formats of results hold: a table of rates and channels, sample types, tags."""

import io

import av
import numpy as np
import pytest
import soundfile

from command_dacse.formats import FORMATS, MP3_RATES, choose_encoding
from command_dacse.outputs import open_sound

RATES = [
    1000,
    3500,
    7350,
    8000,
    11025,
    12000,
    16000,
    22050,
    24000,
    32000,
    37800,
    44100,
    48000,
    64000,
    65535,
    65536,
    88200,
]
RATES += [96000, 100_001, 176_400, 192_000, 192_001, 200_000, 200_001, 352_800, 384_000, 655_350, 655_360, 1_000_000]
CHANNELS = [1, 2, 3, 6, 8, 9, 32, 255, 256, 1024, 1025]
HELD = {
    "wav": set(RATES),
    "flac": {rate for rate in RATES if rate <= 65535 or rate in (88200, 96000, 176_400, 192_000, 200_000)}
    | {352_800, 384_000, 655_350},
    "ogg": {rate for rate in RATES if rate <= 200_000},
    "mp3": set(MP3_RATES),
}
MOST_CHANNELS = {"wav": 1024, "flac": 8, "ogg": 255, "mp3": 2}


def written(audio_format: str, waveform: np.ndarray, rate: int, sample_type=None, tags=None) -> bytes:
    encoding = choose_encoding(audio_format, sample_type, rate, len(waveform), 1.0)
    file = io.BytesIO()
    with open_sound(file, "out", encoding, rate, len(waveform), tags or {}) as write:
        write(waveform)
    return file.getvalue()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("audio_format", FORMATS)
def test_a_rate_is_held_or_refused_with_the_value_and_the_remedy(audio_format, rate):
    waveform = np.zeros((1, 3000), np.float32)
    if rate in HELD[audio_format]:
        info = soundfile.info(io.BytesIO(written(audio_format, waveform, rate)))
        assert (info.samplerate, info.channels, info.frames) == (rate, 1, 3000)
    else:
        with pytest.raises(
            ValueError, match=f"{audio_format} holds no rate of {rate} Hz, only .*; write wav, or drop"
        ):
            written(audio_format, waveform, rate)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("audio_format", FORMATS)
def test_channels_are_held_or_refused_with_the_value_and_the_remedy(audio_format, channels):
    waveform = np.zeros((channels, 100), np.float32)
    if channels <= MOST_CHANNELS[audio_format]:
        info = soundfile.info(io.BytesIO(written(audio_format, waveform, 44100)))
        assert (info.channels, info.frames) == (channels, 100)
    else:
        most = MOST_CHANNELS[audio_format]
        with pytest.raises(ValueError, match=f"{audio_format} holds {most} channels at most, not {channels}; write"):
            written(audio_format, waveform, 44100)


KEPT = {
    ("wav", "uint8"): "PCM_U8",
    ("wav", "int16"): "PCM_16",
    ("wav", "int24"): "PCM_24",
    ("wav", "int32"): "PCM_32",
    ("wav", "float32"): "FLOAT",
    ("wav", "float64"): "DOUBLE",
    ("wav", None): "PCM_16",
    ("flac", "uint8"): "PCM_S8",
    ("flac", "int16"): "PCM_16",
    ("flac", "int24"): "PCM_24",
    ("flac", None): "PCM_16",
    ("ogg", "int24"): "VORBIS",
    ("mp3", "float32"): "MPEG_LAYER_III",
}
ROUNDED = ["int32", "float32", "float64"]


@pytest.mark.parametrize(("audio_format", "sample_type"), KEPT)
def test_the_sample_type_of_the_input_is_kept_where_the_format_has_it(audio_format, sample_type):
    encoding = choose_encoding(audio_format, sample_type, 44100, 1, 1.0)
    assert (encoding.subtype, encoding.loss) == (KEPT[audio_format, sample_type], None)
    info = soundfile.info(io.BytesIO(written(audio_format, np.zeros((1, 100), np.float32), 44100, sample_type)))
    assert info.subtype == encoding.subtype


@pytest.mark.parametrize("sample_type", ROUNDED)
def test_what_flac_cannot_hold_is_rounded_to_24_bits_and_said(sample_type):
    encoding = choose_encoding("flac", sample_type, 44100, 1, 1.0)
    assert encoding.subtype == "PCM_24"
    assert encoding.loss == f"flac holds 24 bits at most: {sample_type} samples are rounded to those"


def test_a_wav_beyond_four_gigabytes_becomes_rf64():
    assert choose_encoding("wav", "int16", 44100, 2, 6 * 3600).container == "WAV"
    assert choose_encoding("wav", "int16", 44100, 2, 7 * 3600).container == "RF64"


def test_a_long_block_of_vorbis_is_written_in_parts_that_libsndfile_survives():
    waveform = np.random.default_rng(0).standard_normal((1, 3_000_000)).astype(np.float32) / 10
    assert soundfile.info(io.BytesIO(written("ogg", waveform, 44100))).frames == 3_000_000


@pytest.mark.parametrize("audio_format", FORMATS)
def test_tags_are_kept_whatever_their_letters(audio_format):
    tags = {"title": "Täg 音", "artist": "Somebody", "track": "3/4", "comment": "Größe", "encoder": "none of ours"}
    content = written(audio_format, np.zeros((1, 5000), np.float32), 44100, tags=tags)
    with av.open(io.BytesIO(content)) as container:
        read = {key.lower(): value for key, value in (container.metadata | container.streams[0].metadata).items()}
    assert {name: read[name] for name in tags if name != "encoder"} == {
        name: text for name, text in tags.items() if name != "encoder"
    }
    info = soundfile.info(io.BytesIO(content))
    assert info.frames == 5000
