"""One recording of the several that a file may hold, and that as a file of its own. Knows bytes; no container."""

import io
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Part:
    """One recording of a file, which most often is all of it.

    Attributes:
        start, stop: Where it lies, in bytes.
        kind: Of its container; None where that is not known.
        size: Position in the file and bytes of a size that is to be read in place of the one that is written there.
        fault: What its headers promise and it does not keep; None where nothing is known to be missing.
        is_counted: Whether its header can say how long it is: an MP3 without a frame of counts cannot.
        end: Of an Ogg, in samples of its clock, as its last page says.
    """

    start: int
    stop: int
    kind: str | None = None
    size: tuple[int, bytes] | None = None
    fault: str | None = None
    is_counted: bool = True
    end: int | None = None


class PartFile(io.RawIOBase):
    """One part of a file as a file of its own, with its size set right.

    What goes wrong while FFmpeg reads, an interrupt among it, would get lost in its calls: `check` raises it after.
    """

    def __init__(self, file: BinaryIO, part: Part):
        self.file, self.part, self.position = file, part, 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.part.stop - self.part.start}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int = -1) -> bytes:
        start, left = self.part.start + self.position, self.part.stop - self.part.start - self.position
        try:
            content = read_at(self.file, start, max(0, left if count < 0 else min(count, left)))
        except BaseException as error:
            self.error = error
            return b""
        if self.part.size is not None:
            content = _overlay(content, start, *self.part.size)
        self.position += len(content)
        return content

    def check(self) -> None:
        """Raises what went wrong while reading."""
        if self.error is not None:
            raise self.error


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Up to so many bytes from a place in a file."""
    file.seek(position)
    return file.read(count)


def _overlay(content: bytes, start: int, position: int, patch: bytes) -> bytes:
    """
    >>> _overlay(b"abcdef", 10, 14, b"XYZ"), _overlay(b"abc", 10, 9, b"XY")
    (b'abcdXY', b'Ybc')
    """
    patched = bytearray(content)
    for index, byte in enumerate(patch, position - start):
        if 0 <= index < len(content):
            patched[index] = byte
    return bytes(patched)
