"""`dacse evaluate`: systems over a test set, scored; listening tests of what came out. Loads little until it works."""

from pathlib import Path
from typing import Annotated

import typer

from .metrics import METRICS


def evaluate(
    test_set: Annotated[
        str | None,
        typer.Option(
            "--test-set", "-t", help="Folder of pairs or recordings, data set, preset, or with --recipe clean speech."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; goes on where it was.")] = Path(
        "evaluation"
    ),
    systems: Annotated[str, typer.Option("--systems", "-s", help="Names, separated by commas.")] = "noisy,clean,dacse",
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            "-m",
            help=f"Out of {', '.join(METRICS)}; NAME:MODEL picks a model. By default all that need none, and those "
            "whose model was downloaded before.",
        ),
    ] = None,
    against: Annotated[str, typer.Option(help="System to take paired differences against, besides noisy.")] = "noisy",
    recipe: Annotated[Path | None, typer.Option(help="Spoil the clean speech of --test-set by this recipe.")] = None,
    clips_per_task: Annotated[int, typer.Option(min=1, help="With --recipe.")] = 40,
    seed: Annotated[int, typer.Option(help="With --recipe.")] = 0,
    split: Annotated[str, typer.Option(help="Of a data set or manifest.")] = "test",
    where: Annotated[str | None, typer.Option(help="With --recipe: filter of the manifest's speech.")] = None,
    noise: Annotated[str | None, typer.Option(help="With --recipe: folder or data set of noise.")] = None,
    rooms: Annotated[str | None, typer.Option(help="With --recipe: folder or data set of room responses.")] = None,
    music: Annotated[str | None, typer.Option(help="With --recipe: folder or data set of music.")] = None,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, help="Workers, one CPU core each.")] = 1,
    device: Annotated[str, typer.Option(help="Where networks of torch run: cpu, cuda, ...")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips a DAC-SE1 checkpoint enhances together.")] = 8,
    listening: Annotated[
        Path | None, typer.Option(help="Build a MUSHRA page from the run in this folder, and nothing else.")
    ] = None,
    ratings: Annotated[
        list[Path] | None, typer.Option(help="With --listening: analyse these results of its page instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary for machines.")] = False,
) -> None:
    """Compare systems on a test set, with confidence intervals and paired differences.

    Systems: noisy, clean, codec[:MODEL], dacse[:MODEL][+ADAPTER], folder:DIR, noisereduce, webrtc, rnnoise,
    deepfilternet, dpdfnet, voicefixer, resemble-enhance; llase-g1, re-use and sidon say how to make a DIR of theirs.
    Test sets by name: voicebank-demand, and once they are downloaded ears-wham-v2:FOLDER, dns5-blind:FOLDER,
    plc-2022:FOLDER, hifitts-2:FOLDER (clean speech). The run's folder holds every output, a table per clip (parquet),
    the summary (JSON), the report (Markdown, plots, players) and what a model card needs; run again, it goes on where
    it was.

    Examples:

    - `dacse evaluate -t pairs/ -s noisy,dacse,rnnoise -o run`

    - `dacse evaluate -t corpus/ --recipe recipe.yaml --clips-per-task 40 -s noisy,clean,codec,dacse -o run -p 2`

    - `dacse evaluate -t hifitts-2:corpus --recipe recipe.yaml --noise noise/ --rooms rooms/ -s noisy,dacse -o run`

    - `dacse evaluate --listening run`

    - `dacse evaluate --listening run --ratings ana.json --ratings ben.json`
    """
    try:
        if listening and ratings:
            from .ratings import analyse, ratings_table

            result = analyse(listening, ratings)
            text = ratings_table(result)
        elif listening:
            from .listening import build_listening_test

            page = build_listening_test(listening)
            result, text = {"page": str(page)}, f"Open {page} in a browser."
        elif test_set:
            from .rendering import render_test_set
            from .testsets import open_test_set

            folder = output / "test_set"
            if recipe:
                sources = {"where": where, "noise": noise, "rooms": rooms, "music": music}
                clips = render_test_set(test_set, recipe, folder, clips_per_task, seed, split=split, **sources)
            else:
                clips = open_test_set(test_set, folder, split)
            workers = {"processes": processes, "device": device, "batch_size": batch_size}
            result = _run(clips, systems, output, metrics, quiet=as_json, against=against, **workers)
            text = (output / "report.md").read_text()
        else:
            raise typer.BadParameter("give --test-set, or --listening with the folder of a run")
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error}; pip install 'dacse[eval]' brings it", err=True)
        raise typer.Exit(1) from error
    except (ValueError, OSError, ImportError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        typer.echo(f"error: {error}{notes}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        import json

        text = json.dumps(result, indent=2)
    typer.echo(text)


def _run(test_set, systems: str, output: Path, metrics: str | None, quiet: bool, **options) -> dict:
    """Runs the benchmark, showing how far it is, and writes the report."""
    from rich.console import Console
    from rich.progress import Progress

    from .benchmark import run_benchmark
    from .metrics import metrics_at_hand
    from .report import write_report

    console = Console(stderr=True)
    console.print(f"test set {test_set.name}: {len(test_set.clips)} clips, checksum {test_set.checksum}")
    wanted = metrics.split(",") if metrics else metrics_at_hand()
    if not metrics and (missing := [name for name in METRICS if name not in wanted]):
        console.print(f"without {', '.join(missing)}: no model on this machine; -m NAME:MODEL names one")
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bars = {}

        def advance(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of)
            progress.update(bars[what], completed=done)

        names, wanted = ([name.strip() for name in names] for names in (systems.split(","), wanted))
        summary = run_benchmark(test_set, names, output, wanted, progress=advance, **options)
    write_report(output)
    return summary
