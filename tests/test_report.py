"""Reports: tables that say what the summary says, and plots."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from matplotlib.image import imread

from evaluation_dacse.report import cell, counts, digest_table, markdown, paper_table, score_table, write_report
from tests.tiny import tiny_pipeline
from tests.tiny_run import write_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def summary(tmp_path):
    return write_run(tmp_path)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_hold_the_means_and_intervals_of_the_summary(summary):
    header, _, noisy, clean, dacse = score_table(summary, "overall").splitlines()
    assert cells(header) == ["system", "PESQ ↑"]
    row = summary["systems"]["dacse"]["overall"]["pesq"]
    # the one that enhances is bold
    assert cells(dacse) == ["dacse", f"**2.70 [{row['low']:.2f}, {row['high']:.2f}]**"]
    assert cells(clean)[1].startswith("3.70 [") and cells(noisy)[1].startswith("1.50 [")
    rain = score_table(summary, "rain").splitlines()[-1]
    assert cells(rain)[1] == "**2.70**"  # one clip: no interval


def test_who_has_a_score_for_fewer_clips_has_no_place_and_says_so(summary):
    summary["systems"]["muter"] = json.loads(json.dumps(summary["systems"]["dacse"]))
    summary["systems"]["muter"]["overall"]["pesq"].update(mean=4.5, low=None, count=2)
    *_, dacse, muter = score_table(summary, "overall").splitlines()
    assert cells(dacse)[1].startswith("**2.70 [") and cells(muter)[1] == "4.50 (2 of 3 clips)"


def rows_of(text):
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


def test_the_report_says_what_was_left_out_and_which_differences_are_sure(summary):
    text = markdown(summary)
    for system in ("noisy", "clean", "dacse"):
        assert [system, "pesq: reference silent: left out", "1"] in rows_of(text)
    assert ["noisy", "pesq: output silent: worst value", "1"] in rows_of(text)
    assert "Every score is over the same 3 clips for all systems." in text
    difference = summary["systems"]["dacse"]["overall"]["pesq"]["difference"]["noisy"]
    assert difference["p"] < 0.05 and ["dacse", f"**{cell(difference, signed=True)}**"] in rows_of(text)
    difference["p"] = 0.2
    assert ["dacse", cell(difference, signed=True)] in rows_of(markdown(summary))
    assert "4 clips of 3 speakers in 2 tasks, checksum `abc`" in text
    assert "Commit c0ffee; a computer; Python 3, torch 2. Systems: dacse f00." in text
    assert ["PESQ ↑", "pesq", "1 to 4.65", "16000 Hz", "0.25 s"] in rows_of(text)
    assert "Published figures" not in text


def test_scores_of_fewer_clips_are_named(summary):
    summary["metrics"]["stoi"] = summary["metrics"]["pesq"] | {"label": "STOI"}
    for row in summary["systems"].values():
        row["overall"]["stoi"] = row["overall"]["pesq"] | {"count": 2}
    assert counts(summary, "overall").endswith("the same 3 clips for all systems, but: STOI 2.")


def test_the_papers_figures_lie_beside_its_own_test_sets(summary):
    summary["test_set"]["name"] = "hifitts-2-recipe_paper"
    assert "## Published figures (arXiv 2510.02187)" in markdown(summary)
    rows = [cells(line) for line in paper_table(summary, "hifitts-2").splitlines()]
    assert rows[0] == ["published", "PESQ ↑"] and ["DAC-SE1", "2.46"] in rows and len(rows) == 7
    for row in summary["systems"].values():
        row["overall"]["plcmos"] = row["overall"]["pesq"]
    summary["metrics"] = {"plcmos": {"label": "PLCMOS", "higher_is_better": True}}
    rows = [cells(line) for line in paper_table(summary, "plc-2022").splitlines()]
    assert rows[0] == ["published", "PLCMOS ↑"] and rows[2:] == [["LLaSE-G1", "4.30"], ["DAC-SE1", "4.34"]]


@pytest.fixture
def script():
    """The command that renews what is published."""
    spec = importlib.util.spec_from_file_location("evaluation", ROOT / "benchmarks" / "evaluation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_gets_its_table_from_a_run(script, summary):
    before = "Before.\n\n<!-- evaluation -->\nstale\n<!-- /evaluation -->\n\nAfter.\n"
    text = script.put_table(before, summary)
    assert text.startswith("Before.\n\n<!-- evaluation -->\n") and text.endswith("<!-- /evaluation -->\n\nAfter.\n")
    assert ["system", "PESQ ↑", "work per second ↓"] in rows_of(text) and ["dacse", "**2.70**", "0.20"] in rows_of(
        text
    )
    assert "stale" not in text and "4 clips of 3 speakers" in text and "Commit c0ffee; a computer" in text


def test_the_documentation_gets_a_runs_report_without_its_players(script, summary, tmp_path):
    write_report(tmp_path)
    script.put_report(tmp_path, tmp_path / "docs")
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["README.md", "plots", "summary.json"]
    assert (tmp_path / "docs" / "plots" / "tasks.png").read_bytes() == (tmp_path / "plots" / "tasks.png").read_bytes()
    assert "(../samples/index.html)" in (tmp_path / "docs" / "README.md").read_text()


def test_the_card_shows_the_runs_and_keeps_what_else_is_stated(script, summary, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "evaluation" / "old").mkdir(parents=True)
    stated = {"license": "mit", "evaluations": [{"run": "evaluation/old", "system": "dacse:old"}]}
    (tmp_path / "model" / "card.yaml").write_text(yaml.safe_dump(stated))
    script.put_card([tmp_path], tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "made-up: 4 clips, checksum `abc`" in card and "license: mit" in card
    stated = yaml.safe_load((tmp_path / "model" / "card.yaml").read_text())
    assert stated["evaluations"] == [{"run": "evaluation/made-up", "system": "dacse"}]
    kept = [path.name for path in (tmp_path / "model" / "evaluation").iterdir()]
    assert kept == ["made-up"] and stated["license"] == "mit"


def test_only_recordings_that_may_be_passed_on_are_heard(script, tmp_path):
    licences = [
        "CC0",
        "CC-BY-4.0",
        "CC-BY",
        "Public-Domain (US Gov)",
        "CC-BY-SA-3.0",
        "CC-BY-NC-4.0",
        "GPL-3.0+",
        "MIT",
    ]
    rows = [f"{number}.wav\ttest\ta source\t{licence}" for number, licence in enumerate(licences)]
    rows.append("train.wav\ttrain\tanother\tCC0")
    (tmp_path / "MANIFEST.tsv").write_text("\n".join(["path\tsplit\tsource\tlicence", *rows]) + "\n")
    (credits,) = script.write_shareable(tmp_path, tmp_path / "chosen.tsv")
    chosen = [line.split("\t")[0] for line in (tmp_path / "chosen.tsv").read_text().splitlines()[1:]]
    assert chosen == [str(tmp_path / f"{number}.wav") for number in range(4)]
    assert "a source (CC-BY-4.0)" in credits and "GPL" not in credits and "another" not in credits


def test_figures_of_a_changed_checkout_are_not_published(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "code_version", lambda: "abc-dirty")
    monkeypatch.setattr(sys, "argv", ["evaluation.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="commit first, or write elsewhere"):
        script.main()


def test_the_readmes_table_is_the_one_of_the_published_run():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("<!-- evaluation -->") == readme.count("<!-- /evaluation -->") == 1
    published = ROOT / "docs" / "evaluation" / "summary.json"
    if not published.exists():
        pytest.skip("no run has been published yet: benchmarks/evaluation.py does it")
    assert digest_table(json.loads(published.read_text())) in readme


def test_the_example_draws_before_and_after(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    for name, channels in (("mono.wav", 1), ("stereo.wav", 2)):
        soundfile.write(tmp_path / name, 0.1 * np.random.default_rng(0).standard_normal((4000, channels)), 8000)
    command = [
        sys.executable,
        "-W",
        "error:::__main__",
        ROOT / "examples" / "before_after.py",
        "mono.wav",
        "stereo.wav",
    ]
    command += ["--model", "model", "--output", "drawn/picture.png"]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert imread(tmp_path / "drawn" / "picture.png").std() > 0.05


def test_plots_are_drawn_and_linked(summary, tmp_path):
    report = write_report(tmp_path)
    plots = sorted((tmp_path / "plots").iterdir())
    assert [plot.stem for plot in plots] == ["spectrograms", "speed", "tasks"]
    for plot in plots:
        assert imread(plot).std() > 0.05  # something is drawn
        assert f"(plots/{plot.name})" in report.read_text()
