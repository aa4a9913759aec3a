"""Files of the embedded model's recipe, imported as its programs import them."""

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parents[2] / "examples" / "train_tiny"


def load(module: str, name: str | None = None) -> ModuleType:
    """A file of the recipe."""
    sys.path.insert(0, str(HERE))
    try:
        spec = importlib.util.spec_from_file_location(name or module, HERE / f"{module}.py")
        sys.modules[spec.name] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded
    finally:
        sys.path.remove(str(HERE))


def run_here(command, **kwargs) -> None:
    """Stands for `subprocess.run` of a Python script: runs it in this process, which has imported what it needs."""
    _, script, *options = map(str, command)
    before, sys.argv = sys.argv, [script, *options]
    sys.path.insert(0, str(HERE))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv = before
        sys.path.remove(str(HERE))
