"""Imports run one way between the rooms, and the files that travel to the Hub stand on their own."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "modeling_dacse": set(),
    "processing_dacse": set(),
    "pipeline_dacse": set(),
    "training_dacse": {"modeling_dacse", "processing_dacse"},
    "evaluation_dacse": {"modeling_dacse", "processing_dacse", "pipeline_dacse", "training_dacse"},
    "hub_upload": {"modeling_dacse", "processing_dacse", "pipeline_dacse"},
    "spaces_app": set(),
}
ROOMS = set(MAY_IMPORT) | {"command_dacse", "dacse"}
NOT_FOR_ROOMS = {"examples", "tests", "benchmarks"}
TRAVELLING = sorted(
    path
    for room in ("modeling_dacse", "processing_dacse", "pipeline_dacse")
    for path in (ROOT / room).glob("*_dacse.py")
)
TRAVELLING_MAY_IMPORT = {
    "torch",
    "numpy",
    "transformers",
    "soundfile",
    "soxr",
    "av",
    "safetensors",
    "peft",
    "huggingface_hub",
}


def imported_modules(path: Path) -> set[tuple[int, str]]:
    """(level, module) of every import statement in a file, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.level, node.module or ""))
    return modules


# Inside `try`, in the package: what travels does without.
USED_WHERE_INSTALLED = {
    ("modeling_dacse.py", "modeling_dacse.fast.decoding"),
    ("modeling_dacse.py", "modeling_dacse.modeling_dacse"),
    ("candidates_dacse.py", "evaluation_dacse.metrics"),
}


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if (ROOT / room).is_dir()])
def test_rooms_import_only_rooms_above_them(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        modules = {module for level, module in imported_modules(path) if level == 0}
        modules -= {module for name, module in USED_WHERE_INSTALLED if name == path.name}
        forbidden = {module.split(".")[0] for module in modules} & (ROOMS | NOT_FOR_ROOMS) - MAY_IMPORT[room] - {room}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_nothing_imports_examples_tests_or_benchmarks():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) >= 15
    for path in files:
        top_level = {module.split(".")[0] for level, module in imported_modules(path) if level == 0}
        assert not top_level & NOT_FOR_ROOMS, path


def test_travelling_files_import_only_siblings_and_the_core_libraries():
    assert len(TRAVELLING) == 24, [path.name for path in TRAVELLING]
    assert len({path.name for path in TRAVELLING}) == len(TRAVELLING)
    for path in TRAVELLING:
        siblings = {other.stem for other in path.parent.glob("*_dacse.py")}
        for level, module in imported_modules(path):
            if level:
                assert level == 1 and module in siblings, f"{path.name}: from {'.' * level}{module}"
            else:
                name = module.split(".")[0]
                if (path.name, module) in USED_WHERE_INSTALLED:
                    continue
                assert name in TRAVELLING_MAY_IMPORT or name in sys.stdlib_module_names, f"{path.name}: {name}"


def test_every_room_is_packaged_tested_and_linted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {pattern.rstrip("*") for pattern in project["setuptools"]["packages"]["find"]["include"]} == ROOMS
    assert set(project["ruff"]["lint"]["isort"]["known-first-party"]) == ROOMS
    assert set(project["pytest"]["ini_options"]["testpaths"]) == ROOMS - {"spaces_app"} | {"tests"}
