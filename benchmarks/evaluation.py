"""Renews all that this project shows of its embedded model's quality, from one run of one commit.

    python benchmarks/evaluation.py CORPUS --output runs/evaluation --processes 2

| what | from |
|---|---|
| README.md's table, docs/evaluation/ | the test split of CORPUS, spoiled by a recipe |
| docs/samples/ (players), docs/before_after.png | examples/audio, and what of the test split may be passed on |
| dacse/tiny: card and summaries | the test split and examples/audio |

CORPUS is a folder with a MANIFEST.tsv (columns kind, split, speaker, source, licence, bandwidth_hz, snr_db). The
command goes on where it was stopped, and refuses a checkout with changes, or a run that another commit began. With
`--into DIR` it writes there, whatever the checkout holds.
"""

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import yaml

from evaluation_dacse.benchmark import code_version, run_benchmark
from evaluation_dacse.rendering import render_test_set
from evaluation_dacse.report import about, digest_table, footer, write_report
from evaluation_dacse.samples import write_samples
from evaluation_dacse.testsets import TestSet, open_test_set
from hub_upload.card import model_card
from hub_upload.evaluation import stage_evaluations
from hub_upload.facts import Evaluation, Facts
from hub_upload.stage import open_checkpoint

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- evaluation -->\n).*?(?=<!-- /evaluation -->)", re.DOTALL)
RECIPE = ROOT / "examples" / "configs" / "recipe_tiny.yaml"
WHERE = "bandwidth_hz >= 14000 and snr_db >= 28"  # full-band, clean enough to be a reference
PASSED_ON = r"^(?:CC0|CC-BY(?:-\d.*)?|Public-Domain)(?: |$)"  # licences under which recordings may stand in docs/
RIVALS = ["noisereduce", "rnnoise", "deepfilternet"]
SYSTEMS = ["noisy", "clean", "codec", "generated", "dacse", *RIVALS]
HEARD_SECONDS = [3.0, 5.0]  # of the clips in the players
TINY, TINY_NAME = Path("dacse/tiny"), "dacse/tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation"), help="folder of the runs")
    parser.add_argument("--clips", type=int, default=40, help="of each task")
    parser.add_argument("--processes", type=int, default=1, help="workers, one CPU core each")
    parser.add_argument("--into", type=Path, default=ROOT, help="where all of it is written; by default the checkout")
    args = parser.parse_args()
    commit = code_version()
    if args.into == ROOT and commit.endswith("-dirty"):
        sys.exit(f"the checkout differs from its commit ({commit}): commit first, or write elsewhere with --into DIR")
    credits = write_shareable(args.corpus, args.output / "shareable.tsv")
    runs = {
        name: run(test_set, systems, args.output / name, args.processes)
        for name, (test_set, systems) in test_sets(args.corpus, args.output, args.clips).items()
    }
    commits = {commit for summary in runs.values() for commit in summary["commits"]}
    if args.into == ROOT and commits != {commit}:
        sys.exit(f"{args.output} was begun by {', '.join(commits)}, and this is {commit}: give another --output")
    publish(args.output, runs["held-out"], args.into, credits)


def test_sets(corpus: Path, output: Path, clips: int) -> dict[str, tuple[TestSet, list[str]]]:
    """What is run, by the name of the run, and with which systems."""
    recipe = output / "heard.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | {"clip_seconds": HEARD_SECONDS}))
    spoiled = render_test_set(str(corpus), RECIPE, output / "held-out" / "test_set", clips, where=WHERE)
    heard = render_test_set(str(output / "shareable.tsv"), recipe, output / "spoiled" / "test_set", 1, where=WHERE)
    real = open_test_set(str(ROOT / "examples" / "audio"), output)
    return {
        "held-out": (replace(spoiled, name="held-out"), SYSTEMS),
        "recordings": (replace(real, name="recordings"), ["noisy", "generated", "dacse", *RIVALS]),
        "spoiled": (replace(heard, name="spoiled"), ["noisy", "clean", "generated", "dacse", *RIVALS]),
    }


def write_shareable(corpus: Path, manifest: Path) -> list[str]:
    """Writes a manifest of the test recordings that may be passed on, and returns whom to credit for them."""
    table = pandas.read_csv(corpus / "MANIFEST.tsv", sep="\t").query("split == 'test'")
    table = table[table["licence"].str.contains(PASSED_ON)]
    table["path"] = [str((corpus / path).resolve()) for path in table["path"]]
    manifest.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(manifest, sep="\t", index=False)
    sources = table.groupby(["source", "licence"]).size().index
    return ["Recordings from " + ", ".join(f"{source} ({licence})" for source, licence in sources) + "."]


def run(test_set: TestSet, systems: list[str], folder: Path, processes: int) -> dict:
    """Runs one of the evaluations and its report; returns the summary."""

    def say(what: str, done: int, of: int) -> None:
        print(f"\r{test_set.name}: {what} {done} of {of}   ", end="" if done < of else "\n", flush=True)

    summary = run_benchmark(test_set, systems, folder, processes=processes, progress=say)
    write_report(folder)
    return summary


def publish(output: Path, summary: dict, root: Path, credits: list[str]) -> None:
    """Writes table, report, players, picture and card below `root`."""
    held_out, recordings, spoiled = (output / name for name in ("held-out", "recordings", "spoiled"))
    root.mkdir(parents=True, exist_ok=True)
    readme = put_table((ROOT / "README.md").read_text(), summary)
    (root / "README.md").write_text(readme)
    put_report(held_out, root / "docs" / "evaluation")
    shutil.rmtree(root / "docs" / "samples", ignore_errors=True)
    write_samples(root / "docs" / "samples", [recordings, spoiled], "dacse beside others", credits=credits)
    picture = [sys.executable, ROOT / "examples" / "before_after.py", *sorted((ROOT / "examples/audio").glob("*.wav"))]
    subprocess.run([*picture, "--output", root / "docs" / "before_after.png"], check=True)
    if root != ROOT:
        shutil.copytree(ROOT / TINY, root / TINY, dirs_exist_ok=True)
    put_card([held_out, recordings], root / TINY)


def put_table(readme: str, summary: dict) -> str:
    """The README with the digest of a run between its two marks."""
    phones = " PER is the share of phones that a small recogniser hears otherwise than in the clean recording."
    notes = (
        f"{about(summary)} Means over the same clips for all systems; the best enhancer of each column is bold, "
        "whoever it is; work in seconds of one core per second of audio."
        f"{phones if 'per' in summary['metrics'] else ''} [Listen](docs/samples/index.html)."
    )
    text = "\n\n".join([digest_table(summary), notes, footer(summary)])
    return BLOCK.sub(lambda _: f"{text}\n", readme)


def put_report(run: Path, folder: Path) -> None:
    """Copies a run's report, plots and summary; its players stay behind, with recordings that may not be passed on."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "plots", folder / "plots")
    shutil.copy(run / "summary.json", folder)
    report = (run / "report.md").read_text()
    (folder / "README.md").write_text(report.replace("(samples/index.html)", "(../samples/index.html)"))


def put_card(runs: list[Path], folder: Path) -> None:
    """Renews the evaluations in a model's folder, what its card states of them, and the card."""
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    evaluations = [Evaluation(str(run.resolve()), "dacse") for run in runs]
    facts = stage_evaluations(folder, folder, replace(Facts.read(folder), evaluations=evaluations))
    facts.write(folder)
    enhance = open_checkpoint(str(folder))
    (folder / "README.md").write_text(model_card(TINY_NAME, enhance.model, enhance.processor, facts, folder))


if __name__ == "__main__":
    main()
