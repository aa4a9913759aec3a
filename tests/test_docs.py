"""Every block of README and documentation runs as it stands, or says why it does not; pictures and figures are there.

Blocks of a page run one after another, in a folder in which a reader's files are, on the embedded model and against a
Hub on this machine.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
from typer.testing import CliRunner

from command_dacse.cli import app
from tests.loopback_hub import LoopbackHub
from tests.sounds import speech

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "dacse" / "tiny"
BY_SCRIPTS = ("evaluation", "experiments", "speed.md")  # pages that measurements write
PAGES = [ROOT / "README.md"] + [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page.relative_to(ROOT / "docs").parts[0] not in BY_SCRIPTS
]
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+) -->\n)?^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORTER = {"train_adapter.py": "--max_steps 2 --report_to none"}  # what takes minutes is run for a moment


class Block(NamedTuple):
    """What stands between two fences."""

    reason: str | None  # why it is not run
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    return [Block(*found.groups()) for found in BLOCK.finditer(page.read_text())]


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub(namespaces=("my-org",)) as server:
        yield server


@pytest.fixture
def place(hub, tmp_path, monkeypatch):
    """Where a reader works: recordings, pairs, a checkpoint, the examples, and a Hub."""
    hub.attach(monkeypatch)
    hub.repositories.clear()
    for name, value in hub.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    folder = tmp_path / "place"
    (folder / "recordings").mkdir(parents=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.copy(ROOT / "examples" / "audio" / "broadband_hiss.wav", folder / "noisy.wav")
    shutil.copy(folder / "noisy.wav", folder / "recordings" / "0.wav")
    for number in range(4):
        clean = speech(2 * 44100, 44100, seed=number)
        for side, waveform in {"noisy": clean + 0.1 * speech(2 * 44100, 44100, seed=99), "clean": clean}.items():
            (folder / "pairs" / side).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "pairs" / side / f"{number}.wav", waveform.T, 44100)
    monkeypatch.chdir(folder)
    return folder


def save_adapter(folder: Path) -> None:
    """As training leaves it."""
    shutil.copytree(EMBEDDED / "adapters" / "denoise", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(EMBEDDED)}))


def run_line(line: str, monkeypatch) -> None:
    """Runs a command of a shell block; those of this package in this process, where they are imported once."""
    longer = next((options for script, options in SHORTER.items() if script in line), "")
    words = shlex.split(f"{line} {longer}")
    if words[0] == "dacse" and not set(line) & set("|<>$&"):
        result = CliRunner().invoke(app, words[1:])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, f"{line}\n{result.output}"
    elif words[0] == "python" and words[1].startswith("examples/"):
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
    else:
        subprocess.run(["bash", "-euc", line], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_of_a_page_runs_or_says_why_not(page, place, monkeypatch):
    (place / "checkpoint").symlink_to(EMBEDDED)
    blocks = [block for block in blocks_of(page) if block.reason is None]
    if not any("--output my_adapter" in block.text for block in blocks):
        save_adapter(place / "my_adapter")
    variables = {"__name__": "page"}
    for block in blocks:
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), variables)
        else:
            for line in block.text.replace("\\\n", " ").splitlines():
                if line and not line.startswith("#"):
                    run_line(line, monkeypatch)


def test_most_blocks_are_run():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    fences = sum(len(re.findall(r"^```(?:python|bash)", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert len(blocks) == fences > 40
    assert sum(block.reason is None or block.reason.startswith(".ci/run") for block in blocks) > len(blocks) / 2


def test_pictures_are_those_that_the_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures" / "draw.py"))
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
    assert {path.stem for path in pictures} == drawn["PICTURES"].keys()
    for path in pictures:
        assert path.read_text() == drawn["draw"](path.stem), f"python docs/pictures/draw.py, for {path.name}"


def test_pages_take_what_stands_between_markers_and_say_when_there_is_none(tmp_path):
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks" / "pages.py"))
    assert "| dacse" in hooks["on_page_markdown"]("<!-- include README.md#evaluation -->")
    with pytest.raises(ValueError, match="README.md has no part between <!-- nothing -->"):
        hooks["on_page_markdown"]("<!-- include README.md#nothing -->")
    assert "## `dacse push`" in hooks["on_page_markdown"]("<!-- command line -->")
    assert hooks["on_page_content"]('<img alt="A" src="../pictures/method.svg" />').startswith("<svg")
