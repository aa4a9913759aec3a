"""Where results go: files, links, pipes and devices; whole or not at all; what cannot be written is one line."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from command_dacse.formats import choose_encoding
from command_dacse.outputs import open_sound, written_when_done

ROOT = Path(__file__).parents[1]


def write(target, content: bytes = b"new", like: str | None = None) -> None:
    with written_when_done(str(target), like) as file:
        file.write(content)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.wav").write_text("old")
    with pytest.raises(KeyboardInterrupt), written_when_done(str(tmp_path / "a.wav")) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.wav").read_text() == "old"
    write(tmp_path / "a.wav")
    write(tmp_path / "new" / "folder" / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "new/folder/b.wav").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.wav", "b.wav", "folder", "new"]


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "real.wav").write_text("old")
    for link, place in (("link.wav", "real.wav"), ("dangling.wav", "there.wav")):
        (tmp_path / link).symlink_to(place)
        write(tmp_path / link)
        assert (tmp_path / link).is_symlink() and (tmp_path / place).read_bytes() == b"new"


def test_a_pipe_and_a_device_are_written_through(tmp_path):
    content, received = b"x" * 200_000, bytearray()  # more than a pipe holds
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)  # is there at once: it waits for no writer

    def read() -> None:
        while len(received) < len(content):
            received.extend(os.read(reader, 1 << 16))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    write(tmp_path / "pipe", content)
    thread.join()
    os.close(reader)
    assert received == content
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["音" * 83 + ".wav", "a" * 255, os.fsdecode(b"\xe9.wav"), "two\nlines.wav", "-x.wav"])
def test_any_name_that_the_disk_takes_can_be_written(name, tmp_path):
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_a_result_has_the_permissions_of_its_input(tmp_path):
    (tmp_path / "in.wav").write_text("x")
    for mode in (0o600, 0o644, 0o664, 0o444):
        (tmp_path / "in.wav").chmod(mode)
        write(tmp_path / f"{mode}.wav", like=str(tmp_path / "in.wav"))
        assert stat.S_IMODE((tmp_path / f"{mode}.wav").stat().st_mode) == mode


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/dev/full", r"cannot write /dev/full \(No space left on device\); make room there, or write somewhere else"),
        ("/proc/out.wav", r"cannot write /proc/out.wav \(.+\); write somewhere else"),
        ("{folder}/file/out.wav", r"cannot write .*/file/out.wav \(Not a directory\); write somewhere else"),
        ("{folder}/" + "a" * 256, r"cannot write .*/aaa.* \(File name too long\); write somewhere else"),
        ("{folder}/pipe", r"cannot write .*/pipe \(No such device or address\); nothing reads from this pipe: start"),
    ],
)
def test_what_cannot_be_written_is_named_with_the_reason_and_the_remedy(target, message, tmp_path):
    (tmp_path / "file").write_text("in the way")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=message):
        write(target.format(folder=tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


FULL_DISK = """
import resource, sys
sys.argv[0] = "dacse"  # which imports no torch
import numpy as np
from command_dacse.formats import choose_encoding
from command_dacse.outputs import open_sound, written_when_done
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
encoding = choose_encoding(sys.argv[2], "int16", 44100, 1, 1.0)
try:
    with written_when_done(sys.argv[1]) as file, open_sound(file, sys.argv[1], encoding, 44100, 1, {}) as write:
        for _ in range(100):
            write(np.random.default_rng(0).standard_normal((1, 44100)).astype("f4") / 10)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("audio_format", ["wav", "flac", "ogg", "mp3"])
def test_a_disk_that_is_full_on_the_way_is_named_and_nothing_is_left(audio_format, tmp_path):
    target = str(tmp_path / f"out.{audio_format}")
    command = [sys.executable, "-c", FULL_DISK, target, audio_format]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == f"cannot write {target} (File too large); make room there, or write somewhere else\n"
    assert process.stderr == "" and os.listdir(tmp_path) == []


def test_an_interrupt_while_libsndfile_writes_is_no_failure_to_write(tmp_path):
    class Interrupted:
        def write(self, content):
            raise KeyboardInterrupt

        def tell(self):
            return 0

        def seek(self, offset, whence=0):
            return 0

    encoding = choose_encoding("wav", "int16", 44100, 1, 1.0)
    with pytest.raises(KeyboardInterrupt), open_sound(Interrupted(), "out", encoding, 44100, 1, {}) as write_piece:
        write_piece(np.zeros((1, 100), np.float32))
