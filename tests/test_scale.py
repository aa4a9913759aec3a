"""docs/scale.md says what its script computes, and its commands are such as the tools take."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from command_dacse.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/scale.md").read_text()
README = (ROOT / "README.md").read_text()
LINES = [
    re.sub(r"\s+#.*", "", line).strip()
    for text in (TEXT, README)
    for block in re.findall(r"```bash[^\n]*\n(.*?)```", text, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_tables_are_computed_from_the_measured_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from benchmarks import scale

    assert scale.compute(json.loads((ROOT / "docs/speed.json").read_text())) in TEXT
    assert scale.WORK.keys() == {"10,000 hours, files of 10 minutes", "1 million files of 5 s"}


def test_a_million_short_files_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from benchmarks import scale

    facts = scale.work(1_000_000, 5.0, factor=0.25, limit=0.5, codec_factor=7.2, embedded_factor=0.72)
    assert facts["windows"] == "2,000,000"  # 0 to 4 s and 3.8 to 5 s
    assert facts["H100-hours of the 1B"] == f"{1e6 * 5.2 * 0.25 / 3600:.0f}"
    assert facts["core-hours of the embedded model"] == "1,000"
    assert facts["GB to read, and to write"] == "441"


def commands(name: str) -> list[list[str]]:
    """Commands of a tool, without what a shell adds."""
    found = [re.split(r"&&|'$", line[line.index(f"{name} ") :])[0] for line in LINES if f"{name} " in line]
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("words", [words for words in commands("dacse") if "enhance" in words[:2]], ids=" ".join)
def test_the_command_takes_the_options_that_are_shown(words):
    enhance = get_command(app).commands["enhance"]
    context = enhance.make_context("enhance", words[2:], resilient_parsing=False)
    assert context.params["inputs"]


def test_both_doors_are_shown_in_the_readme():
    shown = [" ".join(words) for words in commands("dacse") if "--ray" in words or "--server" in words]
    assert any("--ray local" in line for line in shown) and any("--server http" in line for line in shown)
    assert "vllm serve llama --logits-processors codebook_grid:GridLogitsProcessor" in README


def test_jobs_of_the_hub_resolve():
    """By the Hub's own command, which submits nothing."""
    (job,) = commands("hf jobs uv run")
    job = [*job[:4], "--dry-run", "--namespace", "my-org", *job[4:]]
    run = subprocess.run(
        [sys.executable, "-m", "huggingface_hub.cli.hf", *job[1:]],
        env={"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Job not submitted" in run.stdout and "enhance hf://datasets/my-org/noisy" in run.stdout
