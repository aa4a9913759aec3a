"""Pairs of noisy and clean waveforms: clean clips degraded on the fly, or recordings in pairs. Knows no token."""

import functools
import hashlib
import json
import logging
import math
from pathlib import Path

import numpy as np
import soundfile

from processing_dacse.audio_dacse import resample

from .degradations import fit_length
from .recipe import Recipe
from .rooms import MeasuredRooms, SimulatedRooms
from .sources import (
    AUDIO_SUFFIXES,
    SILENCE_RMS,
    BackgroundClips,
    Clips,
    find_clips,
    manifest_of,
    read_manifest,
    readable,
)

logger = logging.getLogger(__name__)

HOLD_OUT = 10  # of given pairs, one in so many is held out
MAX_SKIPS = 100  # broken recordings in a row after which a corpus is given up


def whole_frames(seconds: float, sampling_rate: int, hop_length: int) -> int:
    """Whole frames in `seconds`, at least one.

    >>> whole_frames(2.0, 44100, 1024), whole_frames(86 * 1024 / 44100, 44100, 1024)
    (86, 86)
    """
    return max(1, math.floor(seconds * sampling_rate / hop_length + 1e-6))


class DegradedPairs:
    """Pair `index` of an endless supply, the same for the same (seed, index) in every process.

    A pair is a dict: `noisy` and `clean` float32 (1, sample) of a whole number of frames, `task`, `parameters`.

    Args:
        speech: clean recordings.
        recipe: what is done to them; its `clip_seconds` bound the length of a clip.
        sampling_rate: Hz.
        hop_length: samples per codec frame.
        seed: of everything that is drawn.
        max_seconds: longest clip the model's context holds; longer ones of the recipe are cut to it.
        whole: make every clip that long, for a model of one window; a recording that is shorter ends in silence.
        tasks_in_turn: take the tasks one after the other, so that a held-out set has as many clips of each.
        skip_broken: count recordings that cannot be read (or are silent) and draw another instead of raising.
    """

    def __init__(
        self,
        speech: Clips,
        recipe: Recipe,
        sampling_rate: int,
        hop_length: int,
        seed: int = 0,
        max_seconds: float = math.inf,
        whole: bool = False,
        tasks_in_turn: bool = False,
        skip_broken: bool = False,
    ):
        self.tasks_in_turn = tasks_in_turn
        self.speech = speech.at_least(recipe.clip_seconds[0], skip_broken)
        self.recipe, self.sampling_rate, self.hop_length = recipe, sampling_rate, hop_length
        self.seed, self.skip_broken, self.skipped = seed, skip_broken, 0
        shortest, longest = recipe.clip_seconds
        bounds = (max_seconds, max_seconds) if whole else (shortest, min(longest, max_seconds))
        self.clip_frames = tuple(whole_frames(seconds, sampling_rate, hop_length) for seconds in bounds)
        if self.clip_frames[0] > self.clip_frames[1]:
            raise ValueError(
                f"clips last at least {shortest} s but the context holds {max_seconds:.2f} s; lower clip_seconds"
            )

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a pair."""
        grid = (self.sampling_rate, self.hop_length, self.clip_frames)
        sources = {name: source.fingerprint for name, source in self.recipe.sources.items()}
        parts = (self.speech.fingerprint, self.recipe.fingerprint, sources, grid, self.seed, self.tasks_in_turn)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.recipe.tasks)

    def __getitem__(self, index: int) -> dict:
        task = self.tasks[index % len(self.tasks)] if self.tasks_in_turn else None
        for attempt in range(MAX_SKIPS):
            rng = np.random.default_rng((self.seed, index, attempt))
            file = int(rng.integers(len(self.speech)))
            try:
                return self.degrade(self.speech, file, rng, task)
            except (OSError, ValueError) as error:
                self.skip_or_raise(error)
        raise ValueError(f"{MAX_SKIPS} draws in a row met a broken recording; the warnings above name them")

    def skip_or_raise(self, error: Exception) -> None:
        """Counts a broken recording, where that was asked for."""
        if not self.skip_broken:
            raise error
        self.skipped += 1
        logger.warning("skipped (%d so far): %s", self.skipped, error)

    def degrade(self, speech: Clips, file: int, rng: np.random.Generator, task: str | None = None) -> dict:
        """A pair from one recording of `speech`; the task is drawn unless it is given."""
        clean = self.crop(speech, file, rng)
        noisy, clean, task, parameters = self.recipe.degrade(clean, self.sampling_rate, rng, task)
        return {"noisy": noisy, "clean": clean, "task": task, "parameters": parameters}

    def crop(self, speech: Clips, file: int, rng: np.random.Generator) -> np.ndarray:
        """A stretch of one recording, a whole number of frames long."""
        shortest, longest = (frames * self.hop_length for frames in self.clip_frames)
        waveform = speech.audible_crop(file, longest / self.sampling_rate, self.sampling_rate, rng, SILENCE_RMS)
        usable = max(shortest, waveform.shape[-1] // self.hop_length * self.hop_length)
        return fit_length(waveform, min(usable, longest))


class PairedFiles:
    """Noisy recordings with their clean partners: folders `noisy/` and `clean/`, or `*noisy*` beside `*clean*` names.

    Long pairs give several clips of at most `max_seconds`, one after the other. A pair is a dict as in
    `DegradedPairs`; its task is `pairs`.

    Args:
        folder: of the recordings.
        sampling_rate, hop_length: the codec's.
        max_seconds: what the model's context holds.
        whole: make every clip that long, for a model of one window: the last of a recording begins earlier, and a
            recording that is shorter ends in silence.
        part: "all", or "valid" for every tenth pair, or "train" for the others.
        skip_broken: count pairs that are no good and go on without them instead of raising.

    Raises:
        FileNotFoundError: no pairs, or a recording without its partner.
        OSError: a recording that cannot be read.
        ValueError: partners of different length or rate, or a silent clean recording.
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
        self.frames = whole_frames(max_seconds, sampling_rate, hop_length)
        self.clips = []  # (noisy, clean, first frame)
        pairs = find_pairs(Path(folder))
        if part != "all" and len(pairs) < 2:
            raise ValueError(
                f"{folder}: one pair cannot be both trained on and held out; add pairs or give valid_data"
            )
        held_out = set(pairs[::HOLD_OUT])
        self.pairs, self.skipped = [], 0
        for pair in pairs:
            if part != "all" and (pair in held_out) != (part == "valid"):
                continue
            try:
                # frames that hold a sample; by the duration, rounding may add a frame that holds none
                total = math.floor(checked_end(*pair) * sampling_rate / hop_length) + 1
            except (OSError, ValueError) as error:
                if not skip_broken:
                    raise
                self.skipped += 1
                logger.warning("skipped (%d so far): %s", self.skipped, error)
                continue
            latest = max(0, total - self.frames) if whole else total
            self.pairs.append(pair)
            self.clips += [(*pair, min(first, latest)) for first in range(0, total, self.frames)]
        if not self.clips:
            raise ValueError(f"{folder}: none of {self.skipped} pairs can be used; the warnings above name them")

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def fingerprint(self) -> str:
        """Changes with the names and sizes of the recordings."""
        parts = [(noisy.name, noisy.stat().st_size, clean.stat().st_size) for noisy, clean in self.pairs]
        grid = (self.sampling_rate, self.hop_length, self.frames, self.whole)
        return hashlib.sha256(json.dumps([parts, grid]).encode()).hexdigest()[:16]

    def __getitem__(self, index: int) -> dict:
        noisy, clean, first = self.clips[index]
        pair = {"noisy": self.read(noisy, first), "clean": self.read(clean, first)}
        return {**pair, "task": self.tasks[0], "parameters": {}}

    def read(self, path: Path, first: int) -> np.ndarray:
        """The clip that starts at frame `first`, mono at the grid's rate, a whole number of frames long."""
        start = first * self.hop_length / self.sampling_rate
        seconds = self.frames * self.hop_length / self.sampling_rate
        with soundfile.SoundFile(path) as file:
            file.seek(round(start * file.samplerate))
            waveform = file.read(math.ceil(seconds * file.samplerate), dtype="float32", always_2d=True)
            rate = file.samplerate
        mono = resample(waveform.mean(1, dtype=np.float32)[None], rate, self.sampling_rate)
        frames = self.frames if self.whole else min(self.frames, math.ceil(mono.shape[-1] / self.hop_length))
        return fit_length(mono, frames * self.hop_length)


def checked_end(noisy: Path, clean: Path) -> float:
    """Seconds from the first to the last sample of a pair; raises if it is none, or its clean side is silent."""
    with readable(noisy):
        here = soundfile.info(noisy)
    with readable(clean):
        there = soundfile.info(clean)
        is_silent = not any(block.any() for block in soundfile.blocks(clean, blocksize=1 << 16, dtype="float32"))
    if here.samplerate != there.samplerate:
        raise ValueError(f"{noisy}: {here.samplerate} Hz, but {clean} has {there.samplerate} Hz; resample one")
    if here.frames != there.frames:
        raise ValueError(f"{noisy}: {here.frames} samples, but {clean} has {there.frames}; cut both to one length")
    if is_silent:
        raise ValueError(f"{clean}: the clean recording is silent; remove the pair")
    return (here.frames - 1) / here.samplerate


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(noisy, clean) paths, from folders `noisy/` and `clean/` (same names) or from names that say which they are."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if (folder / "noisy").is_dir():
        noisy = [path for path in sorted((folder / "noisy").rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
        pairs = [(path, folder / "clean" / path.relative_to(folder / "noisy")) for path in noisy]
        partners = [path for path in sorted((folder / "clean").rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
    else:
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
        noisy, partners = ([path for path in files if word in path.name] for word in ("noisy", "clean"))
        pairs = [(path, path.with_name(path.name.replace("noisy", "clean"))) for path in noisy]
    if not pairs:
        raise FileNotFoundError(
            f"{folder}: no pairs; give folders noisy/ and clean/, or files named *noisy* and *clean*"
        )
    for path, partner in pairs:
        if not partner.exists():
            raise FileNotFoundError(f"{path}: its clean partner {partner} is missing")
    lonely = set(partners) - {clean for _, clean in pairs}
    if lonely:
        raise FileNotFoundError(f"{min(lonely)}: its noisy partner is missing")
    return pairs


def corpus_pairs(
    data: str,
    recipe: str | Path,
    sampling_rate: int,
    hop_length: int,
    split: str = "train",
    where: str | None = None,
    noise: str | None = None,
    rooms: str | None = None,
    music: str | None = None,
    tasks: list[str] | None = None,
    **options,
) -> DegradedPairs:
    """Pairs from a corpus of clean speech.

    Args:
        data: folder, manifest or data set of clean speech. A manifest with `kind` and `split` columns also serves
            noise and room responses (`kind` of `speech`, `noise`, `rir`), each from the rows of `split`.
        recipe: YAML file.
        sampling_rate, hop_length: the codec's.
        split: rows of such a manifest.
        where: further filter of the speech rows.
        noise, rooms, music: folders, manifests or data sets of their own; without rooms small ones are simulated. Of
            a manifest with such columns these are the rows of `split`, and of the kind `noise`, `rir` or `music`.
        tasks: of the recipe; all when left out.
        options: `seed` and what else `DegradedPairs` takes.
    """

    @functools.cache
    def table_of(source: str):
        """The rows of a manifest, read once."""
        manifest = manifest_of(Path(source))
        return read_manifest(manifest) if manifest else {}

    def clips(source: str, kind: str, extra: str | None = None) -> Clips | None:
        """What a source has of a split and a kind, if it is a manifest that says so; None if `data` has none of it."""
        table = table_of(source)
        has_kind = "kind" in table and (table["kind"] == kind).any()
        if source == data and kind != "speech" and not has_kind:
            return None
        conditions = [f"kind == '{kind}'"] if has_kind else []
        conditions += [f"split == '{split}'"] if "split" in table else []
        return find_clips(source, " and ".join(conditions + ([f"({extra})"] if extra else [])) or None)

    speech = clips(data, "speech", where)
    sources = {"speech": BackgroundClips(speech, floor=SILENCE_RMS), "small_room": SimulatedRooms()}
    sources["room"] = sources["small_room"]
    if found := clips(noise or data, "noise"):
        sources["noise"] = BackgroundClips(found)
    if found := clips(rooms or data, "rir"):
        sources["room"] = MeasuredRooms(found)
    if music:
        sources["music"] = BackgroundClips(clips(music, "music"))
    return DegradedPairs(speech, Recipe.from_yaml(recipe, sources, tasks), sampling_rate, hop_length, **options)
