"""The Space's repository: the app as it stands, and nothing that is somebody's own."""

import importlib.util
import shutil
from pathlib import Path

from hub_upload import space

APP = Path(__file__).parents[1] / "spaces_app"


def test_hidden_files_are_not_published(tmp_path, monkeypatch):
    shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "app" / ".env").write_text("HF_TOKEN=hf_x")
    (tmp_path / "app" / ".gradio").mkdir()
    (tmp_path / "app" / ".gradio" / "flagged.csv").write_text("x")
    found = importlib.util.spec_from_loader("spaces_app", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path / "app")]
    monkeypatch.setattr(space, "find_spec", lambda name: found)
    space.stage_space(tmp_path / "staged")
    published = {path.name for path in (tmp_path / "staged").rglob("*")}
    assert {"app.py", "README.md", "requirements.txt"} <= published
    assert not [name for name in published if name.startswith(".") or name == "flagged.csv"]
