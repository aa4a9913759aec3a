"""Where in a file its recordings begin and end, whatever its headers say. Knows bytes; decodes nothing.

A size in a header is an estimate. A program that writes to a pipe cannot go back and fill it in, one that was killed
did not, a file that was cut has less, and files put end to end (`cat a b`) have several headers.
"""

import io
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from .audio_parts_dacse import Part, read_at

SCAN_BYTES = 1 << 22
LONGEST_START = 128  # bytes of what the patterns below match
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")

# How a file of a kind begins, and with it every further one that was appended.
STARTS = {
    "riff": rb"RIFF....WAVE",
    "rifx": rb"RIFX....WAVE",
    "rf64": rb"(?:RF64|BW64)....WAVE",
    "aiff": rb"FORM....AIF[FC]",
    "w64": re.escape(W64_RIFF),
    "caf": rb"caff\x00\x01\x00\x00desc",
    "au": rb"\.snd\x00\x00..",
    "flac": rb"fLaC\x00\x00\x00\x22",
    "ogg": rb"OggS\x00[\x00-\x07]",  # every page
    "mp4": rb"\x00\x00\x00[\x10-\xff]ftyp",
    "matroska": rb"\x1a\x45\xdf\xa3.{0,64}?\x42\x82.{1,2}(?:webm|matroska)",
    "asf": re.escape(ASF_HEADER),
    "avi": rb"RIFF....AVI ",
    "flv": rb"FLV\x01[\x00-\x05]\x00\x00\x00\x09",
    "nist": rb"NIST_1A\n   1024\n",
    "amr": rb"#!AMR(?:-WB)?\n",
    "mp3": rb"ID3[\x02-\x04]\x00.[\x00-\x7f]{4}|\xff[\xe2-\xff]",
}
FIRST_STARTS = {kind: re.compile(start, re.DOTALL) for kind, start in STARTS.items()}
# A further MP3 begins with its tag, or with the frame that holds counts in place of sound.
MP3_COUNTS = rb"\xff[\xe2-\xff]..(?:..)?\x00{9,32}(?:Xing|Info)\x00\x00\x00[\x00-\x0f]"
NEXT_STARTS = FIRST_STARTS | {"mp3": re.compile(rb"ID3[\x02-\x04]\x00.[\x00-\x7f]{4}|" + MP3_COUNTS, re.DOTALL)}
TAG_AFTER = re.compile(rb"APETAGEX|TAG.{125}\Z", re.DOTALL)  # APEv2 and ID3v1, which some write after any audio
# Bytes of a frame with its head, by the type that stands in bits 3 to 6 of that (RFC 4867, section 5.3).
AMR_FRAMES = {
    b"#!AMR\n": (13, 14, 16, 18, 20, 21, 27, 32, 6, 7, 6, 6, 1, 1, 1, 1),
    b"#!AMR-WB\n": (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1),
}
OTHER_CHUNKS = {b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"JUNK", b"PEAK", b"fact", b"NAME", b"ANNO", b"info"}


class Chunks(NamedTuple):
    """How a file made of chunks is laid out."""

    first: int  # where the first chunk begins
    id_bytes: int
    size_bytes: int
    byteorder: str
    alignment: int
    audio_id: bytes
    counted: int = 0  # bytes of its id and size that the size of a chunk counts


CHUNKS = {
    "riff": Chunks(12, 4, 4, "little", 2, b"data"),
    "rifx": Chunks(12, 4, 4, "big", 2, b"data"),
    "rf64": Chunks(12, 4, 4, "little", 2, b"data"),
    "aiff": Chunks(12, 4, 4, "big", 2, b"SSND"),
    "w64": Chunks(40, 16, 8, "little", 8, W64_DATA, counted=24),
    "caf": Chunks(8, 4, 8, "big", 1, b"data"),
}


def find_parts(file: BinaryIO) -> list[Part]:
    """The recordings in a file that can be sought, in order; one for all of it where its kind is not known."""
    length = file.seek(0, io.SEEK_END)
    head = read_at(file, 0, LONGEST_START)
    kind = next((kind for kind, start in FIRST_STARTS.items() if start.match(head)), None)
    if kind is None:
        return [Part(0, length)]
    matches = _find_all(file, NEXT_STARTS[kind])
    starts = {"ogg": _ogg_starts, "mp3": _mp3_starts}.get(kind, _starts)(matches)
    starts = [0, *(start for start in starts if start > 0)]
    return [_part(file, kind, start, stop) for start, stop in zip(starts, [*starts[1:], length], strict=True)]


def _starts(matches: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    return (position for position, _ in matches)


def _ogg_starts(pages: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    """A link of a chain begins with one page or more that are marked as the first of a stream."""
    was_first = False
    for position, page in pages:
        is_first = bool(page[5] & 2)
        if is_first and not was_first:
            yield position
        was_first = is_first


def _mp3_starts(matches: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    """Tags, and frames of counts with none before them."""
    tag_end = -1 << 12
    for position, match in matches:
        is_own = not 0 <= position - tag_end < 1 << 12  # a tag may be followed by filling
        if tag := _tag_bytes(match):
            tag_end = position + tag
        if is_own:
            yield position


def _tag_bytes(head: bytes) -> int:
    """Length of the ID3 tag that begins so (ID3v2.4, section 3.1: 28 bits in 4 bytes), 0 without one.

    >>> _tag_bytes(b"ID3\\4\\0\\0\\0\\0\\1\\2"), _tag_bytes(b"\\xff\\xfb\\x90\\0")
    (140, 0)
    """
    if not head.startswith(b"ID3"):
        return 0
    return 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))


def _part(file: BinaryIO, kind: str, start: int, stop: int) -> Part:
    if kind == "ogg":
        return _ogg_part(file, start, stop)
    if kind in ("avi", "asf"):
        promised, present = _promised_bytes(file, kind, start), stop - start
        is_short = promised > present and not _is_placeholder(promised)
        return Part(start, stop, kind, fault=_shortfall(promised, present) if is_short else None)
    if kind == "mp3":
        return _mp3_part(file, start, stop)
    if kind == "amr":
        return _amr_part(file, start, stop)
    if kind == "au" or kind in CHUNKS:
        return _pcm_part(file, kind, start, stop)
    return Part(start, stop, kind)


def _pcm_part(file: BinaryIO, kind: str, start: int, stop: int) -> Part:
    """With the true size of the audio in place of the one its header claims."""
    place = _place_of_audio(file, kind, start, stop)
    if place is None:
        return Part(start, stop, kind)
    field, width, byteorder, body = place
    own = CHUNKS[kind].counted if kind in CHUNKS else 0
    size, present = int.from_bytes(read_at(file, field, width), byteorder), max(0, stop - body)
    claimed = max(0, size - own)
    if claimed == present or (claimed < present and _is_end_of_audio(file, kind, body, claimed, stop)):
        return Part(start, body + claimed if kind == "au" else stop, kind)  # of which FFmpeg reads on after that
    fault = None
    if claimed and not _is_placeholder(claimed):
        more = f"has {present - claimed} bytes of audio more than it promises, which are read too"
        fault = more if claimed < present else _shortfall(claimed, present)
    largest = 2 ** (8 * width) - 1  # read as "to the end"
    true_size = largest if kind == "caf" else min(present + own, largest)
    if kind == "aiff":  # FFmpeg expects another chunk after a byte that is left over
        true_size -= true_size % 2
        stop = body + true_size
    return Part(start, stop, kind, (field, true_size.to_bytes(width, byteorder)), fault)


def _place_of_audio(file: BinaryIO, kind: str, start: int, stop: int) -> tuple[int, int, str, int] | None:
    """Where the size of the audio stands, its bytes and their order, and where the audio begins."""
    if kind == "au":
        return start + 8, 4, "big", start + int.from_bytes(read_at(file, start + 4, 4), "big")
    chunks = CHUNKS[kind]
    head = chunks.id_bytes + chunks.size_bytes
    position = start + chunks.first
    while position + head <= stop:
        content = read_at(file, position, head)
        size = int.from_bytes(content[chunks.id_bytes :], chunks.byteorder)
        if content[: chunks.id_bytes] == chunks.audio_id:
            if kind == "rf64" and size == 0xFFFFFFFF:
                return start + 28, 8, "little", position + head  # in the chunk ds64, which comes first
            return position + chunks.id_bytes, chunks.size_bytes, chunks.byteorder, position + head
        position += max(head, head + size - chunks.counted)
        position += (start - position) % chunks.alignment
    return None


def _is_end_of_audio(file: BinaryIO, kind: str, body: int, claimed: int, stop: int) -> bool:
    """Whether what comes after the claimed end of the audio is no more of it, but filling, text or another chunk."""
    chunks = CHUNKS.get(kind)
    position = body + claimed + (-claimed % chunks.alignment if chunks else 0)
    rest = read_at(file, position, 1 << 16)[: max(0, stop - position)]
    is_all = position + len(rest) == stop
    if claimed and (TAG_AFTER.match(rest) or (is_all and _is_text(rest.strip(b"\x00")))):
        return True
    if chunks is None:
        return False
    size = int.from_bytes(rest[chunks.id_bytes :][: chunks.size_bytes], chunks.byteorder)
    name = rest[:4]
    is_name = len(name) == 4 and name.isascii() and name.decode().isprintable()
    return name in OTHER_CHUNKS or (is_name and position + size <= stop)


def _is_text(content: bytes) -> bool:
    """Whether bytes are what people write, or nothing, which no sound is for long.

    >>> [_is_text(content) for content in (b"by me,\\r\\n2024", "Größe".encode(), b"", b"\\x01\\x00", b"\\xff")]
    [True, True, True, False, False]
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t" for char in text)


def _end_of_content(file: BinaryIO, start: int, stop: int) -> int:
    """Where the zeros begin that a part ends in."""
    while stop > start:
        first = max(start, stop - (1 << 16))
        content = read_at(file, first, stop - first).rstrip(b"\x00")
        if content:
            return first + len(content)
        stop = first
    return start


def _is_placeholder(size: int) -> bool:
    """Whether a size is what programs write that do not know it: the largest, or nearly, of so many bits.

    >>> [_is_placeholder(size) for size in (0xFFFFFFFF, 0x7FFFF000, 0x80000000 - 36, 88200)]
    [True, True, True, False]
    """
    return any(2**bits - 2**16 <= size <= 2**bits for bits in (31, 32, 63, 64))


def _shortfall(promised: int, present: int) -> str:
    return f"promises {promised} bytes and has {present}: it was cut; what is there is read"


def _promised_bytes(file: BinaryIO, kind: str, start: int) -> int:
    """How long a header says that the file is."""
    head = read_at(file, start, 1 << 12)
    if kind == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    place = head.find(ASF_PROPERTIES) + 40
    return int.from_bytes(head[place : place + 8], "little") if place >= 40 else 0


def _mp3_part(file: BinaryIO, start: int, stop: int) -> Part:
    """Without zeros after the bytes that its frame of counts counts, which FFmpeg would take for another MP3."""
    tag = _tag_bytes(read_at(file, start, 10))
    head = read_at(file, start + tag, 1 << 13)[: stop - start]
    counts = re.search(MP3_COUNTS, head, re.DOTALL)
    if counts and (flags := head[counts.end() - 1]) & 2:
        field = counts.end() + 4 * (flags & 1)
        counted = start + tag + counts.start() + int.from_bytes(head[field : field + 4], "big")
        stop = min(stop, max(counted, _end_of_content(file, start, stop)))
    return Part(start, stop, "mp3", is_counted=bool(counts) or b"VBRI" in head)


def _amr_part(file: BinaryIO, start: int, stop: int) -> Part:
    """Without zeros after its last frame, which FFmpeg would take for frames of sound."""
    end = _end_of_content(file, start, stop)
    header = next(header for header in AMR_FRAMES if read_at(file, start, len(header)) == header)
    position = start + len(header)
    while end < stop and position < end:
        position += AMR_FRAMES[header][read_at(file, position, 1)[0] >> 3 & 15]
    return Part(start, min(stop, position) if end < stop else stop, "amr")


def _ogg_part(file: BinaryIO, start: int, stop: int) -> Part:
    """With what its last page says (RFC 3533, section 6), which has 64 kB at most."""
    tail_stop = min(stop, _end_of_content(file, start, stop) + (1 << 16))  # zeros may be a page's own
    tail_start = max(start, tail_stop - (1 << 17))
    tail = read_at(file, tail_start, tail_stop - tail_start)
    place = tail.rfind(b"OggS\x00")
    page = tail[place:]
    length = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) >= 27 else 27
    if len(page) < length:
        return Part(start, stop, "ogg", fault="ends in the middle of a page: it was cut; what is there is read")
    stop, end = tail_start + place + length, int.from_bytes(page[6:14], "little", signed=True)
    fault = None if page[5] & 4 else "ends without the mark of an end: it may have been cut; what is there is read"
    return Part(start, stop, "ogg", fault=fault, end=end if end > 0 else None)


def _find_all(file: BinaryIO, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields position and content of everything in a file that matches."""
    position, window = 0, b""
    file.seek(0)
    while True:
        block = file.read(SCAN_BYTES)
        window += block
        done = max(0, len(window) - LONGEST_START) if block else len(window)
        for match in pattern.finditer(window):
            if match.start() < done:
                yield position + match.start(), match[0]
        if not block:
            return
        position, window = position + done, window[done:]
