import http.server
import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from datasets import Audio, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from processing_dacse.audio_dacse import load_audio, resample, resample_blocks, stream_audio

RATE = 8000
STEREO = (np.random.default_rng(0).integers(-(2**15), 2**15, (2, 500)) / 2**15).astype(np.float32)
RATES = st.sampled_from([3500, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000])


@pytest.fixture
def wav(tmp_path) -> Path:
    path = tmp_path / "ä name with spaces 音.wav"
    sf.write(path, STEREO.T, RATE)
    return path


@pytest.fixture
def address(wav):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=wav.parent)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (wav.parent / "audio.wav").write_bytes(wav.read_bytes())
    yield f"http://127.0.0.1:{server.server_port}/audio.wav"
    server.shutdown()
    server.server_close()


def noise(channels: int, samples: int) -> np.ndarray:
    return np.random.default_rng(samples).standard_normal((channels, samples)).astype(np.float32) / 4


SOURCES = {
    "path": lambda wav: wav,
    "string": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda wav: bytearray(wav.read_bytes()),
    "file object": lambda wav: io.BytesIO(wav.read_bytes()),
    "struct of bytes": lambda wav: {"bytes": wav.read_bytes(), "path": "somewhere else.wav"},
    "struct of a path": lambda wav: {"bytes": None, "path": str(wav)},
    "array": lambda wav: {"array": STEREO, "sampling_rate": RATE, "path": None},
    "raw": lambda wav: {"raw": STEREO, "sampling_rate": RATE},
    "tensor": lambda wav: {"array": torch.from_numpy(STEREO), "sampling_rate": torch.tensor(RATE)},
    "decoder": lambda wav: SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(STEREO), sample_rate=RATE)
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_is_the_same_audio(kind, wav):
    source = SOURCES[kind](wav)
    before = dict(source) if isinstance(source, dict) else None
    waveform, rate = load_audio(source)
    assert rate == RATE and type(rate) is int
    assert waveform.dtype == np.float32 and waveform.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(waveform, STEREO)
    if before is not None:
        assert source.keys() == before.keys() and all(source[key] is before[key] for key in source)


def test_an_open_file_a_pipe_and_an_address_are_read(wav, address):
    with open(wav, "rb") as file:
        np.testing.assert_array_equal(load_audio(file)[0], STEREO)
    read_end, write_end = os.pipe()
    threading.Thread(target=lambda: (os.write(write_end, wav.read_bytes()), os.close(write_end))).start()
    with open(read_end, "rb") as pipe:
        np.testing.assert_array_equal(load_audio(pipe)[0], STEREO)
    np.testing.assert_array_equal(load_audio(address)[0], STEREO)


def test_a_row_of_a_dataset_is_read(wav):
    rows = Dataset.from_list([{"audio": {"bytes": wav.read_bytes(), "path": None}}, {"audio": {"path": str(wav)}}])
    for row in rows.cast_column("audio", Audio(decode=False)):
        np.testing.assert_array_equal(load_audio(row["audio"])[0], STEREO)


@given(arrays(st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32]), 5))
def test_integers_are_divided_by_their_full_scale(array):
    info = np.iinfo(array.dtype)
    middle, half = (info.max + 1 + info.min) // 2, (info.max + 1 - info.min) // 2
    naive = [(int(value) - middle) / half for value in array]
    # float32 holds 24 bits of the 32 or 64
    np.testing.assert_allclose(load_audio(array, RATE)[0][0], naive, rtol=0, atol=2**-23)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16])
def test_tensors_of_every_type_are_read(dtype):
    tensor = torch.tensor([0.0, 0.5, -0.25]) if dtype.is_floating_point else torch.tensor([0, 16384, -8192])
    waveform, _ = load_audio(tensor.to(dtype).requires_grad_(dtype.is_floating_point), RATE)
    np.testing.assert_array_equal(waveform, np.array([[0, 0.5, -0.25]], np.float32))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_bit_depth_is_read(subtype, tmp_path):
    sf.write(tmp_path / "a.wav", STEREO.T, RATE, subtype=subtype)
    atol = 2**-7 if subtype == "PCM_U8" else 2**-15  # one step of the file
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav")[0], STEREO, rtol=0, atol=atol)


def test_the_shorter_axis_of_an_array_is_its_channels():
    for array in (STEREO, STEREO.T):
        np.testing.assert_array_equal(load_audio(array, RATE)[0], STEREO)
    np.testing.assert_array_equal(load_audio(STEREO[:, :2], RATE)[0], STEREO[:, :2])
    np.testing.assert_array_equal(load_audio(STEREO[0], RATE)[0], STEREO[:1])


def intact(extension: str) -> bytes:
    content = io.BytesIO()
    sf.write(content, noise(1, 20_000).T, RATE, format=extension.upper())
    return content.getvalue()


def with_size(wav: bytes, size: int) -> bytes:
    """A wav whose data chunk claims another number of bytes."""
    position = wav.index(b"data") + 4
    return wav[:position] + size.to_bytes(4, "little") + wav[position + 4 :]


FORMATS = ["wav", "aiff", "au", "caf", "w64", "rf64", "flac", "mp3", "ogg"]


@pytest.mark.parametrize("extension", FORMATS)
def test_whole_files_of_every_format_are_read_to_the_end(extension):
    waveform, rate = load_audio(intact(extension))
    assert (waveform.shape, rate) == ((1, 20_000), RATE)


@pytest.mark.parametrize("extension", [extension for extension in FORMATS if extension != "ogg"])
def test_a_truncated_file_is_refused(extension, tmp_path):
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(intact(extension)[:-3000])
    with pytest.raises(ValueError, match=f"cut.{extension} (promises|is damaged|cannot be read)"):
        load_audio(path)
    with pytest.raises(ValueError, match=f"cut.{extension} (promises|is damaged|cannot be read)"):
        list(stream_audio(path).blocks)


BAD_FILES = {
    "text named .wav": (b"hello world\n" * 100, "cannot be read as audio"),
    "text named .raw": (b"hello world\n" * 100, "cannot be read as audio"),
    "empty": (b"", "cannot be read as audio"),
    "header of 4 GB": (with_size(intact("wav"), 2**32 - 1), "promises 4294967295 bytes of audio and has 40000"),
    "header of 2 GB": (with_size(intact("wav"), 2**31 - 16), "promises 2147483632 bytes of audio and has 40000"),
    "no samples": (with_size(intact("wav"), 0)[:44], "has no samples"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_with_their_name(kind, tmp_path):
    content, message = BAD_FILES[kind]
    path = tmp_path / ("bad.raw" if kind.endswith(".raw") else "bad.wav")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.* {message}") as caught:
        load_audio(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_where_they_stand(value, tmp_path):
    waveform = noise(2, 3000)
    waveform[1, 1234] = value
    with pytest.raises(ValueError, match="the audio array has NaN or infinity, first at sample 1234"):
        load_audio(waveform, RATE)
    sf.write(tmp_path / "bad.wav", waveform.T, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="bad.wav has NaN or infinity, first at sample 1234"):
        list(stream_audio(tmp_path / "bad.wav", block_seconds=0.1).blocks)


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.zeros(5), None, "an array does not know its sampling rate; pass sampling_rate"),
        ({"array": np.zeros(5)}, None, "an array does not know its sampling rate; pass sampling_rate"),
        (np.zeros(5), 0, "sampling rate 0; give a whole number of Hz above 0"),
        (np.zeros(5), 44100.5, "sampling rate 44100.5; give a whole number of Hz above 0"),
        (np.zeros(0), RATE, r"audio array of shape \(0,\) has no samples"),
        (np.zeros((2, 0)), RATE, r"audio array of shape \(2, 0\) has no samples"),
        (np.zeros((1, 2, 3)), RATE, r"audio array of shape \(1, 2, 3\); give \(sample,\)"),
        (np.zeros(5, complex), RATE, "audio array of type complex128; give integers or floats"),
        (np.zeros(5, bool), RATE, "audio array of type bool; give integers or floats"),
        (np.full(5, 1e300), RATE, "the audio array has NaN or infinity"),
        ({"text": "hello"}, None, r"audio given as a dict with the keys \['text'\]; give array and sampling_rate"),
        (io.StringIO("text"), None, "reads text; open audio files with mode 'rb'"),
        (3.0, None, "audio of type float; give a path"),
    ],
)
def test_what_is_not_audio_is_refused_with_the_remedy(source, rate, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source, rate)


def test_paths_and_addresses_that_cannot_be_opened_are_named(tmp_path, address):
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        load_audio(tmp_path)
    with pytest.raises(OSError, match="cannot download http.*missing.wav .*404.*; check the address"):
        load_audio(address.replace("audio", "missing"))


@given(st.integers(1, 3), st.integers(1, 3000), RATES, RATES)
@settings(deadline=None, max_examples=60)
def test_resampling_gives_exactly_the_rounded_length(channels, samples, rate_in, rate_out):
    resampled = resample(noise(channels, samples), rate_in, rate_out)
    assert resampled.shape == (channels, round(samples * rate_out / rate_in))
    assert resampled.dtype == np.float32 and np.isfinite(resampled).all()


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=5), RATES, RATES)
@settings(deadline=None, max_examples=40)
def test_resampling_in_blocks_is_equal_to_resampling_at_once(lengths, rate_in, rate_out):
    waveform = noise(2, sum(lengths))
    blocks = np.split(waveform, np.cumsum(lengths)[:-1], axis=1)
    streamed = np.concatenate(list(resample_blocks(blocks, rate_in, rate_out)), axis=1)
    # the same filter over the same samples in other batches of its transform
    np.testing.assert_allclose(streamed, resample(waveform, rate_in, rate_out), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rate_in", "rate_out"), [(8000, 44100), (48000, 44100), (44100, 48000), (44100, 8000)])
def test_a_resampled_tone_keeps_its_time_pitch_and_level(rate_in, rate_out):
    def tone(rate: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2)[None] / rate).astype(np.float32)

    middle = slice(rate_out // 10, -rate_out // 10)  # the tone begins and ends abruptly
    resampled = resample(tone(rate_in), rate_in, rate_out)
    np.testing.assert_allclose(resampled[:, middle], tone(rate_out)[:, middle], rtol=0, atol=1e-4)


def test_a_stream_is_the_file_in_blocks(wav):
    stream = stream_audio(wav, block_seconds=0.01)
    assert (stream.sampling_rate, stream.channels, stream.num_samples) == (RATE, 2, 500)
    blocks = list(stream.blocks)
    assert [block.shape for block in blocks] == [(2, 80)] * 6 + [(2, 20)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), STEREO)
