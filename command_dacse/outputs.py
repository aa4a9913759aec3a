"""Where a result goes: whole or not at all into a file, through a pipe or device; and its sound. Knows no model."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from command_dacse.files import STANDARD
from command_dacse.formats import TAGS, Encoding, id3_tag
from command_dacse.remote import exists_remote, find_remote, hub_dataset, is_remote, make_dataset, upload
from command_dacse.search import is_special
from command_dacse.terminal import CLOSED, write_out

if TYPE_CHECKING:
    import numpy as np

PART_PREFIX, PART_SUFFIX = ".dacse-", ".part"  # of a file that is being written
WRITE_SAMPLES = 1 << 14  # at once, per channel: libsndfile dies of longer blocks of Vorbis


@contextlib.contextmanager
def written_when_done(target: str, like: str | None = None) -> Iterator[BinaryIO]:
    """Gives a file whose content becomes that of the target at the end, or goes if anything goes wrong.

    A file is replaced in one step, and one that a link leads to in its place. Pipes and devices are written through.
    What a process that was killed has left there is for `remove_leftovers`.

    Args:
        target: A path, an address, or `-` for standard output.
        like: A file whose permissions the target gets.

    Raises:
        OSError: Nothing can be written there.
    """
    if target == STANDARD or is_special(target):
        with tempfile.TemporaryFile(buffering=0) as file:
            yield file
            file.seek(0)
            with naming(target):
                _copy_through(file, target)
        return
    if is_remote(target):
        with tempfile.NamedTemporaryFile(prefix="dacse-", buffering=0) as file:
            yield file
            upload(file.name, target)
        return
    path = os.path.realpath(target)
    folder = os.path.dirname(path)
    # A name of its own: that of the target may be as long as a name can be.
    temporary = os.path.join(folder, f"{PART_PREFIX}{os.getpid()}-{os.urandom(4).hex()}{PART_SUFFIX}")
    try:
        with naming(target):
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)  # a name that is too long is known before the work is done
            os.makedirs(folder, exist_ok=True)
            file = _open_locked(temporary)
        with file:
            yield file
        if like is not None and os.path.isfile(like):
            shutil.copymode(like, temporary)
        with naming(target):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it was never made, or has become the target
            os.remove(temporary)


def prepare_targets(targets: list[str]) -> None:
    """Makes ready what results are written to: folders without leftovers, data sets on the Hub that are there.

    Raises:
        OSError: The Hub does not let this user make one.
    """
    elsewhere = [target for target in targets if is_remote(target)]
    for address in {hub_dataset(target) for target in elsewhere} - {None}:
        make_dataset(address)
    for folder in {os.path.dirname(os.path.abspath(target)) for target in set(targets) - set(elsewhere)}:
        remove_leftovers(folder)


def unwritable(targets: list[str]) -> dict[str, OSError]:
    """Why nothing can be written to those of the targets of which that shows at once; what is tried leaves nothing."""
    reasons: dict[str, OSError] = {}
    tried: set[str] = set()
    for target in targets:
        try:
            with naming(target):
                if target == STANDARD and sys.stdout is None:
                    raise OSError(errno.EBADF, CLOSED)
                if not (target == STANDARD or is_remote(target) or is_special(target)):
                    _try_to_write(os.path.realpath(target), tried)
        except OSError as error:
            reasons[target] = error
    return reasons


def remove_leftovers(folder: str) -> None:
    """Removes what processes that were killed left half written in a folder; those that still write hold a lock."""
    with contextlib.suppress(OSError):  # where there is no such folder, or it cannot be read
        for entry in os.scandir(folder):
            if entry.name.startswith(PART_PREFIX) and entry.name.endswith(PART_SUFFIX):
                with contextlib.suppress(OSError), open(entry.path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.remove(entry.path)


def existing(targets: list[str]) -> set[str]:
    """Those of the targets that are there already; of many elsewhere, their common folder is listed once."""
    here = {target for target in targets if target != STANDARD and os.path.isfile(target)}
    elsewhere = [target for target in targets if is_remote(target)]
    if len(elsewhere) == 1:
        return here | {target for target in elsewhere if exists_remote(target)}
    if elsewhere:
        here |= set(elsewhere) & set(find_remote(os.path.commonprefix(elsewhere).rpartition("/")[0]))
    return here


def _try_to_write(path: str, tried: set[str]) -> None:
    """Raises OSError if no file can come to be at a path; folders that one can be made in are noted as tried."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path)  # whose name may be too long
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if folder not in tried:
        tempfile.TemporaryFile(dir=folder).close()
        tried.add(folder)


def _open_locked(path: str) -> BinaryIO:
    """A new file, locked for as long as it is open."""
    while True:
        file = open(path, "x+b", buffering=0)  # a buffer would be written once more, in vain, when closed
        with contextlib.suppress(OSError):  # of file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # nobody has taken it for a leftover before it was locked
            return file
        file.close()


@contextlib.contextmanager
def open_sound(
    file: BinaryIO, target: str, encoding: Encoding, sampling_rate: int, channels: int, tags: dict[str, str]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends pieces (channel, sample) to the sound in a file, which becomes the target.

    Raises:
        OSError: The file cannot be written.
    """
    from soundfile import SoundFile, SoundFileError

    if encoding.container == "MP3":
        file.write(id3_tag(tags))
    sink = _Sink(file)
    try:
        sound = SoundFile(sink, "w", sampling_rate, channels, encoding.subtype, format=encoding.container)
        with sound:
            for name, text in tags.items() if encoding.container != "MP3" else ():
                if name in TAGS:
                    setattr(sound, TAGS[name][0], text)

            def write(piece: np.ndarray) -> None:
                for first in range(0, piece.shape[1], WRITE_SAMPLES):
                    sound.write(piece[:, first : first + WRITE_SAMPLES].T)

            yield write
    except (AssertionError, SoundFileError) as error:  # what soundfile makes of a write that failed
        sink.check(target)
        raise OSError(errno.EIO, f"cannot write {target} (libsndfile: {error}); write another format") from error
    sink.check(target)


class _Sink:
    """The rest of a file for libsndfile to write, which keeps what goes wrong: in its calls, that would get lost."""

    def __init__(self, file: BinaryIO):
        self.file, self.first = file, file.tell()
        self.error: BaseException | None = None

    def write(self, content: bytes) -> int:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except BaseException as error:
            self.error = error
        return len(content) - len(rest)

    def read(self, count: int) -> bytes:
        return self.file.read(count)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset + self.first * (whence == os.SEEK_SET), whence) - self.first

    def tell(self) -> int:
        return self.file.tell() - self.first

    def check(self, target: str) -> None:
        """Raises what went wrong."""
        if self.error is not None:
            with naming(target):
                raise self.error


@contextlib.contextmanager
def naming(target: str) -> Iterator[None]:
    """Names the target in what the system says, with the remedy."""
    try:
        yield
    except OSError as error:
        name = "standard output" if target == STANDARD else target
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room there, or write somewhere else" if full else "write somewhere else"
        if error.errno == errno.ENXIO:
            remedy = "nothing reads from this pipe: start what is to read from it first"
        raise OSError(error.errno, f"cannot write {name} ({error.strerror}); {remedy}") from error


def _copy_through(file: BinaryIO, target: str) -> None:
    if target == STANDARD:
        write_out(file)
        return
    descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)  # a pipe that nothing reads from is an error, no wait
    os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as device:
        shutil.copyfileobj(file, device)
