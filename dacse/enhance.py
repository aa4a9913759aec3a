"""`dacse enhance`: audio files in, enhanced audio files out, from disk to disk."""

import os
import shutil
import sys
import tempfile
import time
from enum import StrEnum
from typing import Annotated

import typer

from dacse import default_model
from dacse.files import FORMATS, STANDARD, Job, plan_jobs
from dacse.results import Result, one_line, progress_bar, report, summarize, write_result
from hub_upload.places import check_place

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

    - `dacse enhance recordings/ -o enhanced/ --batch-size 16 --skip-existing`

    - `dacse enhance "talks/**/*.mp3" -o enhanced/ --keep-rate --strength 0.8`

    - `cat noisy.wav | dacse enhance - > clean.wav`
    """
    started = time.monotonic()
    try:
        jobs, problems = plan_jobs(inputs, output, audio_format)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json and any(job.target == STANDARD for job in jobs):
        raise typer.BadParameter("--json and the audio cannot both go to standard output; pass -o")
    results = [Result(name, None, "failed", error=why) for name, why in problems.items()]
    waiting = []
    for job in jobs:
        if job.target == STANDARD or overwrite or not os.path.exists(job.target):
            waiting.append(job)
        elif skip_existing:
            results.append(Result(job.source, job.target, "skipped"))
        else:
            why = f"{job.target} exists; pass --overwrite or --skip-existing"
            results.append(Result(job.source, job.target, "failed", error=why))
    for result in results:
        report(result)
    device_used = None
    if waiting:
        try:
            pipe = _load(model, codec, adapter, device, dtype, batch_size)
            device_used = str(pipe.device)
            with tempfile.TemporaryDirectory() as folder:
                enhanced = pipe.stream_many(
                    (_on_disk(job, folder) for job in waiting),
                    strength=strength,
                    keep_recording=keep_recording,
                    window_seconds=window_seconds,
                    overlap_seconds=overlap_seconds,
                    output_sampling_rate="input" if keep_rate else None,
                    do_sample=do_sample,
                    seed=seed,
                    **({"adapter": adapter} if adapter else {}),  # else the one that the model may come with
                )
                for job, (path, pieces) in zip(waiting, enhanced, strict=True):
                    rate = None if keep_rate else pipe.processor.sampling_rate
                    results.append(write_result(job, path, pieces, rate, audio_format, folder))
                    report(results[-1])
        except (OSError, ValueError) as error:
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(1) from error
    summarize(results, time.monotonic() - started, device_used, as_json)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _load(
    model: str | None, codec: str | None, adapter: str | None, device: str | None, dtype: str, batch_size: int | None
):
    """The pipeline, with what can be wrong about it found out before any file is read, and what it chose said."""
    with progress_bar() as progress:
        path = model or default_model()
        progress.add_task(f"loading {path}", total=None)
        from transformers.utils import logging

        from dacse.registration import register
        from modeling_dacse import DacSeForEnhancement
        from pipeline_dacse import AudioEnhancementPipeline
        from pipeline_dacse.companions_dacse import check_device, use_adapter

        register()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is wrong about a model is raised as well
        check_device(device)
        for place in filter(None, (path, codec)):
            check_place(place)
        loaded = DacSeForEnhancement.from_pretrained(path, dtype=str(dtype))
        pipe = AudioEnhancementPipeline(model=loaded, codec=codec, device=device, batch_size=batch_size)
        if adapter:
            use_adapter(pipe.model, adapter)
    precision = dtype if dtype == Dtype.int8 else str(pipe.dtype).removeprefix("torch.")
    typer.echo(f"{path} on {pipe.device} in {precision}, up to {pipe._batch_size} windows at a time", err=True)
    return pipe


def _on_disk(job: Job, folder: str) -> str:
    """The path to read; standard input is put into a file first."""
    if job.source != STANDARD:
        return job.source
    path = os.path.join(folder, "stdin")
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
