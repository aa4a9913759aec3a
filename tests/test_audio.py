"""Any recording in: every kind of source is the same audio; resampling, in blocks and at once."""

import http.server
import io
import os
import socket
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

from processing_dacse.audio_dacse import load_audio, resample, resample_blocks, stream_audio
from tests.sounds import encode, speech

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
    "result": lambda wav: {"audio": STEREO, "sampling_rate": RATE},  # of this pipeline and of others
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


BAD_FILES = {
    "text named .wav": (b"hello world\n" * 100, "cannot be read as audio .it is of no format that is read"),
    "empty": (b"", "cannot be read as audio .it is empty"),
    "no samples": (
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\0\0\0\0",
        "has no samples",
    ),
    "zeros": (bytes(5000), "cannot be read as audio"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_with_their_name(kind, tmp_path):
    content, message = BAD_FILES[kind]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.wav {message}") as caught:
        load_audio(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_a_file_are_refused_where_they_stand(value, tmp_path):
    waveform = noise(2, 3000)
    waveform[1, 1234] = value
    sf.write(tmp_path / "bad.wav", waveform.T, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="bad.wav has NaN or infinity, first at sample 1234"):
        list(stream_audio(tmp_path / "bad.wav", block_seconds=0.1).blocks)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"text": "hello"}, r"audio given as a dict with the keys \['text'\]; give array and sampling_rate"),
        (io.StringIO("text"), "reads text; open audio files with mode 'rb'"),
        (3.0, "audio of type float; give a path"),
    ],
)
def test_what_is_not_audio_is_refused_with_the_remedy(source, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source, RATE)


def test_paths_and_addresses_that_cannot_be_opened_are_named(tmp_path, address):
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder; give a list of its files, such as sorted"):
        load_audio(tmp_path)
    with pytest.raises(ValueError, match="s3://a/b.wav is no address that is read: give http.s., or a file"):
        load_audio("s3://a/b.wav")
    with pytest.raises(OSError, match="cannot download http.*missing.wav .*404.*; check the address"):
        load_audio(address.replace("audio", "missing"))


def test_an_address_may_have_any_letters(wav, address):
    np.testing.assert_array_equal(load_audio(address.replace("audio.wav", wav.name))[0], STEREO)


def test_a_download_that_breaks_off_is_an_error_and_no_shorter_recording():
    content = encode(speech(20_000, 44100), "mp3")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
                connection.sendall(head.encode() + content[:-1000])

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(OSError, match="cannot download http.* .it broke off 1000 bytes before its end.; check"):
            load_audio(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp3")


def test_a_file_that_was_just_written_is_read_from_its_beginning_and_any_other_from_where_it_stands(wav, recwarn):
    written = io.BytesIO()
    sf.write(written, STEREO.T, RATE, format="WAV")
    assert written.tell() > 0
    np.testing.assert_array_equal(load_audio(written)[0], STEREO)
    with open(wav, "rb") as file:
        after_a_header = io.BytesIO(b"our header" + file.read())
    after_a_header.seek(10)
    np.testing.assert_array_equal(load_audio(after_a_header)[0], STEREO)
    assert not recwarn.list  # nothing is left open


def test_a_named_pipe_and_a_descriptor_are_read_to_their_end(wav, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.wav").write_bytes(wav.read_bytes()))
    writer.start()
    np.testing.assert_array_equal(load_audio(tmp_path / "pipe.wav")[0], STEREO)
    writer.join()
    read_end, write_end = os.pipe()  # as `<(command)` names it
    writer = threading.Thread(target=lambda: (os.write(write_end, wav.read_bytes()), os.close(write_end)))
    writer.start()
    np.testing.assert_array_equal(load_audio(f"/dev/fd/{read_end}")[0], STEREO)
    writer.join()
    os.close(read_end)
    with pytest.raises(ValueError, match="/dev/null cannot be read as audio .it is empty"):
        load_audio("/dev/null")


def test_a_name_says_nothing_about_what_is_inside(tmp_path):
    recorded = speech(2000, 44100)
    for name, kind in (("a.raw", "wav"), ("b.wav", "mp3"), ("c.mp3", "flac"), ("d", "m4a"), ("e.txt", "webm")):
        (tmp_path / name).write_bytes(encode(recorded, kind))
        assert load_audio(tmp_path / name)[0].shape == recorded.shape


def test_files_are_closed_with_the_last_block_or_with_the_error(wav, tmp_path):
    def is_open() -> bool:
        return str(wav) in {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}

    stream = stream_audio(wav)
    assert is_open()
    list(stream.blocks)
    assert not is_open()
    wav.write_bytes(b"no audio")
    with pytest.raises(ValueError):
        load_audio(wav)
    assert not is_open()


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
    assert (stream.sampling_rate, stream.channels, stream.estimated_samples) == (RATE, 2, 500)
    blocks = list(stream.blocks)
    assert all(block.flags["C_CONTIGUOUS"] for block in blocks)
    assert [block.shape for block in blocks] == [(2, 80)] * 6 + [(2, 20)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), STEREO)


def test_an_array_streams_as_a_file_does():
    stream = stream_audio({"array": STEREO, "sampling_rate": RATE}, block_seconds=0.01)
    assert (stream.sampling_rate, stream.channels, stream.estimated_samples) == (RATE, 2, 500)
    blocks = list(stream.blocks)
    assert [block.shape for block in blocks] == [(2, 80)] * 6 + [(2, 20)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), STEREO)
