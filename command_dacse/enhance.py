"""`dacse enhance`: audio files in, enhanced audio files out, from disk to disk."""

import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from command_dacse import default_model
from command_dacse.cards import write_cards
from command_dacse.engine import EngineSettings
from command_dacse.files import FORMATS, STANDARD, plan_jobs
from command_dacse.options import SERVED_WINDOWS, check_options, check_served, check_shared, check_tables, parse_shard
from command_dacse.outputs import existing, prepare_targets, unwritable
from command_dacse.results import Result, check_report, failed_result, report, summarize, write_report
from command_dacse.search import is_table
from command_dacse.terminal import one_line, progress_bar, say, shown
from command_dacse.work import EnhanceWork, NumberedJob, SharedWork

AudioFormat = StrEnum("AudioFormat", FORMATS)
Dtype = StrEnum("Dtype", ["auto", "float32", "bfloat16", "float16"])
Choose = StrEnum("Choose", ["confidence", "dnsmos"])
MODEL, SPEED, MANY = "What the model is asked for", "Speed and memory", "Many files"  # after what most people need


def enhance(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="Files, folders or glob patterns, here or elsewhere (s3://, hf://datasets/, ...); lists of files"
            " (.csv, .tsv, .jsonl, .txt); data sets in parquet; or - for standard input.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="A file for one input, a folder for more, - for standard output."
        ),
    ] = None,
    audio_format: Annotated[AudioFormat | None, typer.Option("--format", help="Format of the results.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave results that exist.")] = False,
    keep_rate: Annotated[bool, typer.Option("--keep-rate", help="Write each file at its input's rate.")] = False,
    strength: Annotated[float, typer.Option(metavar="0..1", help="0 is the input, 1 the enhanced audio.")] = 1.0,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="DIR", help="Directory or Hub id.  [default: the embedded model]"),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="In the model's adapters/, or a directory or Hub id."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, ...  [default: the best here]"),
    ] = None,
    keep_recording: Annotated[
        bool | None,
        typer.Option(
            help="Filter the recording and fill its gaps; or all generated.  [default: as the model says]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    window_seconds: Annotated[
        float | None,
        typer.Option(help="Audio per prompt.  [default: 4.0, or what the model holds]", rich_help_panel=MODEL),
    ] = None,
    overlap_seconds: Annotated[
        float | None, typer.Option(help="Between windows.  [default: 0.2]", rich_help_panel=MODEL)
    ] = None,
    do_sample: Annotated[
        bool,
        typer.Option("--sample", help="Draw tokens instead of taking the likeliest.", rich_help_panel=MODEL),
    ] = False,
    candidates: Annotated[
        int, typer.Option(help="Draw so many answers to each window and keep the best.", rich_help_panel=MODEL)
    ] = 1,
    choose: Annotated[Choose, typer.Option(help="Which one is the best.", rich_help_panel=MODEL)] = Choose.confidence,
    seed: Annotated[
        int | None,
        typer.Option(help="Makes what is drawn repeatable, with the same inputs.", rich_help_panel=MODEL),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="Codec of a model that has no processor (plain Llama).", rich_help_panel=MODEL),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the language model.", rich_help_panel=SPEED)] = Dtype.auto,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round its matrices to 8 bits, for a CPU.", rich_help_panel=SPEED)
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Windows enhanced together, over all files.  [default: what suits model and device]",
            rich_help_panel=SPEED,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Address of a vLLM server that runs the model, as dacse convert --plain-llama writes it.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(help="Do only this part of the work, such as 1/4.", rich_help_panel=MANY)
    ] = "1/1",
    ray: Annotated[
        str | None,
        typer.Option(help="Share it out on Ray: local, auto, or the address of a cluster.", rich_help_panel=MANY),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Of a data set with several columns of audio.", rich_help_panel=MANY)
    ] = None,
    report_file: Annotated[
        str | None,
        typer.Option(
            "--report", help="Write a table of what became of each file: .csv or .parquet.", rich_help_panel=MANY
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a report for machines to standard output.", rich_help_panel=MANY),
    ] = False,
) -> None:
    """Enhance speech recordings of any length, rate and number of channels.

    A result appears only once it is complete. What fails is reported, the rest goes on, and the exit status is 1.

    - `dacse enhance noisy.wav -o clean.wav`

    - `dacse enhance memo.m4a clip.webm meeting.mp4 -o enhanced/`

    - `dacse enhance recordings/ -o enhanced/ --skip-existing`

    - `dacse enhance "talks/**/*.mp3" -o enhanced/ --keep-rate --strength 0.8`

    - `cat noisy.wav | dacse enhance - > clean.wav`
    """
    started = time.monotonic()
    try:
        if overwrite and skip_existing:
            raise ValueError("--overwrite and --skip-existing exclude each other; leave one of them out")
        part, parts = parse_shard(shard)
        plan = plan_jobs(inputs, output, audio_format)
        check_tables(report_file is not None or any(is_table(job.source) for job in plan.jobs))
        if report_file is not None:
            check_report(report_file, [*inputs, *(name for job in plan.jobs for name in (job.source, job.target))])
        check_served(server, adapter, int8)
        check_shared(ray, device, any(STANDARD in (job.source, job.target) for job in plan.jobs))
        if as_json and any(job.target == STANDARD for job in plan.jobs):
            raise ValueError("--json and the audio cannot both go to standard output; pass -o")
        waiting, results = _choose(list(enumerate(plan.jobs))[part - 1 :: parts], overwrite, skip_existing)
    except (OSError, ValueError) as error:
        say(f"error: {one_line(error)}")
        raise typer.Exit(2) from error
    for note in plan.notes:
        say(note)
    results += [Result(name, None, "failed", error=why) for name, why in plan.problems.items()]
    for result in results:
        report(result)
    options = {
        "strength": strength,
        "keep_recording": keep_recording,
        "window_seconds": window_seconds,
        "overlap_seconds": overlap_seconds,
        "output_sampling_rate": "input" if keep_rate else None,
        "batch_size": batch_size,
        "candidates": candidates,
        "choose": str(choose),
        "seed": seed,
        "generate": {"do_sample": do_sample or candidates > 1},
        **({"adapter": adapter} if adapter is not None else {}),  # else the one that the model may come with
    }
    if server is not None:  # which takes the likeliest code, and many requests at a time
        options |= {"minimum_risk": False, "batch_size": batch_size or SERVED_WINDOWS}
    settings = EngineSettings(model or default_model(), codec, device, str(dtype), int8, server, options)
    work, failure = EnhanceWork(settings, audio_format, column), None
    try:
        check_options(settings)
        for result in _enhance_all(work, waiting, ray, overwrite):
            results.append(result)
            report(result)
        if part == 1:
            write_cards(plan.cards, settings.model)
    except (OSError, ValueError) as error:
        failure = one_line(error)
        say(f"error: {failure}")
        done = {result.output for result in results}
        left = [job for _, job in waiting if job.target not in done]
        results += [Result(job.source, job.target, "failed", error=failure) for job in left]
    try:
        if report_file is not None:
            write_report(report_file, results)
        summarize(results, time.monotonic() - started, work.device, as_json, plan.notes, failure)
    except OSError as error:
        failure = one_line(error)
        say(f"error: {failure}")
    if failure or any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _choose(jobs: list[NumberedJob], overwrite: bool, skip_existing: bool) -> tuple[list[NumberedJob], list[Result]]:
    """The jobs to do, and what becomes of the others.

    Raises:
        OSError: The place of the results cannot be reached.
    """
    there = set() if overwrite else existing([job.target for _, job in jobs])
    waiting, results = [], []
    for place, job in jobs:
        if job.target not in there:
            waiting.append((place, job))
        elif skip_existing:
            results.append(Result(job.source, job.target, "skipped"))
        else:
            why = f"{job.target} exists; pass --overwrite or --skip-existing"
            results.append(Result(job.source, job.target, "failed", error=why))
    return waiting, results


def _enhance_all(work: EnhanceWork, jobs: list[NumberedJob], ray: str | None, overwrite: bool) -> Iterator[Result]:
    """Yields what becomes of each job, here or on a cluster.

    Raises:
        OSError, ValueError: The others cannot be done.
    """
    if not jobs:
        return
    prepare_targets([job.target for _, job in jobs])
    if ray is None:
        reasons = unwritable([job.target for _, job in jobs])
        yield from (failed_result(job, reasons[job.target]) for _, job in jobs if job.target in reasons)
        jobs = [(place, job) for place, job in jobs if job.target not in reasons]
        if not jobs:
            return
        with progress_bar() as progress:
            progress.add_task(shown(f"loading {work.settings.model}"), total=None)
            described = work.settings.describe(work.enhancer)
        say(described)
        yield from work.do(jobs)
        return
    from command_dacse.cluster import WorkerDied, run_on_ray

    failure = None
    use_gpus = work.settings.device != "cpu"
    with progress_bar() as progress:
        bar = progress.add_task("files", total=len(jobs))
        for chunk, answer in run_on_ray(ray, SharedWork(work, overwrite), jobs, use_gpus):
            progress.advance(bar, len(chunk))
            if isinstance(answer, WorkerDied):
                answer = [failed_result(job, answer) for _, job in chunk], None
            results, stopped = answer
            yield from results
            failure = failure or stopped
    if failure:
        raise OSError(failure)
