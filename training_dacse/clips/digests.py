"""Digests of what recordings hold, by which a token cache knows what it was made from. Knows files, no waveform."""

import hashlib
import os
from pathlib import Path

import pandas

from ..files import written_whole
from .sources import Clips, readable, scan

COLUMNS = ["name", "size", "changed", "digest"]


class Digests:
    """Digests of recordings, remembered in a file for as long as size and times of change stay what they are.

    Args:
        path: of the file, Parquet; without one nothing is remembered.
    """

    def __init__(self, path: str | Path | None = None):
        self.path, self.known = path and Path(path), {}
        if self.path and self.path.exists():
            rows = pandas.read_parquet(self.path)
            self.known = {
                row.name: (row.size, row.changed, row.digest) for row in rows.itertuples(index=False, name="R")
            }

    def of(self, clips: Clips) -> list[str]:
        """Digests of some recordings, in their order; contents are read where they are not known."""
        looked_at = scan("contents", lambda index: self.look(clips, index), range(len(clips)))
        changed = {name: entry for name, entry in looked_at if name and self.known.get(name) != entry}
        self.known |= changed
        if changed and self.path:
            self.save()
        return [entry[2] for _, entry in looked_at]

    def look(self, clips: Clips, index: int) -> tuple[str | None, tuple[int, int, str]]:
        """Name of a recording's file (None if it is none), and its size, time of change (ns) and digest.

        The time is the later one of its content's, which copying tools set, and its entry's, which nobody can.
        """
        stored = clips.stored(index)
        if stored["bytes"]:
            return None, (len(stored["bytes"]), 0, hashlib.sha256(stored["bytes"]).hexdigest()[:32])
        name = stored["path"]
        with readable(name):
            state = os.stat(name)
            now = state.st_size, max(state.st_mtime_ns, state.st_ctime_ns)
            *before, digest = self.known.get(name, (None, None, None))
            if tuple(before) != now:
                with open(name, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        return name, (*now, digest)

    def save(self) -> None:
        """Writes what is known, whole or not at all."""
        rows = pandas.DataFrame([(name, *entry) for name, entry in self.known.items()], columns=COLUMNS)
        with written_whole(self.path) as unfinished:
            rows.to_parquet(unfinished, index=False)

    def fingerprint(self, clips: Clips) -> str:
        """Changes with the recordings: what they hold, their names and their order; not with the folder of all."""
        digest = hashlib.sha256()
        for index, content in enumerate(self.of(clips)):
            digest.update(f"{clips.short_name(index)}\0{content}\0".encode())
        return digest.hexdigest()[:16]
