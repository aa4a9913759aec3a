"""Files that are written whole or not at all. Knows no content."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to; what is there takes the place of `path` once all is written, and goes if it is not.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            error.errno, f"{path}: the disk is full; make room and run the same command again: what is finished stays"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Writes a small file, whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
