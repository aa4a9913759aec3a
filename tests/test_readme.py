"""Every code block of the README runs as it stands, on the embedded model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)( notest)?\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    line.split("&& ")[-1]
    for language, notest, block in BLOCKS
    if language == "bash" and not notest
    for line in block.splitlines()
    if "dacse " in line and not line.startswith("#")
]


@pytest.fixture
def workplace(tmp_path):
    """A folder in which the README's relative paths exist and into which its commands may write."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_python_blocks_run_one_after_the_other(workplace):
    code = [block for language, notest, block in BLOCKS if language == "python" and not notest]
    assert len(code) >= 3
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning:dacse", "-c", "\n".join(code)], cwd=workplace, check=True
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, workplace):
    subprocess.run([sys.executable, "-m", *command.split()], cwd=workplace, check=True)


def test_readme_has_commands():
    assert len(COMMANDS) >= 4
