"""The `dacse` command, a file a command. Importing it imports neither torch nor transformers."""

from importlib.util import find_spec
from pathlib import Path


def default_model() -> str:
    """Directory of the embedded model, found without importing the package it lies in."""
    return str(Path(find_spec("dacse").origin).parent / "tiny")
