"""Files elsewhere, named by an address (`s3://`, `gs://`, `hf://`, ...), through fsspec. Knows no audio."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Generator
from functools import cached_property
from glob import has_magic
from typing import Any, BinaryIO

BUSY = {409, 412, 429, 500, 502, 503, 504}  # the Hub's answers to many who commit at once
ATTEMPTS = 8
LONGEST_WAIT = 60.0  # seconds


def is_remote(path: str) -> bool:
    """Whether a path is an address.

    >>> is_remote("s3://bucket/a.wav"), is_remote("talks/a.wav"), is_remote("-")
    (True, False, False)
    """
    return "://" in path


def find_remote(address: str) -> list[str]:
    """Addresses of the files below a folder, or of those that a pattern matches, or of the one file, sorted.

    Raises:
        OSError: the place cannot be reached, or wants a library that is not installed.
    """
    files, path = _files_at(address)
    with _naming(address):
        found = files.glob(path) if has_magic(path) else files.find(path)
    root, path = address.rstrip("/"), path.lstrip("/")
    if root.endswith(path):  # names begin as the address does
        return sorted(root.removesuffix(path) + name.lstrip("/") for name in found)
    return sorted(map(files.unstrip_protocol, found))


def exists_remote(address: str) -> bool:
    """Whether there is such a file.

    Raises:
        OSError: the place cannot be reached.
    """
    files, path = _files_at(address)
    with _naming(address):
        return files.isfile(path)


def open_remote(address: str) -> BinaryIO:
    """A file, opened for reading.

    Raises:
        OSError: it is not there, or cannot be reached.
    """
    files, path = _files_at(address)
    with _naming(address):
        return files.open(path, "rb")


def upload(file: str, address: str) -> None:
    """Puts a local file at an address, whole or not at all.

    On the Hub that is a commit, and of several at a time all but one are turned away: they wait and try again.

    Raises:
        OSError: nothing can be written there.
    """
    files, path = _files_at(address)
    for attempt in range(ATTEMPTS):
        try:
            with _naming(address):
                return files.put_file(file, path)
        except OSError as error:
            status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
            if status not in BUSY or attempt == ATTEMPTS - 1:
                raise
        time.sleep(random.uniform(0, min(LONGEST_WAIT, 2.0**attempt)))


def hub_dataset(address: str) -> str | None:
    """The data set on the Hub that an address lies in.

    >>> hub_dataset("hf://datasets/org/clean@main/data/train.parquet"), hub_dataset("s3://bucket/a.parquet")
    ('org/clean', None)
    """
    parts = address.split("/")
    return "/".join(parts[3:5]).partition("@")[0] if address.startswith("hf://datasets/") else None


def make_dataset(name: str) -> None:
    """Makes a data set on the Hub, unless it is there. A new one is private: its owner may publish it.

    Raises:
        OSError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    files, _ = _files_at(f"hf://datasets/{name}")
    with _naming(f"hf://datasets/{name}"):
        HfApi().create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        files.invalidate_cache()  # where it may still be missing


class RemoteFile:
    """A file for the engine to read, opened when its turn comes.

    Args:
        address: of the file, elsewhere or here.
        name: that people know it by; None for the address.
    """

    def __init__(self, address: str, name: str | None = None):
        self.address, self.name = address, name or address

    @cached_property
    def _file(self) -> BinaryIO:
        return open_remote(self.address)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all."""
        return self._file.read(size)


def _files_at(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    with _naming(address):
        return fsspec.url_to_fs(address)


@contextlib.contextmanager
def _naming(address: str) -> Generator[None]:
    """Makes whatever a file system raises an OSError that names the address."""
    try:
        yield
    except Exception as error:  # of one of many libraries
        number, reason = getattr(error, "errno", None), " ".join(str(error).split())
        if number is None and isinstance(error, FileNotFoundError) and address.endswith(reason):
            number = errno.ENOENT  # nothing but the path is said
        if number is not None:
            raise OSError(number, os.strerror(number), address) from error
        raise OSError(f"{address}: {reason or type(error).__name__}") from error
