"""Makes a self-contained directory of any checkpoint: ours, of another dtype, with a merged adapter; or a plain Llama.

Knows no Hub beyond loading from it.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .plain_llama import stage_plain_llama
from .stage import SHARD_SIZE, open_checkpoint, open_model, stage_model


def convert(
    source: str,
    destination: Path,
    codec: str | None = None,
    dtype: torch.dtype | None = None,
    adapter: str | None = None,
    plain_llama: bool = False,
) -> None:
    """Writes a repository into the directory `destination`, whole or not at all.

    Args:
        source, codec, dtype, adapter: see `open_checkpoint`.
        destination: a directory that does not exist yet, or is empty.
        plain_llama: writes what other engines load, and by default what `push` would publish.

    Raises:
        FileExistsError: `destination` holds something.
        ValueError: see `open_checkpoint`; or a codec is given for a plain Llama, which has none.
    """
    if plain_llama and codec is not None:
        raise ValueError("a plain Llama has no codec: leave --codec out, or --plain-llama")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty directory; give another one")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as name:
        folder = Path(name, "repository")
        folder.mkdir()
        if plain_llama:
            stage_plain_llama(open_model(source, dtype, adapter), folder, SHARD_SIZE)
        else:
            enhance = open_checkpoint(source, codec, dtype, adapter)
            stage_model(enhance, source, folder, str(destination), merged=adapter is not None)
        os.replace(folder, destination)
