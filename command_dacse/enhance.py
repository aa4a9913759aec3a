"""`dacse enhance`: audio files in, enhanced audio files out, from disk to disk."""

import os
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from command_dacse import default_model
from command_dacse.files import FORMATS, STANDARD, Job, Plan, plan_jobs
from command_dacse.options import check_options
from command_dacse.results import Result, audio_warnings, name_of, report, summarize, write_result
from command_dacse.terminal import one_line, progress_bar, say, shown

if TYPE_CHECKING:
    from pipeline_dacse import EnhanceOptions, Enhancer

AudioFormat = StrEnum("AudioFormat", FORMATS)
Dtype = StrEnum("Dtype", ["auto", "float32", "bfloat16", "float16"])
Choose = StrEnum("Choose", ["confidence", "dnsmos"])


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
    int8: Annotated[bool, typer.Option("--int8", help="Round its matrices to 8 bits, for a CPU.")] = False,
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
    candidates: Annotated[int, typer.Option(min=1, help="Draw so many answers to each window and keep the best.")] = 1,
    choose: Annotated[Choose, typer.Option(help="Which one is the best.")] = Choose.confidence,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Makes what is drawn repeatable, with the same inputs."),
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

    - `dacse enhance noisy.wav --candidates 8 --choose dnsmos`

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
    asked = {
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
        **({"adapter": adapter} if adapter else {}),  # else the one that the model may come with
    }
    try:
        check_options(model or default_model(), codec, adapter, device, window_seconds, overlap_seconds)
        if waiting:
            enhancer, options = _load(model or default_model(), codec, device, dtype, int8, asked)
            device_used = str(enhancer.model.device)
            _enhance_all(enhancer, waiting, options, audio_format, results)
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


class StandardInput:
    """Standard input as a file to be read, under the name that people know it by."""

    name = name_of(STANDARD)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all."""
        return sys.stdin.buffer.read(size)


def _load(
    path: str, codec: str | None, device: str | None, dtype: str, int8: bool, asked: dict[str, Any]
) -> tuple["Enhancer", "EnhanceOptions"]:
    """The engine and the options of the call, checked before any file is read; what was chosen is said."""
    with progress_bar() as progress:
        progress.add_task(shown(f"loading {path}"), total=None)
        import torch
        from transformers.utils import logging

        import dacse
        from pipeline_dacse.device_dacse import check_device
        from pipeline_dacse.layout_dacse import find_processor, new_processor

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is wrong about a model is raised as well
        options = dacse.EnhanceOptions(**asked)
        check_device(device)
        place = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        rounding = {"quantization_config": dacse.Int8Config()} if int8 else {}
        model = dacse.DacSeForEnhancement.from_pretrained(path, dtype=str(dtype), **rounding).to(place)
        processor = find_processor(model) if codec is None else new_processor(model, codec)
        processor.audio_tokenizer.to(place)
        enhancer = dacse.Enhancer(model, processor)
        enhancer.check(options)
    precision = "int8" if int8 else str(model.dtype).removeprefix("torch.")
    windows = options.batch_size or enhancer.default_windows(options)
    say(f"{path} on {model.device} in {precision}, up to {windows} windows at a time")
    return enhancer, options


def _enhance_all(
    enhancer: "Enhancer",
    jobs: list[Job],
    options: "EnhanceOptions",
    audio_format: str | None,
    results: list[Result],
) -> None:
    """Appends what becomes of each job, as it is done."""
    sources = (StandardInput() if job.source == STANDARD else job.source for job in jobs)
    with audio_warnings() as said:
        for job, enhanced in zip(jobs, enhancer.stream_many(sources, options), strict=True):
            result = write_result(job, enhanced, audio_format)
            result.warnings += said.pop(name_of(job.source), ())
            results.append(result)
            report(result)
