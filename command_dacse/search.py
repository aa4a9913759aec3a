"""What a folder holds, here or elsewhere: recordings or tables, and what is left out. Knows paths and addresses."""

import itertools
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path

from command_dacse.remote import find_remote

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .bwf .rf64 .w64 .aif .aiff .aifc .au .snd .caf .sph .nist .flac .ogg .oga .opus .mp3 .mp2 .aac .m4a"
    " .m4b .wma .amr .mp4 .m4v .mov .3gp .3g2 .webm .mkv .mka .ogv .avi .wmv .asf .flv .mts .m2ts .mpg .mpeg".split()
)
TABLE = ".parquet"  # rows with a column of audio, as `datasets` stores them
CARD = "README.md"  # of a data set
NAMED = 4  # of what is left out


@dataclass
class LeftOut:
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


@dataclass
class Findings:
    """What a search has found.

    Attributes:
        files: recordings, each with its name in an output folder; where there are none, tables.
        left_out: everything else.
        problems: of each folder that cannot be read, the reason.
        card: of a data set, where it has one.
    """

    files: list[tuple[str, str]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    problems: dict[str, str] = field(default_factory=dict)
    card: str | None = None

    def sort_in(self, path: str, relative: str, is_result: bool) -> None:
        """Takes a file in, or notes what kind it is of."""
        suffix = Path(relative).suffix.lower()
        if suffix not in AUDIO_SUFFIXES | {TABLE}:
            self.left_out.kinds[suffix] += 1
        elif is_special(path):
            self.left_out.special.append(relative)
        elif is_result:
            self.left_out.results.append(relative)
        else:
            self.files.append((path, relative))

    def close(self, card: str | None) -> "Findings":
        """Leaves the tables out unless they are all there is: then the folder is a data set, which has a card."""
        tables = [pair for pair in self.files if is_table(pair[1])]
        if len(tables) < len(self.files):
            self.files = [pair for pair in self.files if pair not in tables]
            self.left_out.kinds += Counter({TABLE: len(tables)})
        elif tables:
            self.card = card
        self.files.sort(key=lambda pair: Path(pair[1]).parts)
        return self


def is_table(path: str) -> bool:
    """Whether a path is that of a table with a column of audio."""
    return Path(path).suffix.lower() == TABLE


def is_special(path: str) -> bool:
    """Whether a path is one of a pipe, a device or a socket, which is written through and never replaced."""
    try:
        return not (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISDIR(mode))
    except OSError:
        return False


def search_folder(folder: str, output: str | None) -> Findings:
    """Searches a folder and those below it, linked ones too.

    Args:
        folder: here.
        output: where results go, which are no inputs.
    """
    found = Findings()

    def unreadable(error: OSError) -> None:
        found.problems[error.filename] = f"folder cannot be read ({error.strerror})"

    linked: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        for name in sorted(folders):
            path = os.path.join(place, name)
            if name.startswith("."):
                found.left_out.hidden.append(os.path.relpath(path, folder) + os.sep)
            elif os.path.islink(path) and _is_searched(path, folder, linked):
                found.left_out.loops.append(os.path.relpath(path, folder))
            else:
                linked |= {os.path.realpath(path)} if os.path.islink(path) else set()
                continue
            folders.remove(name)
        for name in sorted(names):
            path = os.path.join(place, name)
            relative = os.path.relpath(path, folder)
            if name.startswith("."):
                found.left_out.hidden.append(relative)
            else:
                found.sort_in(path, relative, is_own_result(Path(path), output, Path(folder)))
    card = os.path.join(folder, CARD)
    return found.close(card if os.path.isfile(card) else None)


def search_remote(address: str, output: str | None) -> Findings:
    """Searches a folder elsewhere, or what a pattern matches there; the address of a file gives that file.

    Args:
        address: of the folder, pattern or file.
        output: where results go, which are no inputs.

    Raises:
        OSError: the place cannot be reached.
    """
    found, files = Findings(), find_remote(address)
    if files == [address]:
        return Findings([(address, os.path.basename(address))])
    root = "/".join(itertools.takewhile(lambda part: not has_magic(part), address.rstrip("/").split("/")))
    for file in files:
        relative = file.removeprefix(root + "/")
        if any(part.startswith(".") for part in relative.split("/")):
            found.left_out.hidden.append(relative)
        else:
            found.sort_in(file, relative, output is not None and file.startswith(output.rstrip("/") + "/"))
    card = f"{root}/{CARD}"
    return found.close(card if card in files else None)


def is_own_result(path: Path, output: str | None, searched: Path) -> bool:
    """Whether an earlier run into the same place, a folder inside the one that is searched, wrote this file."""
    if output is None:
        return path.stem.endswith(".enhanced")
    folder, searched, path = (Path(os.path.realpath(place)) for place in (output, searched, path))
    return searched in folder.parents and folder in path.parents


def _is_searched(link: str, folder: str, linked: set[str]) -> bool:
    """Whether a link leads into the folder that is searched, to one around it, or where another link has led."""
    place, root = os.path.realpath(link), os.path.realpath(folder)
    return os.path.commonpath([place, root]) in (place, root) or place in linked
