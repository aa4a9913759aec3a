"""Every notebook runs from top to bottom, on the embedded model and against a Hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_hub import LoopbackHub

pytest.importorskip("nbmake", reason="needs the extra `dev`")

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / notebook.name).write_bytes(notebook.read_bytes())
    for name in ("audio", "configs", "train_adapter.py"):  # what notebooks find beside their folder
        (tmp_path / name).symlink_to(EXAMPLES / name)
    options = ["--nbmake", "--nbmake-timeout=600", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    with LoopbackHub(namespaces=("my-org",)) as hub:
        environment = os.environ | hub.environment(tmp_path / "home") | {"MPLBACKEND": "agg"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, notebook.name],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-5000:]


def test_notebooks_are_stored_without_outputs():
    assert len(NOTEBOOKS) == 3
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not cell.get("outputs"), f"clear the outputs of {notebook.name}: sound in them is megabytes"
