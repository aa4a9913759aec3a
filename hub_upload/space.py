"""Writes the repository of the Space: the app as it stands.

Knows no model and no Hub.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path


def stage_space(folder: Path) -> None:
    """Fills `folder` with the files of `spaces_app`; its README carries the Space's header.

    Hidden files stay where they are: a token in `.env`, what somebody flagged in `.gradio`.
    """
    app = Path(next(iter(find_spec("spaces_app").submodule_search_locations)))
    shutil.copytree(app, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
