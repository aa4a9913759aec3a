"""Which files a command reads and which it writes. Knows paths; knows no audio."""

import glob
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au", ".w64", ".rf64", ".caf"}
FORMATS = ("wav", "flac", "ogg", "mp3")  # written
STANDARD = "-"  # standard input or output


@dataclass(frozen=True)
class Job:
    """One file to read and the one to write."""

    source: str
    target: str


def plan_jobs(inputs: list[str], output: str | None, audio_format: str | None) -> tuple[list[Job], dict[str, str]]:
    """Finds the files to read and where each result goes.

    Args:
        inputs: files, folders (searched recursively), glob patterns, or `-` for standard input.
        output: a file for one input file, a folder for several or for a folder, `-` for standard output; None writes
            `NAME.enhanced.wav` beside each input, and standard input to standard output.
        audio_format: one of `FORMATS`; by default the suffix of an output file, else wav.

    Returns:
        The jobs, and for each input that gives none the reason.

    Raises:
        ValueError: the output cannot hold the inputs, or is one of them.
    """
    found, problems = [], {}
    for argument in inputs:
        pairs = list(_find(argument, output))
        if pairs:
            found += pairs
        else:
            problems[argument] = _why_nothing(argument)
    if not found:
        return [], problems
    is_folder = len(inputs) > 1 or len(found) > 1 or os.path.isdir(inputs[0]) or str(output).endswith(os.sep)
    if output not in (None, STANDARD) and not is_folder and not os.path.isdir(output):
        suffix = Path(output).suffix[1:].lower()
        if audio_format is None and suffix not in FORMATS:
            raise ValueError(f"cannot write {output!r}; end it in .{', .'.join(FORMATS)}, or pass --format")
        if suffix in FORMATS and audio_format not in (None, suffix):
            raise ValueError(f"{output!r} ends in .{suffix}, and --format is {audio_format}; leave one of them out")
        jobs = [Job(source, output) for source, _ in found]
    elif output == STANDARD and is_folder:
        raise ValueError("standard output takes one input file; pass a folder with -o")
    else:
        jobs = [Job(source, _target(source, name, output, audio_format or "wav")) for source, name in found]
    _check_targets(jobs)
    return jobs, problems


@contextmanager
def replaced_when_done(path: str) -> Iterator[str]:
    """Gives a temporary path beside `path`, which takes its place at the end, or disappears if anything goes wrong.

    Raises:
        OSError: nothing can be written there.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        os.makedirs(folder or ".", exist_ok=True)
        open(temporary, "wb").close()  # the system's own error: libsndfile hides it
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}: {error.filename}); write somewhere else") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _find(argument: str, output: str | None) -> Iterator[tuple[str, str]]:
    """Yields the files an argument names, each with its name in an output folder."""
    if argument == STANDARD:
        yield STANDARD, "stdin"
    elif os.path.isdir(argument):
        for path in sorted(Path(argument).rglob("*")):
            is_audio = path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir()
            # a link that leads nowhere is taken, so that it is reported
            if is_audio and not _is_own_result(path, output, Path(argument)):
                yield str(path), str(path.relative_to(argument))
    elif os.path.exists(argument):
        yield argument, os.path.basename(argument)
    else:
        searched = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(argument).parts))
        for path in sorted(glob.glob(argument, recursive=True)):
            if os.path.isfile(path) and not _is_own_result(Path(path), output, searched):
                yield path, os.path.basename(path)


def _is_own_result(path: Path, output: str | None, searched: Path) -> bool:
    """Whether an earlier run into the same place, a folder inside the one that is searched, wrote this file."""
    if output is None:
        return path.stem.endswith(".enhanced")
    folder = Path(output).resolve()
    return searched.resolve() in folder.parents and folder in path.resolve().parents


def _why_nothing(argument: str) -> str:
    if os.path.isdir(argument):
        return f"folder without audio files ({', '.join(sorted(AUDIO_SUFFIXES))})"
    return "nothing matches" if glob.has_magic(argument) else "no such file or folder"


def _target(source: str, name: str, output: str | None, audio_format: str) -> str:
    if output == STANDARD or (output is None and source == STANDARD):
        return STANDARD
    if output is None:
        return str(Path(source).with_suffix(f".enhanced.{audio_format}"))
    return str(Path(output, name).with_suffix(f".{audio_format}"))


def _check_targets(jobs: list[Job]) -> None:
    by_target: dict[str, str] = {}
    sources = {os.path.realpath(job.source) for job in jobs if job.source != STANDARD}
    for job in jobs:
        if job.target == STANDARD:
            continue
        target = os.path.realpath(job.target)
        if target in sources:
            raise ValueError(f"the output {job.target!r} is an input; write somewhere else")
        if target in by_target:
            raise ValueError(f"{job.source!r} and {by_target[target]!r} would both be written to {job.target!r}")
        by_target[target] = job.source
