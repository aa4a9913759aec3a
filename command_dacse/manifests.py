"""Lists of files: a column of a table, or a path a line. Knows no audio."""

import csv
import io
import json
import os
from collections.abc import Iterable

from command_dacse.remote import is_remote, open_remote

MANIFEST_SUFFIXES = {".csv", ".tsv", ".jsonl", ".txt"}
COLUMNS = ("path", "file_name", "audio_filepath", "audio")  # of paths: here, in `datasets` folders, in NeMo, elsewhere


def is_manifest(path: str) -> bool:
    """Whether a path is that of a list of files, by its ending.

    >>> is_manifest("speech.tsv"), is_manifest("speech.wav")
    (True, False)
    """
    return os.path.splitext(path)[1].lower() in MANIFEST_SUFFIXES


def read_manifest(path: str) -> list[tuple[str, str]]:
    """The files of a list, each with its name in an output folder.

    A path that is not absolute starts at the folder of the list, and is its name; of any other the last part is.

    Raises:
        ValueError: it has no column of paths, or is no text.
        OSError: it cannot be read.
    """
    try:
        with open_remote(path) if is_remote(path) else open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        folder = path.rpartition("/")[0]
        return [_locate(entry, folder) for entry in _paths(path, text)]
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no list of files ({error}); give .csv, .tsv, .jsonl or a path a line") from error


def _paths(manifest: str, text: str) -> Iterable[str]:
    """Its paths, in its order."""
    kind = os.path.splitext(manifest)[1].lower()
    if kind == ".txt":
        return [line for line in text.splitlines() if line]
    if kind == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if kind == ".tsv" else ","))
    if not rows:
        return []
    column = next((name for name in COLUMNS if name in rows[0]), None)
    if column is None:
        raise ValueError(f"{manifest} has the columns {', '.join(rows[0])}; paths are in one called {COLUMNS[0]!r}")
    return [row[column] for row in rows]


def _locate(entry: str, folder: str) -> tuple[str, str]:
    """Where an entry lies, and its name.

    >>> _locate("a/b.wav", "lists"), _locate("/data/a/b.wav", "lists"), _locate("../b.wav", "s3://bucket/lists")
    (('lists/a/b.wav', 'a/b.wav'), ('/data/a/b.wav', 'b.wav'), ('s3://bucket/lists/../b.wav', 'b.wav'))
    """
    if is_remote(entry) or os.path.isabs(entry):
        return entry, os.path.basename(entry)
    name = os.path.normpath(entry)
    return os.path.join(folder, entry), os.path.basename(name) if name.startswith("..") else name
