"""Makes a self-contained dacse directory of any checkpoint: the authors' plain Llama, another dtype, a merged adapter.

Knows no Hub beyond loading from it.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .stage import open_checkpoint, stage_model


def convert(
    source: str,
    destination: Path,
    codec: str | None = None,
    dtype: torch.dtype | None = None,
    adapter: str | None = None,
) -> None:
    """Writes the repository that `push` would publish into the directory `destination`, whole or not at all.

    Args:
        source, codec, dtype, adapter: see `open_checkpoint`.
        destination: a directory that does not exist yet, or is empty.

    Raises:
        FileExistsError: `destination` holds something.
        ValueError: see `open_checkpoint`.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty directory; give another one")
    destination.parent.mkdir(parents=True, exist_ok=True)
    enhance = open_checkpoint(source, codec, dtype, adapter)
    with TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as name:
        folder = Path(name, "repository")
        folder.mkdir()
        stage_model(enhance, source, folder, str(destination), merged=adapter is not None)
        os.replace(folder, destination)
