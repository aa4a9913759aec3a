"""What became of each file: written, reported, summed up."""

import contextlib
import io
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from command_dacse.files import STANDARD, Job, output_format
from command_dacse.formats import choose_encoding
from command_dacse.outputs import naming, open_sound, written_when_done
from command_dacse.terminal import one_line, progress_bar, say, shown, write_out

if TYPE_CHECKING:
    from pipeline_dacse.engine_dacse import EnhancedRecording

LEAST_BYTES_A_SECOND = 2000  # of any recording, where its header does not say how long it is


@dataclass
class Result:
    """What became of one input."""

    input: str
    output: str | None
    status: str  # enhanced, skipped or failed
    seconds: float = 0.0  # of audio
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def write_result(job: Job, enhanced: "EnhancedRecording", audio_format: str | None) -> Result:
    """Writes the pieces of one enhanced recording and shows how far it is.

    Args:
        job: Names of the input and the output.
        enhanced: What the engine streams.
        audio_format: Of the output; None goes by the name of the output.
    """
    done, loss = 0.0, None
    try:
        pieces = iter(enhanced)
        first = next(pieces)  # raises what is wrong with the input, before anything is written
        recording, source = enhanced.recording, enhanced.recording.stream
        rate, audio_format = recording.sampling_rate, output_format(job.target, audio_format)
        seconds = (recording.num_samples or source.estimated_samples or 0) / source.sampling_rate
        longest = seconds or _longest_seconds(source.file)
        encoding = choose_encoding(audio_format, source.sample_type, rate, source.channels, longest)
        loss = encoding.loss
        like = None if job.source == STANDARD else job.source
        with written_when_done(job.target, like) as file, progress_bar() as progress:
            bar = progress.add_task(shown(job.source), total=seconds or None)
            with open_sound(file, job.target, encoding, rate, source.channels, source.tags) as write:
                for piece in itertools.chain([first], pieces):
                    write(piece.audio)
                    done += piece.audio.shape[1] / rate
                    progress.update(bar, completed=done)
    except (OSError, ValueError) as error:
        return Result(job.source, job.target, "failed", error=one_line(error))
    return Result(job.source, job.target, "enhanced", done, warnings=[loss] if loss else [])


def _longest_seconds(file: BinaryIO) -> float:
    """What a recording lasts at most, where its header does not say how long it is: by the size of what is read."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return size / LEAST_BYTES_A_SECOND


@contextlib.contextmanager
def audio_warnings() -> Iterator[dict[str, list[str]]]:
    """Collects what is said about recordings while they are read, by the name of each; once, however often said."""
    from processing_dacse.audio_arrays_dacse import AudioWarning

    said: dict[str, list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", AudioWarning)
        show = warnings.showwarning

        def collect(message, category, *args, **kwargs) -> None:
            if not issubclass(category, AudioWarning):
                return show(message, category, *args, **kwargs)
            texts = said.setdefault(message.name, [])
            if str(message) not in texts:
                texts.append(str(message))

        warnings.showwarning = collect
        yield said


def report(result: Result) -> None:
    """Says at once what failed, and what is to be known about what did not."""
    for text in result.warnings:
        say(f"warning: {_named(text, result)}")
    if result.status == "failed":
        say(f"failed: {_named(result.error, result)}")


def summarize(
    results: list[Result], seconds: float, device: str | None, as_json: bool, notes: list[str], error: str | None
) -> None:
    """One line for people, on standard error; with `as_json` a report for machines on standard output.

    Raises:
        OSError: the report cannot be written.
    """
    counts = {status: [r.status for r in results].count(status) for status in ("enhanced", "skipped", "failed")}
    audio = sum(result.seconds for result in results)
    if as_json:
        facts = {"audio_seconds": audio, "wall_seconds": seconds, "device": device, "left_out": notes, "error": error}
        text = json.dumps({"files": [asdict(result) for result in results], **counts, **facts}, indent=2)
        with naming(STANDARD):
            write_out(io.BytesIO(text.encode() + b"\n"))
    elif error is None:
        files = ", ".join(f"{count} {status}" for status, count in counts.items())
        say(f"{files}; {audio:.1f} s of audio in {seconds:.1f} s")


def name_of(source: str) -> str:
    """What people call an input."""
    return "standard input" if source == STANDARD else source


def _named(text: str, result: Result) -> str:
    name = name_of(result.input)
    return text if text.startswith(name) else f"{name}: {text}"
