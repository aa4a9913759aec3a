"""What became of each file: written, reported, summed up."""

import contextlib
import io
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from dacse.files import STANDARD, Job, output_format
from dacse.formats import choose_encoding
from dacse.outputs import naming, open_sound, written_when_done
from dacse.terminal import one_line, progress_bar, say, shown, write_out

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


def write_result(job: Job, path: str, pieces: Iterator, sampling_rate: int | None, audio_format: str | None) -> Result:
    """Writes the pieces (channel, sample) of one enhanced file and shows how far it is.

    Args:
        job: names of the input and the output.
        path: where the input lies.
        pieces: what the pipeline streams.
        sampling_rate: of the output, in Hz; None is the input's.
        audio_format: of the output; None goes by the name of the output.
    """
    from processing_dacse.audio_dacse import stream_audio

    try:
        first = next(pieces)  # raises what is wrong with the input, before anything is written
        source = stream_audio(path)
        source.file.close()
        rate, audio_format = sampling_rate or source.sampling_rate, output_format(job.target, audio_format)
        seconds = (source.estimated_samples or 0) / source.sampling_rate
        longest = seconds or os.path.getsize(path) / LEAST_BYTES_A_SECOND
        encoding = choose_encoding(audio_format, source.sample_type, rate, source.channels, longest)
        like = path if path == job.source else None
        with written_when_done(job.target, like) as file, progress_bar() as progress:
            bar = progress.add_task(shown(job.source), total=seconds or None)
            with open_sound(file, job.target, encoding, rate, source.channels, source.tags) as write:
                done = 0.0
                for piece in itertools.chain([first], pieces):
                    write(piece)
                    done += piece.shape[1] / rate
                    progress.update(bar, completed=done)
    except (OSError, ValueError) as error:
        message = one_line(error).replace(path, name_of(job.source))
        return Result(job.source, job.target, "failed", error=message)
    return Result(job.source, job.target, "enhanced", done, warnings=[encoding.loss] if encoding.loss else [])


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
