"""Which files a command reads and what the results are called. Knows paths; knows no audio."""

import glob
import itertools
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .bwf .rf64 .w64 .aif .aiff .aifc .au .snd .caf .sph .nist .flac .ogg .oga .opus .mp3 .mp2 .aac .m4a"
    " .m4b .wma .amr .mp4 .m4v .mov .3gp .3g2 .webm .mkv .mka .ogv .avi .wmv .asf .flv .mts .m2ts .mpg .mpeg".split()
)
FORMATS = ("wav", "flac", "ogg", "mp3")  # written
NAMED = 4  # of what is left out
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
        jobs: what to enhance, and where to.
        problems: of each input that gives nothing, or a result that cannot be told from another, the reason.
        notes: what is left out, a line for each folder.
    """

    jobs: list[Job] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_jobs(inputs: list[str], output: str | None, audio_format: str | None) -> Plan:
    """Finds the files to read and where each result goes.

    Args:
        inputs: files, pipes, folders (searched through, links to folders too), glob patterns, or `-` for standard
            input.
        output: a file for one input file, a folder for several or for a folder, `-` for standard output; None writes
            `NAME.enhanced.wav` beside each input, and standard input to standard output.
        audio_format: one of `FORMATS`; by default the suffix of an output file, else wav.

    Raises:
        ValueError: the output cannot hold the inputs, or is one of them.
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
    is_folder = len(inputs) > 1 or len(sources) > 1 or os.path.isdir(inputs[0]) or str(output).endswith(os.sep)
    if output == STANDARD and is_folder:
        raise ValueError("standard output takes one input file; pass a folder with -o")
    ending = f".{audio_format or 'wav'}"
    if output is None:
        names = _distinct_names([(_beside(source), source) for source, _ in sources], ending, f".enhanced{ending}")
        targets = [STANDARD if source == STANDARD else name for (source, _), name in zip(sources, names, strict=True)]
    elif output == STANDARD or not (is_folder or os.path.isdir(output)):
        _check_suffix(output, audio_format)
        targets = [output]
    else:
        targets = [os.path.join(output, name) for name in _distinct_names(sources, ending, ending)]
    _add_jobs(plan, sources, targets)
    return plan


def output_format(target: str, audio_format: str | None) -> str:
    """The format of a result: the one asked for, or the one its name ends in, or wav."""
    suffix = Path(target).suffix[1:].lower()
    return audio_format or (suffix if suffix in FORMATS else "wav")


def is_special(path: str) -> bool:
    """Whether a path is one of a pipe, a device or a socket, which is written through and never replaced."""
    try:
        return not (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISDIR(mode))
    except OSError:
        return False


@dataclass
class _LeftOut:
    """What a search through a folder passes over."""

    kinds: Counter = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = [f"{count} {kind or 'without ending'}" for kind, count in self.kinds.most_common()]
        named = {
            "other kinds": (self.kinds.total(), kinds),
            "hidden": (len(self.hidden), self.hidden),
            "results of an earlier run": (len(self.results), self.results),
            "pipes or devices": (len(self.special), self.special),
            "links to folders that are searched already": (len(self.loops), self.loops),
        }
        return "; ".join(
            f"{what}: {count} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for what, (count, names) in named.items()
            if names
        )


def _find(argument: str, output: str | None, plan: Plan) -> list[tuple[str, str]]:
    """The files an argument names, each with its name in an output folder; notes what it leaves out."""
    if argument == STANDARD:
        return [(STANDARD, "stdin")]
    if os.path.isdir(argument):
        return _search(argument, output, plan)
    if os.path.lexists(argument):
        return [(argument, os.path.basename(argument))]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(argument).parts))
    paths = [path for path in sorted(glob.glob(argument, recursive=True)) if not os.path.isdir(path)]
    own = [path for path in paths if _is_own_result(Path(path), output, fixed)]
    if own:
        plan.notes.append(f"{argument}: left out {_LeftOut(results=own)}")
    taken = [path for path in paths if path not in own]
    return [(path if path != STANDARD else f"./{path}", os.path.relpath(path, fixed)) for path in taken]


def _search(folder: str, output: str | None, plan: Plan) -> list[tuple[str, str]]:
    found, left_out = [], _LeftOut()

    def unreadable(error: OSError) -> None:
        plan.problems[error.filename] = f"folder cannot be read ({error.strerror})"

    linked: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        for name in sorted(folders):
            path = os.path.join(place, name)
            if name.startswith("."):
                left_out.hidden.append(os.path.relpath(path, folder) + os.sep)
            elif os.path.islink(path) and _is_searched(path, folder, linked):
                left_out.loops.append(os.path.relpath(path, folder))
            else:
                linked |= {os.path.realpath(path)} if os.path.islink(path) else set()
                continue
            folders.remove(name)
        for name in sorted(names):
            path = os.path.join(place, name)
            relative = os.path.relpath(path, folder)
            if name.startswith("."):
                left_out.hidden.append(relative)
            elif Path(name).suffix.lower() not in AUDIO_SUFFIXES:
                left_out.kinds[Path(name).suffix.lower()] += 1
            elif is_special(path):
                left_out.special.append(relative)
            elif _is_own_result(Path(path), output, Path(folder)):
                left_out.results.append(relative)
            else:
                found.append((path, relative))
    if str(left_out):
        plan.notes.append(f"{folder}: left out {left_out}")
    return sorted(found, key=lambda pair: Path(pair[1]).parts)


def _is_searched(link: str, folder: str, linked: set[str]) -> bool:
    """Whether a link leads into the folder that is searched, to one around it, or where another link has led."""
    place, root = os.path.realpath(link), os.path.realpath(folder)
    return os.path.commonpath([place, root]) in (place, root) or place in linked


def _identity(source: str) -> str:
    """What makes a file one file, whatever path leads to it; a pipe or link stands for itself."""
    return source if source == STANDARD else os.path.abspath(source)


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


def _check_suffix(output: str, audio_format: str | None) -> None:
    suffix = Path(output).suffix[1:].lower()
    if output == STANDARD or is_special(output):
        return
    if audio_format is None and suffix not in FORMATS:
        raise ValueError(f"cannot write {output!r}; end it in .{', .'.join(FORMATS)}, or pass --format")
    if suffix in FORMATS and audio_format not in (None, suffix):
        raise ValueError(f"{output!r} ends in .{suffix}, and --format is {audio_format}; leave one of them out")


def _beside(source: str) -> str:
    if is_special(source):
        raise ValueError(f"{source!r} is no file that a result could lie beside; pass -o")
    return source


def _distinct_names(sources: list[tuple[str, str]], ending: str, new_ending: str) -> list[str]:
    """Names of results: those of the sources with a new ending, and as much more as tells them apart.

    >>> sources = [("a.wav", "a.wav"), ("a.mp3", "a.mp3"), ("x/b.wav", "b.wav"), ("y/b.wav", "b.wav")]
    >>> _distinct_names(sources, ".wav", ".wav")
    ['a.wav', 'a.mp3.wav', 'x/b.wav', 'y/b.wav']
    """
    names = [str(Path(name).with_suffix(new_ending)) for _, name in sources]

    def with_old_ending(index: int) -> str:
        name = sources[index][1]
        return names[index] if Path(name).suffix == ending else name + new_ending

    def with_folders(index: int) -> str:
        equal = [os.path.abspath(source) for source, name in sources if name == sources[index][1]]
        if len(equal) == 1:
            return names[index]
        name = os.path.relpath(os.path.abspath(sources[index][0]), os.path.commonpath(map(os.path.dirname, equal)))
        return str(Path(name).with_suffix(new_ending))

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
