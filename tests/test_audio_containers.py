"""Where recordings begin and end in a file, against what its headers claim."""

import io
import struct

import numpy as np
import pytest
import soundfile

from processing_dacse.audio_arrays_dacse import AudioWarning
from processing_dacse.audio_containers_dacse import find_parts
from processing_dacse.audio_dacse import load_audio
from processing_dacse.audio_parts_dacse import PartFile
from tests.sounds import KINDS, STEP, encode, speech

RECORDED = speech(20_000, 44100)
CHUNKED = ["wav", "wav of 24 bits", "wav of floats", "wav extensible", "rf64", "w64", "aiff", "au", "caf"]
# Where the size of the audio stands, before the end of its header or from the start of the file, and its bytes.
PLACE_OF_SIZE = {
    "rf64": (28, 8),
    "w64": (-8, 8),
    "au": (8, 4),
    "caf": (-8, 8),
}


def with_size(content: bytes, kind: str, size: int) -> bytes:
    """A file whose audio claims to be as many bytes long."""
    place, width = PLACE_OF_SIZE.get(kind, (-4, 4))
    order = "big" if kind in ("aiff", "au", "caf") else "little"
    if place < 0:
        name = {"aiff": b"SSND"}.get(kind, b"data")
        place = content.index(name) + (24 if kind == "w64" else 4 + width) + place
    return content[:place] + (size % 2 ** (8 * width)).to_bytes(width, order) + content[place + width :]


def audio_bytes(kind: str) -> int:
    extra = {"aiff": 8, "caf": 4, "w64": 24}.get(kind, 0)  # what the size counts besides
    return RECORDED.shape[1] * {"wav of 24 bits": 3, "wav of floats": 4}.get(kind, 2) + extra


def read(content: bytes) -> np.ndarray:
    return load_audio(content)[0]


def check_all_is_read(content: bytes, kind: str) -> None:
    waveform = read(content)
    assert waveform.shape == RECORDED.shape
    np.testing.assert_allclose(waveform, RECORDED, rtol=0, atol=STEP)


@pytest.mark.parametrize("kind", CHUNKED)
def test_the_size_that_is_written_here_is_the_one_that_counts(kind):
    content = encode(RECORDED, kind)
    assert with_size(content, kind, audio_bytes(kind)) == content


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0x7FFF0000, 0xFFFFFFFF - 36, 0])
@pytest.mark.parametrize("kind", CHUNKED)
def test_a_size_that_was_never_filled_in_is_passed_over_in_silence(kind, size, recwarn):
    if KINDS[kind].container in ("W64", "RF64", "CAF"):
        size = size and 2**63 - 1 if size < 0xFFFFFFFF else 2**64 - 1
    check_all_is_read(with_size(encode(RECORDED, kind), kind, size), kind)
    assert not recwarn.list


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_size_that_claims_too_much_is_said(kind):
    content = with_size(encode(RECORDED, kind), kind, audio_bytes(kind) + 1000)
    with pytest.warns(AudioWarning, match=r"promises \d+ bytes and has \d+: it was cut; what is there is read"):
        check_all_is_read(content, kind)


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_size_that_claims_too_little_is_said_and_what_follows_read(kind):
    content = with_size(encode(RECORDED, kind), kind, audio_bytes(kind) // 3 // 12 * 12)
    with pytest.warns(AudioWarning, match=r"has \d+ bytes of audio more than it promises, which are read too"):
        check_all_is_read(content, kind)


@pytest.mark.parametrize("size", [None, 0xFFFFFFFF, 0x7FFFF000, 0])
def test_recordings_that_were_written_to_a_pipe_and_joined_are_told_apart(size):
    content = encode(RECORDED, "wav")
    if size is not None:
        content = with_size(content, "wav", size)
    np.testing.assert_array_equal(read(content * 3), np.tile(read(content), 3))


def wav_with(after: bytes, size: int | None = None) -> bytes:
    """A wav with other things after its audio, whose outer size is right."""
    content = encode(RECORDED, "wav") + after
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    return content if size is None else with_size(content, "wav", size)


@pytest.mark.parametrize(
    "after",
    [
        b"LIST\x1a\0\0\0INFOINAM\x0e\0\0\0some good name",
        b"LIST\xff\0\0\0INFOINAM",  # cut
        b"id3 \x0a\0\0\0ID3\3\0\0\0\0\0\0",
        b"iXML\x04\0\0\0abcd" + b"LIST\4\0\0\0INFO",
        b"\0",
        b"\0" * 500,
        b"TAG" + b"a good name".ljust(125, b"\0"),
        b"APETAGEX" + struct.pack("<IIII8x", 2000, 43, 1, 0xA0000000) + b"\x04\0\0\0\0\0\0\0Title\0name",
    ],
)
def test_what_follows_the_audio_is_no_sound(after, recwarn):
    check_all_is_read(wav_with(after), "wav")
    assert not recwarn.list


@pytest.mark.parametrize("kind", CHUNKED)
@pytest.mark.parametrize("text", [b"made by me\n", "Größe\r\n".encode() * 50, b"in a hurry" + bytes(100)])
def test_text_that_was_written_after_the_audio_is_no_sound_either(kind, text, recwarn):
    check_all_is_read(encode(RECORDED, kind) + text, kind)
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["mp3", "mp3 of lame", "flac", "ogg", "opus", "m4a", "wma", "amr"])
def test_neither_are_zeros_that_a_file_was_filled_up_with(kind, recwarn):
    content = encode(speech(2 * KINDS[kind].rate, KINDS[kind].rate), kind)
    np.testing.assert_array_equal(read(content + bytes(1 << 17)), read(content))
    assert not recwarn.list


def test_frames_of_a_wide_band_amr_that_end_in_zeros_are_not_taken_for_filling(recwarn):
    frames = b"".join(
        bytes([4 | kind << 3, 1, *bytes(size - 2)]) for kind, size in ((0, 18), (2, 33), (8, 61), (1, 24))
    )
    content = b"#!AMR-WB\n" + frames
    assert find_parts(io.BytesIO(content + bytes(5000)))[0].stop == len(content)
    waveform, rate = load_audio(content + bytes(5000))
    assert (waveform.shape, rate) == ((1, 4 * 320), 16000)  # 20 ms each
    assert not recwarn.list


@pytest.mark.slow
def test_more_than_four_gigabytes_are_beyond_the_size_of_a_wav_and_read():
    content = with_size(encode(RECORDED, "wav"), "wav", 0xFFFFFFFF)
    hole = 5 * 2**30

    class Sparse(io.RawIOBase):
        """The wav with 5 GiB of silence after its header."""

        position = 0

        def seek(self, offset, whence=0):
            self.position = offset + {0: 0, 1: self.position, 2: len(content) + hole}[whence]
            return self.position

        def read(self, count=-1):
            start, self.position = self.position, min(self.position + count, len(content) + hole)
            if start >= 44 + hole:
                return content[start - hole : self.position - hole]
            return (content[start : min(44, self.position)] if start < 44 else b"").ljust(self.position - start, b"\0")

    part = find_parts(Sparse())[0]
    assert (part.start, part.stop, part.size, part.fault) == (0, len(content) + hole, (40, b"\xff" * 4), None)


def test_a_part_is_a_file_of_its_own():
    contents = [encode(speech(3000, 44100, seed=seed), "flac") for seed in range(3)]
    parts = find_parts(io.BytesIO(b"".join(contents)))
    files = [PartFile(io.BytesIO(b"".join(contents)), part) for part in parts]
    assert [file.read() for file in files] == contents
    assert [soundfile.info(io.BytesIO(content)).frames for content in contents] == [3000] * 3
    file = files[1]
    assert file.seek(-4, io.SEEK_END) == len(contents[1]) - 4
    assert file.read(100) == contents[1][-4:] and file.read(100) == b"" and file.tell() == len(contents[1])


@pytest.mark.parametrize("kind", ["mp3", "mp3 of lame"])
@pytest.mark.parametrize("tag", [b"", b"ID3\4\0\0\0\0\2\0" + bytes(256), b"ID3\3\0\0\0\1\0\0" + bytes(1 << 14)])
def test_an_mp3_begins_with_its_tag_and_each_part_is_as_long_as_it_says(kind, tag):
    contents = [tag + encode(speech(samples, 44100), kind) for samples in (20_000, 11_111)]
    assert [part.start for part in find_parts(io.BytesIO(b"".join(contents)))] == [0, len(contents[0])]
    assert read(b"".join(contents)).shape == (1, 31_111)


def test_an_mp3_without_a_frame_of_counts_is_read_to_its_end_in_silence(recwarn):
    recorded = speech(4 * 44100, 44100)
    content = encode(recorded, "mp3")
    rates = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    first_frame = 144_000 * rates[content[2] >> 4] // 44100 + (content[2] >> 1 & 1)
    assert b"Xing" in content[:first_frame] or b"Info" in content[:first_frame]
    waveform = read(content[first_frame:])
    assert 0 <= waveform.shape[1] - recorded.shape[1] < 3000  # delay and filling, which nothing tells of any more
    assert not recwarn.list


def test_a_flac_that_does_not_know_its_length_is_read_to_its_end_in_silence(recwarn):
    content = bytearray(encode(RECORDED, "flac"))
    content[21] &= 0xF0  # 36 bits of the samples in all (FLAC, section METADATA_BLOCK_STREAMINFO)
    content[22:26] = bytes(4)
    check_all_is_read(bytes(content), "flac")
    assert not recwarn.list


def test_streams_that_an_ogg_holds_beside_each_other_are_one_recording():
    content = encode(RECORDED, "ogg")
    first_page = content[: content.index(b"OggS", 4)]
    other = bytearray(first_page)
    other[14:18] = b"abcd"  # another stream begins beside it
    assert len(find_parts(io.BytesIO(first_page + other + content[len(first_page) :]))) == 1
    assert len(find_parts(io.BytesIO(content + content))) == 2
