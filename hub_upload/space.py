"""Writes the repository of the Space: the app as it stands.

Knows no model and no Hub.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path


def stage_space(folder: Path) -> None:
    """Fills `folder` with the files of `spaces_app`; its README carries the Space's header."""
    app = Path(find_spec("spaces_app").origin).parent
    shutil.copytree(app, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))
