"""What became of each file: written, reported, summed up."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import typer

from dacse.files import STANDARD, Job, replaced_when_done

SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}  # kept from the input
LARGEST_WAV = 2**32 - 2**16  # bytes; the header counts in 32 bits


@dataclass
class Result:
    """What became of one input."""

    input: str
    output: str | None
    status: str  # enhanced, skipped or failed
    seconds: float = 0.0  # of audio
    error: str | None = None


def write_result(
    job: Job, path: str, pieces: Iterator, sampling_rate: int | None, audio_format: str | None, folder: str
) -> Result:
    """Writes the pieces (channel, sample) of one enhanced file and shows how far it is.

    Args:
        job: names of the input and the output.
        path: where the input lies.
        pieces: what the pipeline streams.
        sampling_rate: of the output, in Hz; None is the input's.
        audio_format: of the output; None goes by the name of the output.
        folder: for what is on its way to standard output.
    """
    import soundfile

    try:
        first = next(pieces)  # raises what is wrong with the input, before anything is written
        source = soundfile.info(path)
        rate = sampling_rate or source.samplerate
        target = os.path.join(folder, "stdout") if job.target == STANDARD else job.target
        audio_format = audio_format or (os.path.splitext(target)[1][1:].lower() if job.target != STANDARD else "wav")
        container, subtype = choose_encoding(audio_format, source.subtype, source.channels * source.duration * rate)
        with replaced_when_done(target) as temporary, progress_bar() as progress:
            bar = progress.add_task(job.source, total=source.duration)
            with soundfile.SoundFile(temporary, "w", rate, source.channels, subtype, format=container) as file:
                for piece in _chain(first, pieces):
                    file.write(piece.T)
                    progress.advance(bar, piece.shape[1] / rate)
        if job.target == STANDARD:
            with open(target, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        named = "standard input" if job.source == STANDARD else job.source
        return Result(job.source, job.target, "failed", error=one_line(error).replace(path, named))
    return Result(job.source, job.target, "enhanced", source.duration)


def choose_encoding(audio_format: str, source_subtype: str, num_values: float) -> tuple[str, str]:
    """libsndfile's names of the format and sample type of an output.

    The input's sample type is kept where the format has it. A wav beyond the 4 GB its header can count becomes RF64,
    its extension for that.

    >>> choose_encoding("wav", "PCM_24", 1e6), choose_encoding("flac", "FLOAT", 1e6)
    (('WAV', 'PCM_24'), ('FLAC', 'PCM_16'))
    >>> choose_encoding("wav", "VORBIS", 4e9)
    ('RF64', 'PCM_16')
    """
    import soundfile

    container = audio_format.upper()
    subtype = source_subtype
    if subtype not in SAMPLE_BYTES or not soundfile.check_format(container, subtype):
        subtype = soundfile.default_subtype(container)
    if container == "WAV" and num_values * SAMPLE_BYTES[subtype] > LARGEST_WAV:
        container = "RF64"
    return container, subtype


def report(result: Result) -> None:
    """Says at once what failed."""
    if result.status == "failed":
        named = result.error if result.input in result.error else f"{result.input}: {result.error}"
        typer.echo(f"failed: {named}", err=True)


def summarize(results: list[Result], seconds: float, device: str | None, as_json: bool) -> None:
    """One line for people, on standard error; with `as_json` a report for machines on standard output."""
    counts = {status: [r.status for r in results].count(status) for status in ("enhanced", "skipped", "failed")}
    audio = sum(result.seconds for result in results)
    if as_json:
        numbers = {"audio_seconds": audio, "wall_seconds": seconds, "device": device}
        print(json.dumps({"files": [asdict(result) for result in results], **counts, **numbers}, indent=2))
    else:
        files = ", ".join(f"{count} {status}" for status, count in counts.items())
        typer.echo(f"{files}; {audio:.1f} s of audio in {seconds:.1f} s", err=True)


def progress_bar():
    """A progress display on standard error, where that is a terminal; it goes away when done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def _chain(first, rest: Iterator) -> Iterator:
    yield first
    yield from rest
