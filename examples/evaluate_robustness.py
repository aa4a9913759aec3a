"""How systems do beyond the training data: other languages, over 30 s, unseen combinations, voices or music behind.

    python examples/evaluate_robustness.py CORPUS -o run_robustness --systems noisy,clean,dacse,rnnoise

CORPUS is a folder with a MANIFEST.tsv whose columns kind, split, language and speaker say what its files are.
"""

from pathlib import Path
from typing import Annotated

import typer

from evaluation_dacse.benchmark import run_benchmark
from evaluation_dacse.report import write_report
from evaluation_dacse.robustness import render_suite


def main(
    corpus: str,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("run_robustness"),
    systems: str = "noisy,clean,dacse",
    clips: Annotated[int, typer.Option(help="Per slice; fewer than 20 say little.")] = 20,
    music: Annotated[str | None, typer.Option(help="Folder of music; without it chords are plucked.")] = None,
    metrics: str = "dnsmos,plcmos,stoi,mel_distance,phone_error_rate",
    processes: int = 1,
):
    test_set = render_suite(corpus, output / "test_set", clips, music)
    run_benchmark(test_set, systems.split(","), output, metrics.split(","), processes=processes)
    typer.echo(write_report(output).read_text())


if __name__ == "__main__":
    typer.run(main)
