"""What is trained on and what is held out, where a source does not say so itself. Knows recordings by their names."""

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .sources import Clips

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
HOLD_OUT = 10  # of so many groups one is held out to validate and one to test


def groups_of(clips: Clips, splits: Sequence[str] = SPLITS) -> tuple[list[str], str]:
    """What of each recording must not be in two splits, and the word for it.

    The speaker, where that is known; else the folder directly below the root, which in most corpora is a speaker's
    or a book's, if there are as many such folders as splits; else the recording.
    """
    if clips.speakers is not None:
        return [clips.speakers[number] for number in clips.numbers], "speaker"
    names = [clips.short_name(index) for index in range(len(clips))]
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else name for name in names]
    if len(set(folders)) < len(set(names)) and len(set(folders)) >= len(splits):
        return folders, "folder"
    return names, "recording"


def assign_splits(groups: Sequence[str], splits: Sequence[str] = SPLITS) -> np.ndarray:
    """The split of each of `groups`, the same for equal ones and whatever else there is beside their names.

    Of the groups, in the order of the hashes of their names, a tenth and at least one goes to each split but the
    first, which gets the others.

    >>> assign_splits(["ann", "bob", "eve", "bob"]).tolist()
    ['train', 'test', 'valid', 'test']

    Raises:
        ValueError: fewer groups than splits.
    """
    names = sorted(set(groups), key=lambda name: hashlib.sha256(str(name).encode()).digest())
    if len(names) < len(splits):
        raise ValueError(
            f"{len(names)} cannot be split among {', '.join(splits)}; add recordings, or give a manifest with a "
            "'split' column, or other data to validate with"
        )
    each = math.ceil(len(names) / HOLD_OUT)
    held_out = {name: split for number, split in enumerate(splits[1:]) for name in names[number * each :][:each]}
    return np.array([held_out.get(name, splits[0]) for name in groups])


def clips_of_split(clips: Clips, split: str, what: str) -> Clips:
    """The recordings of one split of a source that has no splits of its own.

    Args:
        clips: of the source.
        split: one of `SPLITS`.
        what: the source, for messages.

    Raises:
        ValueError: too few recordings.
    """
    groups, kind = groups_of(clips)
    try:
        splits = assign_splits(groups)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    counts = {name: len({group for group, own in zip(groups, splits, strict=True) if own == name}) for name in SPLITS}
    logger.info(
        "%s states no splits: of its %ss, by the hash of their names, %s",
        what,
        kind,
        ", ".join(f"{count} {name}" for name, count in counts.items()),
    )
    return clips.select(np.flatnonzero(splits == split))
