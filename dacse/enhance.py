"""`dacse enhance`: audio files in, enhanced audio files out, from disk to disk."""

import os
import shutil
import sys
import tempfile
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from dacse import default_model
from dacse.files import FORMATS, STANDARD, Job, Plan, is_special, plan_jobs
from dacse.options import check_options
from dacse.results import Result, audio_warnings, name_of, report, summarize, write_result
from dacse.terminal import one_line, progress_bar, say, shown

AudioFormat = StrEnum("AudioFormat", FORMATS)
Dtype = StrEnum("Dtype", ["auto", "float32", "bfloat16", "float16", "int8"])


def enhance(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN...", help="Files, folders, glob patterns, or - for standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A file for one input, a folder for more, - for standard output."),
    ] = None,
    audio_format: Annotated[AudioFormat | None, typer.Option("--format", help="Format of the results.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Directory or Hub id.  [default: the embedded model]")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Codec of a model that has no processor (plain Llama).")] = None,
    adapter: Annotated[str | None, typer.Option(help="Name in the model's adapters/, directory or Hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...  [default: the best here]")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the language model.")] = Dtype.auto,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Windows enhanced together, over all files.  [default: what suits model and device]"),
    ] = None,
    strength: Annotated[float, typer.Option(min=0, max=1, help="0 is the input, 1 the enhanced audio.")] = 1.0,
    keep_recording: Annotated[
        bool | None,
        typer.Option(help="Filter the recording and fill its gaps; or all generated.  [default: as the model says]"),
    ] = None,
    window_seconds: Annotated[
        float | None, typer.Option(help="Audio per prompt.  [default: 4.0, or what the model holds]")
    ] = None,
    overlap_seconds: Annotated[float | None, typer.Option(help="Between windows.  [default: 0.2]")] = None,
    keep_rate: Annotated[bool, typer.Option("--keep-rate", help="Write each file at its input's rate.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave results that exist.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    do_sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Makes --sample repeatable, with the same inputs and --batch-size."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a report for machines to standard output.")] = False,
) -> None:
    """Enhance speech recordings of any length, rate and number of channels.

    Files are read and written piece by piece: length does not matter. A result appears only once it is complete, with
    the bit depth of its input. What fails is reported, the rest goes on, and the exit status is 1.

    Examples:

    - `dacse enhance noisy.wav -o clean.wav`

    - `dacse enhance memo.m4a clip.webm meeting.mp4 -o enhanced/`

    - `dacse enhance recordings/ -o enhanced/ --batch-size 16 --skip-existing`

    - `dacse enhance "talks/**/*.mp3" -o enhanced/ --keep-rate --strength 0.8`

    - `cat noisy.wav | dacse enhance - > clean.wav`
    """
    started = time.monotonic()
    try:
        if overwrite and skip_existing:
            raise ValueError("--overwrite and --skip-existing exclude each other; leave one of them out")
        plan = plan_jobs(inputs, output, audio_format)
        if as_json and any(job.target == STANDARD for job in plan.jobs):
            raise ValueError("--json and the audio cannot both go to standard output; pass -o")
    except ValueError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    for note in plan.notes:
        say(note)
    waiting, results = _choose(plan, overwrite, skip_existing)
    for result in results:
        report(result)
    device_used, failure = None, None
    with tempfile.TemporaryDirectory(prefix="dacse-") as folder:
        try:
            check_options(model or default_model(), codec, adapter, device, window_seconds, overlap_seconds)
            readable = _read_pipes(waiting, folder, results)
            if readable:
                pipe = _load(model, codec, adapter, device, dtype, batch_size)
                device_used = str(pipe.device)
                parameters = {
                    "strength": strength,
                    "keep_recording": keep_recording,
                    "window_seconds": window_seconds,
                    "overlap_seconds": overlap_seconds,
                    "output_sampling_rate": "input" if keep_rate else None,
                    "do_sample": do_sample,
                    "seed": seed,
                    **({"adapter": adapter} if adapter else {}),  # else the one that the model may come with
                }
                rate = None if keep_rate else pipe.processor.sampling_rate
                _enhance_all(pipe, readable, parameters, rate, audio_format, results)
        except (OSError, ValueError) as error:
            failure = one_line(error)
            say(f"error: {failure}")
            done = {result.input for result in results}
            results += [
                Result(job.source, job.target, "failed", error=failure) for job in waiting if job.source not in done
            ]
    try:
        summarize(results, time.monotonic() - started, device_used, as_json, plan.notes, failure)
    except OSError as error:
        failure = one_line(error)
        say(f"error: {failure}")
    if failure or any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _choose(plan: Plan, overwrite: bool, skip_existing: bool) -> tuple[list[Job], list[Result]]:
    """The jobs to do, and what becomes of the others."""
    results = [Result(name, None, "failed", error=why) for name, why in plan.problems.items()]
    waiting = []
    for job in plan.jobs:
        if job.target == STANDARD or overwrite or not os.path.isfile(job.target):
            waiting.append(job)
        elif skip_existing:
            results.append(Result(job.source, job.target, "skipped"))
        else:
            why = f"{job.target} exists; pass --overwrite or --skip-existing"
            results.append(Result(job.source, job.target, "failed", error=why))
    return waiting, results


def _read_pipes(jobs: list[Job], folder: str, results: list[Result]) -> list[tuple[Job, str]]:
    """Each job with the path to read; what comes through a pipe, which can be read but once, is put into a file."""
    readable = []
    for number, job in enumerate(jobs):
        if job.source != STANDARD and not is_special(job.source):
            readable.append((job, job.source))
            continue
        path = os.path.join(folder, f"input{number}")
        try:
            with open(path, "wb") as file:
                if job.source == STANDARD:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                else:
                    with open(job.source, "rb") as pipe:
                        shutil.copyfileobj(pipe, file)
            readable.append((job, path))
        except OSError as error:
            results.append(Result(job.source, job.target, "failed", error=one_line(error)))
            report(results[-1])
    return readable


def _enhance_all(
    pipe,
    jobs: list[tuple[Job, str]],
    parameters: dict[str, Any],
    sampling_rate: int | None,
    audio_format: str | None,
    results: list[Result],
) -> None:
    """Appends what becomes of each job, as it is done."""
    with audio_warnings() as said:
        enhanced = pipe.stream_many((path for _, path in jobs), **parameters)
        for (job, path), (_, pieces) in zip(jobs, enhanced, strict=True):
            result = write_result(job, path, pieces, sampling_rate, audio_format)
            result.warnings += [text.replace(path, name_of(job.source)) for text in said.pop(path, ())]
            results.append(result)
            report(result)


def _load(
    model: str | None, codec: str | None, adapter: str | None, device: str | None, dtype: str, batch_size: int | None
):
    """The pipeline, with what can be wrong about it found out before any file is read, and what it chose said."""
    with progress_bar() as progress:
        path = model or default_model()
        progress.add_task(shown(f"loading {path}"), total=None)
        from transformers.utils import logging

        from dacse.registration import register
        from modeling_dacse import DacSeForEnhancement
        from pipeline_dacse import AudioEnhancementPipeline
        from pipeline_dacse.companions_dacse import check_device, use_adapter

        register()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is wrong about a model is raised as well
        check_device(device)
        loaded = DacSeForEnhancement.from_pretrained(path, dtype=str(dtype))
        pipe = AudioEnhancementPipeline(model=loaded, codec=codec, device=device, batch_size=batch_size)
        if adapter:
            use_adapter(pipe.model, adapter)
    precision = dtype if dtype == Dtype.int8 else str(pipe.dtype).removeprefix("torch.")
    say(f"{path} on {pipe.device} in {precision}, up to {pipe._batch_size} windows at a time")
    return pipe
