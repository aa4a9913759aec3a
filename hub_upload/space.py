"""Writes the repository of the Space: the app as it stands, with the model it starts with or the names of those.

Knows no page; of the Hub only whether a model there can be offered.
"""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .answers import clear_errors, retry

# What the Space is made of. Whatever else lies there (.env, .gradio, caches, notes) is nobody's business.
FILES = (
    "README.md",
    "requirements.txt",
    "app.py",
    "page.py",
    "offer.py",
    "recording.py",
    "comparison.py",
    "player.html",
    "player.js",
    "style.css",
    "examples/address_of_1961.flac",
    "examples/machine_noise.flac",
    "examples/microphone_hiss.flac",
)
MODEL_FOLDER = "model"  # where a Space that brings its own model has it
NEEDED = {"processor_config.json", "pipeline_dacse.py"}  # to enhance without this package


def stage_space(folder: Path, models: Sequence[str]) -> None:
    """Fills `folder` with what the Space is made of.

    Args:
        folder: an existing, empty folder.
        models: Hub ids of the models it offers; the Hub links them, and downloads them as it builds the Space.
    """
    app = Path(next(iter(find_spec("spaces_app").submodule_search_locations)))
    (folder / "examples").mkdir()
    for name in FILES:
        shutil.copyfile(app / name, folder / name)
    readme = folder / "README.md"
    _, header, text = readme.read_text().split("---\n", 2)
    for field in ("models", "preload_from_hub") if models else ():
        header += f"{field}:\n" + "".join(f"  - {model}\n" for model in models)
    readme.write_text(f"---\n{header}---\n{text}")


def space_variables(models: Sequence[str]) -> dict[str, str]:
    """Variables with which the published Space finds its models, whose code runs there without this package.

    >>> space_variables(["org/a", "org/b"])
    {'DACSE_MODELS': 'org/a,org/b', 'DACSE_TRUST_REMOTE_CODE': '1'}
    """
    return {"DACSE_MODELS": ",".join(models) or MODEL_FOLDER, "DACSE_TRUST_REMOTE_CODE": "1"}


def embedded_model() -> Path:
    """Directory of the model inside the package."""
    return Path(find_spec("dacse").origin).parent / "tiny"


def check_space_models(models: Sequence[str]) -> None:
    """
    Raises:
        ValueError: one of them is not on the Hub, or does not enhance there without this package.
    """
    for model in models:
        if Path(model).is_dir():
            raise ValueError(f"{model} is a directory, which a Space cannot reach; publish it and give its Hub id")
        validate_repo_id(model)
        with clear_errors(f"looking at {model}"):
            try:
                info = retry(HfApi().model_info, model)
            except RepositoryNotFoundError:
                raise ValueError(f"there is no model {model} on the Hub, or the token may not read it") from None
        if missing := NEEDED - {file.rfilename for file in info.siblings}:
            raise ValueError(
                f"{model} holds no {' and no '.join(sorted(missing))}, without which a Space cannot run it; "
                f"make a whole repository of it with `dacse convert {model} DIR` and publish that with `dacse push`"
            )
