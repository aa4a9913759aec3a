"""Pairs of recordings: noisy ones with their clean partners, cut into clips. Knows no degradation, no token."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from processing_dacse.audio_dacse import resample

from .degradations import fit_length
from .digests import Digests
from .pairs import whole_frames
from .sources import AUDIO_SUFFIXES, Clips, readable, scan
from .splits import assign_splits

logger = logging.getLogger(__name__)

Pair = tuple[str, str]  # paths of a noisy recording and of its clean partner


class RecordedPairs:
    """Clips of pairs of recordings, one after the other; see `pairs.py` for what a pair is. Their task is `pairs`.

    The headers of all recordings are read once, many at a time; what they hold, when a clip is asked for.

    Args:
        folder: of the recordings: folders `noisy/` and `clean/`, or `*noisy*` beside `*clean*` names.
        sampling_rate, hop_length: the codec's.
        max_seconds: what the model's context holds; longer pairs give several clips.
        whole: make every clip that long, for a model of one window: the last of a recording begins earlier, and a
            recording that is shorter ends in silence.
        part: "all", or "valid" for every tenth pair by the hashes of their names, or "train" for the others.
        skip_broken: leave out pairs that are no good instead of raising.

    Raises:
        FileNotFoundError: no pairs, or a recording without its partner.
        OSError: a recording that cannot be read.
        ValueError: partners of different length or rate.
    """

    def __init__(
        self,
        folder: str | Path,
        sampling_rate: int,
        hop_length: int,
        max_seconds: float,
        whole: bool = False,
        part: str = "all",
        skip_broken: bool = False,
    ):
        self.sampling_rate, self.hop_length, self.tasks, self.whole = sampling_rate, hop_length, ["pairs"], whole
        self.root, self.skip_broken, self.skipped = Path(folder).resolve(), skip_broken, 0
        self.frames = whole_frames(max_seconds, sampling_rate, hop_length)
        wanted = pairs_of_part(find_pairs(self.root), part, folder)
        looked_at = zip(wanted, scan("headers of pairs", self.look, wanted), strict=True)
        self.pairs = [(pair, seconds) for pair, seconds in looked_at if seconds is not None]
        self.clips = [(pair, first) for pair, seconds in self.pairs for first in self.first_frames(seconds)]
        if not self.clips:
            raise ValueError(f"{folder}: none of {self.skipped} pairs can be used; the warnings above name them")

    def __len__(self) -> int:
        return len(self.clips)

    def look(self, pair: Pair) -> float | None:
        """Seconds from the first to the last sample of a pair, or None for one that is left out."""
        try:
            return checked_end(*pair)
        except (OSError, ValueError) as error:
            self.skip_or_raise(error)
            return None

    def skip_or_raise(self, error: Exception) -> None:
        """Counts a pair that is no good, where that was asked for."""
        if not self.skip_broken or isinstance(error, FileNotFoundError):
            raise error
        self.skipped += 1
        logger.warning("skipped (%d so far): %s", self.skipped, error)

    def first_frames(self, end: float) -> list[int]:
        """The first frames of the clips of a pair whose last sample lies at `end` seconds."""
        # frames that hold a sample; by the duration, rounding may add a frame that holds none
        total = math.floor(end * self.sampling_rate / self.hop_length) + 1
        latest = max(0, total - self.frames) if self.whole else total
        return [min(first, latest) for first in range(0, total, self.frames)]

    def describe(self, digests: Digests) -> dict:
        """What decides about the pairs, by name."""
        return {"recordings": digests.fingerprint(self.recordings()[0]), "frames": self.frames, "whole": self.whole}

    @property
    def window_frames(self) -> int | None:
        """Frames of every clip, None if they differ."""
        return self.frames if self.whole else None

    def recordings(self) -> list[Clips]:
        """The recordings that pairs are made from."""
        return [Clips([name for pair, _ in self.pairs for name in pair], root=self.root)]

    def __getitem__(self, index: int) -> dict:
        """
        Raises:
            ValueError: the clean recording is silent from its first sample to its last.
        """
        (noisy, clean), first = self.clips[index]
        pair = {"noisy": self.read(noisy, first), "clean": self.read(clean, first)}
        if not pair["clean"].any() and is_silent(clean):
            raise ValueError(f"{clean}: the clean recording is silent; remove the pair")
        name = str(Path(noisy).relative_to(self.root))
        return {**pair, "task": self.tasks[0], "parameters": {}, "recording": name}

    def shard(self, numbers: range) -> Iterator[dict]:
        """The pairs of these numbers, but for silent ones where those are skipped."""
        for number in numbers:
            try:
                yield self[number]
            except (OSError, ValueError) as error:
                self.skip_or_raise(error)

    def read(self, path: str, first: int) -> np.ndarray:
        """The clip that starts at frame `first`, mono at the grid's rate, a whole number of frames long."""
        start = first * self.hop_length / self.sampling_rate
        seconds = self.frames * self.hop_length / self.sampling_rate
        with readable(path), soundfile.SoundFile(path) as file:
            file.seek(round(start * file.samplerate))
            waveform = file.read(math.ceil(seconds * file.samplerate), dtype="float32", always_2d=True)
            rate = file.samplerate
        mono = resample(waveform.mean(1, dtype=np.float32)[None], rate, self.sampling_rate)
        frames = self.frames if self.whole else min(self.frames, math.ceil(mono.shape[-1] / self.hop_length))
        return fit_length(mono, frames * self.hop_length)


def pairs_of_part(pairs: Sequence[Pair], part: str, folder: str | Path) -> list[Pair]:
    """The pairs of "all", "train" or "valid".

    Raises:
        ValueError: one pair, to be trained on and held out.
    """
    if part == "all":
        return list(pairs)
    if len(pairs) < 2:
        raise ValueError(f"{folder}: one pair cannot be both trained on and held out; add pairs or give valid_data")
    names = [str(Path(noisy).relative_to(Path(folder).resolve())) for noisy, _ in pairs]
    parts = assign_splits(names, ("train", "valid"))
    return [pair for pair, own in zip(pairs, parts, strict=True) if own == part]


def checked_end(noisy: str, clean: str) -> float:
    """Seconds from the first to the last sample of a pair; raises if it is none."""
    with readable(noisy):
        here = soundfile.info(noisy)
    with readable(clean):
        there = soundfile.info(clean)
    if here.samplerate != there.samplerate:
        raise ValueError(f"{noisy}: {here.samplerate} Hz, but {clean} has {there.samplerate} Hz; resample one")
    if here.frames != there.frames:
        raise ValueError(f"{noisy}: {here.frames} samples, but {clean} has {there.frames}; cut both to one length")
    return (here.frames - 1) / here.samplerate


def is_silent(path: str) -> bool:
    """Whether no sample of a recording differs from zero."""
    return not any(block.any() for block in soundfile.blocks(path, blocksize=1 << 16, dtype="float32"))


def find_pairs(folder: Path) -> list[Pair]:
    """(noisy, clean) paths, from folders `noisy/` and `clean/` (same names) or from names that say which they are."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if (folder / "noisy").is_dir():
        noisy, partners = (audio_files(folder / side) for side in ("noisy", "clean"))
        pairs = [(path, folder / "clean" / path.relative_to(folder / "noisy")) for path in noisy]
    else:
        files = audio_files(folder)
        noisy, partners = ([path for path in files if word in path.name] for word in ("noisy", "clean"))
        pairs = [(path, path.with_name(path.name.replace("noisy", "clean"))) for path in noisy]
    if not pairs:
        raise FileNotFoundError(
            f"{folder}: no pairs; give folders noisy/ and clean/, or files named *noisy* and *clean*"
        )
    known = set(partners)
    for path, partner in pairs:
        if partner not in known:
            raise FileNotFoundError(f"{path}: its clean partner {partner} is missing")
    lonely = known - {clean for _, clean in pairs}
    if lonely:
        raise FileNotFoundError(f"{min(lonely)}: its noisy partner is missing")
    return [(str(path), str(partner)) for path, partner in pairs]


def audio_files(folder: Path) -> list[Path]:
    """Recordings below a folder, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
