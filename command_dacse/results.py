"""What became of each file: written, reported, summed up."""

import contextlib
import errno
import io
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from command_dacse.files import STANDARD, Job, output_format
from command_dacse.formats import choose_encoding
from command_dacse.outputs import naming, open_sound, unwritable, written_when_done
from command_dacse.remote import is_remote
from command_dacse.search import TABLE, is_special
from command_dacse.terminal import one_line, progress_bar, say, shown, write_out

if TYPE_CHECKING:
    from pipeline_dacse.call_dacse import EnhancedRecording

CSV = ".csv"
REPORTS = (CSV, TABLE)
FULL = (errno.ENOSPC, errno.EDQUOT)
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


class DiskFull(OSError):
    """Nothing more can be written: what else there is to do would be done in vain."""


def write_result(job: Job, enhanced: "EnhancedRecording", audio_format: str | None) -> Result:
    """Writes the pieces of one enhanced recording and shows how far it is.

    Args:
        job: Names of the input and the output.
        enhanced: What the engine streams.
        audio_format: Of the output; None goes by the name of the output.

    Raises:
        DiskFull: There is no room left.
    """
    like = None if job.source == STANDARD or is_remote(job.source) else job.source
    try:
        with progress_bar() as progress:
            bar = progress.add_task(shown(job.source), total=None)

            def follow(done: float, seconds: float | None) -> None:
                progress.update(bar, completed=done, total=seconds)

            target = written_when_done(job.target, like)
            done, loss = write_sound(enhanced, target, job.target, audio_format, follow)
    except (OSError, ValueError) as error:
        return failed_result(job, error)
    return Result(job.source, job.target, "enhanced", done, warnings=[loss] if loss else [])


def write_sound(
    enhanced: "EnhancedRecording",
    into: AbstractContextManager[BinaryIO],
    target: str,
    audio_format: str | None,
    follow: Callable[[float, float | None], None] = lambda done, seconds: None,
) -> tuple[float, str | None]:
    """Writes one enhanced recording as an audio file.

    Args:
        enhanced: What the engine streams.
        into: Opens the file, once there is something to write.
        target: What the file will be called.
        audio_format: Of the file; None goes by its name.
        follow: Called with the seconds that are written, and those there are, if that is known.

    Returns:
        Seconds of audio, and what the format has lost of it, if anything.

    Raises:
        ValueError: It is no audio, or the format cannot hold it.
        OSError: It cannot be opened, or not be written.
    """
    pieces = iter(enhanced)
    first = next(pieces)  # raises what is wrong with the input, before anything is written
    recording, source = enhanced.recording, enhanced.recording.stream
    rate = recording.sampling_rate
    seconds = (recording.num_samples or source.estimated_samples or 0) / source.sampling_rate
    longest = seconds or _longest_seconds(source.file)
    encoding = choose_encoding(output_format(target, audio_format), source.sample_type, rate, source.channels, longest)
    done = 0.0
    with into as file, open_sound(file, target, encoding, rate, source.channels, source.tags) as write:
        for piece in itertools.chain([first], pieces):
            write(piece.audio)
            done += piece.audio.shape[1] / rate
            follow(done, seconds or None)
    return done, encoding.loss


def failed_result(job: Job, error: OSError | ValueError) -> Result:
    """What becomes of a job that failed.

    Raises:
        DiskFull: The error is that there is no room left.
    """
    if isinstance(error, OSError) and error.errno in FULL and not is_special(job.target):
        raise DiskFull(error.errno, error.strerror) from error
    return Result(job.source, job.target, "failed", error=one_line(error))


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
        OSError: The report cannot be written.
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


def check_report(path: str, others: Iterable[str]) -> None:
    """Sees whether a report can be written, before there is anything to report.

    Args:
        path: Of the report.
        others: Files that are read or written, none of which it may be.

    Raises:
        ValueError: It is of no kind that is written, or one of the others.
        OSError: Nothing can be written there.
    """
    if Path(path).suffix.lower() not in REPORTS:
        raise ValueError(f"--report is {path!r}; end it in {' or '.join(REPORTS)}")
    if os.path.realpath(path) in map(os.path.realpath, others):
        raise ValueError(f"--report {path!r} would replace an input or a result; give it a name of its own")
    for error in unwritable([path]).values():
        raise error


def write_report(path: str, results: list[Result]) -> None:
    """Writes what became of each input as a table, a row for each, whole or not at all: CSV or parquet, by its name.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow
    from pyarrow import csv, parquet

    is_csv = Path(path).suffix.lower() == CSV
    rows = [asdict(result) for result in results]
    texts = {name: pyarrow.string() for name in ("input", "output", "status", "error")}
    warned = pyarrow.string() if is_csv else pyarrow.list_(pyarrow.string())
    schema = pyarrow.schema(texts | {"seconds": pyarrow.float64(), "warnings": warned})
    for row in rows:  # a name on a disk need not be text
        row |= {name: row[name] and os.fsencode(row[name]).decode(errors="backslashreplace") for name in texts}
        if is_csv:  # whose cells hold no lists
            row["warnings"] = "; ".join(row["warnings"]) or None
    table = pyarrow.Table.from_pylist(rows, schema)
    with written_when_done(path) as file:
        (csv.write_csv if is_csv else parquet.write_table)(table, file)


def name_of(source: str) -> str:
    """What people call an input."""
    return "standard input" if source == STANDARD else source


def _named(text: str, result: Result) -> str:
    name = name_of(result.input)
    return text if text.startswith(name) else f"{name}: {text}"
