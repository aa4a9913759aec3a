"""Which files a command reads and what the results are called. Knows paths and addresses; knows no audio."""

import glob
import itertools
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from command_dacse.manifests import is_manifest, read_manifest
from command_dacse.remote import is_remote
from command_dacse.search import (
    CARD,
    TABLE,
    Findings,
    LeftOut,
    is_own_result,
    is_special,
    is_table,
    search_folder,
    search_remote,
)
from command_dacse.terminal import one_line

FORMATS = ("wav", "flac", "ogg", "mp3")  # written
WEB = ("http://", "https://")  # files, never searched
STANDARD = "-"  # standard input or output
STANDARD_OUTPUTS = {STANDARD, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}


@dataclass(frozen=True)
class Job:
    """One file to read and the one to write."""

    source: str
    target: str


@dataclass
class Plan:
    """What a command is to do.

    Attributes:
        jobs: What to enhance, and where to.
        problems: Of each input that gives nothing, or a result that cannot be told from another, the reason.
        notes: What is left out, a line for each folder.
        cards: Of the data sets among the inputs, and where those of their results go.
    """

    jobs: list[Job] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cards: dict[str, str] = field(default_factory=dict)


def plan_jobs(inputs: list[str], output: str | None, audio_format: str | None) -> Plan:
    """Finds the files to read and where each result goes.

    Args:
        inputs: Files, pipes, folders (searched through, links to folders too), glob patterns, addresses of all of
            these, lists of files, or `-` for standard input. A folder without recordings may hold a data set: tables.
        output: A file for one input file, a folder for several or for a folder, `-` for standard output; None writes
            `NAME.enhanced.wav` beside each input, and standard input to standard output.
        audio_format: One of `FORMATS`; by default the suffix of an output file, else wav.

    Raises:
        ValueError: The output cannot hold the inputs, is named like a file and is to be a folder, or is an input.
    """
    plan, found = Plan(), {}
    output = STANDARD if output in STANDARD_OUTPUTS else output
    for argument in inputs:
        files = _find(argument, output, plan)
        if not files and argument not in plan.problems:
            plan.problems[argument] = _why_nothing(argument)
        found.update({_identity(source): (source, name) for source, name in files if _identity(source) not in found})
    sources = list(found.values())
    if not sources:
        return plan
    is_folder = len(inputs) > 1 or len(sources) > 1 or _is_folder(inputs[0], sources) or str(output).endswith(os.sep)
    if output == STANDARD and is_folder:
        raise ValueError("standard output takes one input file; pass a folder with -o")
    if output is None:
        names = _distinct_names([(_beside(source), source) for source, _ in sources], audio_format, ".enhanced")
        targets = [STANDARD if source == STANDARD else name for (source, _), name in zip(sources, names, strict=True)]
    elif output == STANDARD or not (is_folder or os.path.isdir(output)):
        _check_suffix(output, sources[0][0], audio_format)
        targets = [output]
    else:
        _check_folder(output)
        targets = [os.path.join(output, name) for name in _distinct_names(sources, audio_format)]
        plan.cards = {card: os.path.join(output, CARD) for card in plan.cards}
    _add_jobs(plan, sources, targets)
    return plan


def output_format(target: str, audio_format: str | None) -> str:
    """The format of a result: the one asked for, or the one its name ends in, or wav."""
    suffix = Path(target).suffix[1:].lower()
    return audio_format or (suffix if suffix in FORMATS else "wav")


def _find(argument: str, output: str | None, plan: Plan) -> list[tuple[str, str]]:
    """The files an argument names, each with its name in an output folder; notes what it leaves out."""
    if argument == STANDARD:
        return [(STANDARD, "stdin")]
    try:
        if is_manifest(argument):
            return read_manifest(argument)
        if argument.startswith(WEB):
            return [(argument, os.path.basename(argument.partition("?")[0]))]
        if is_remote(argument):
            return _note(argument, search_remote(argument, output), plan)
    except (OSError, ValueError) as error:
        plan.problems[argument] = one_line(error)
        return []
    if os.path.isdir(argument):
        return _note(argument, search_folder(argument, output), plan)
    if os.path.lexists(argument):
        return [(argument, os.path.basename(argument))]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(argument).parts))
    paths = [path for path in sorted(glob.glob(argument, recursive=True)) if not os.path.isdir(path)]
    own = [path for path in paths if is_own_result(Path(path), output, fixed)]
    taken = [path for path in paths if path not in own]
    files = [(path if path != STANDARD else f"./{path}", os.path.relpath(path, fixed)) for path in taken]
    return _note(argument, Findings(files, LeftOut(results=own)), plan)


def _note(argument: str, found: Findings, plan: Plan) -> list[tuple[str, str]]:
    """The files that were found; the rest goes into the plan."""
    plan.problems |= found.problems
    if str(found.left_out):
        plan.notes.append(f"{argument}: left out {found.left_out}")
    if found.card is not None:
        plan.cards[found.card] = found.card
    return found.files


def _identity(source: str) -> str:
    """What makes a file one file, whatever path leads to it; a pipe or link stands for itself."""
    return source if source == STANDARD or is_remote(source) else os.path.abspath(source)


def _is_folder(argument: str, found: list[tuple[str, str]]) -> bool:
    """Whether an argument names more than one file, even if one is found there."""
    if is_remote(argument) and not glob.has_magic(argument):
        return argument != found[0][0]
    return os.path.isdir(argument) or is_manifest(argument)


def _why_nothing(argument: str) -> str:
    if is_manifest(argument):
        return "it lists no files"
    if os.path.isdir(argument) or is_remote(argument):
        return (
            "folder without audio files, which end in .wav, .m4a, .mp4, ...; what is called otherwise is read if it is"
            f" named: {os.path.join(argument, '*')!r}"
        )
    return "nothing matches" if glob.has_magic(argument) else "no such file or folder"


def _check_suffix(output: str, source: str, audio_format: str | None) -> None:
    suffix = Path(output).suffix[1:].lower()
    if is_table(source) != is_table(output) and (is_table(source) or is_table(output)):
        raise ValueError(f"a table becomes a table, ending in {TABLE}: not {source!r} {output!r}")
    if output == STANDARD or is_special(output) or is_table(output):
        return
    if audio_format is None and suffix not in FORMATS:
        raise ValueError(f"cannot write {output!r}; end it in .{', .'.join(FORMATS)}, or pass --format")
    if suffix in FORMATS and audio_format not in (None, suffix):
        raise ValueError(f"{output!r} ends in .{suffix}, and --format is {audio_format}; leave one of them out")


def _check_folder(output: str) -> None:
    is_new = not output.endswith(os.sep) and not os.path.isdir(output)
    if is_new and Path(output).suffix[1:].lower() in FORMATS:
        raise ValueError(f"{output!r} is named like one file, and the input is not one; give a folder with -o")


def _beside(source: str) -> str:
    if is_special(source) or is_remote(source):
        raise ValueError(f"{source!r} is no file that a result could lie beside; pass -o")
    return source


def _distinct_names(sources: list[tuple[str, str]], audio_format: str | None, mark: str = "") -> list[str]:
    """Names of results: those of the sources with a new ending, and as much more as tells them apart.

    >>> sources = [("a.wav", "a.wav"), ("a.mp3", "a.mp3"), ("x/b.wav", "b.wav"), ("y/b.wav", "b.wav")]
    >>> _distinct_names(sources, None)
    ['a.wav', 'a.mp3.wav', 'x/b.wav', 'y/b.wav']
    """

    def ending(name: str) -> str:
        return TABLE if is_table(name) else f".{audio_format or 'wav'}"

    names = [str(Path(name).with_suffix(mark + ending(name))) for _, name in sources]

    def with_old_ending(index: int) -> str:
        name = sources[index][1]
        return names[index] if Path(name).suffix == ending(name) else name + mark + ending(name)

    def with_folders(index: int) -> str:
        equal = [os.path.abspath(source) for source, name in sources if name == sources[index][1]]
        if len(equal) == 1:
            return names[index]
        name = os.path.relpath(os.path.abspath(sources[index][0]), os.path.commonpath(map(os.path.dirname, equal)))
        return str(Path(name).with_suffix(mark + ending(name)))

    for rename in (with_old_ending, with_folders):
        counts = Counter(names)
        names = [rename(index) if counts[name] > 1 else name for index, name in enumerate(names)]
    return names


def _add_jobs(plan: Plan, sources: list[tuple[str, str]], targets: list[str]) -> None:
    inputs = {os.path.realpath(source) for source, _ in sources if source != STANDARD and not is_special(source)}
    taken: dict[str, str] = {}
    for (source, _), target in zip(sources, targets, strict=True):
        place = os.path.realpath(target)
        if target != STANDARD and place in inputs:
            raise ValueError(f"the output {target!r} is an input; write somewhere else")
        if place in taken:
            plan.problems[source] = f"its result would be {target}, as that of {taken[place]}; enhance it apart"
        else:
            taken[place] = source
            plan.jobs.append(Job(source, target))
