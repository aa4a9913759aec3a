"""Pairs of noisy and clean waveforms: clean clips degraded when they are asked for. Knows no token.

A pair is a dict: `noisy` and `clean` float32 (1, sample) of a whole number of frames, `task`, `parameters` (what was
drawn, by kind of degradation) and `recording` (the name of the clean one).
"""

import itertools
import logging
import math
from collections.abc import Iterator

import numpy as np
import pyarrow
from datasets import IterableDataset
from huggingface_hub.utils import httpx

from .degradations import fit_length
from .digests import Digests
from .recipe import Recipe
from .sources import SILENCE_RMS, Clips

logger = logging.getLogger(__name__)

BROKEN_STREAM = (OSError, httpx.HTTPError, pyarrow.ArrowException)
MAX_SKIPS = 100  # broken recordings in a row after which a corpus is given up


def whole_frames(seconds: float, sampling_rate: int, hop_length: int) -> int:
    """Whole frames in `seconds`, at least one.

    >>> whole_frames(2.0, 44100, 1024), whole_frames(86 * 1024 / 44100, 44100, 1024)
    (86, 86)
    """
    return max(1, math.floor(seconds * sampling_rate / hop_length + 1e-6))


class ClipDegrader:
    """Cuts clips out of clean recordings and spoils them.

    Args:
        recipe: what is done to them; its `clip_seconds` bound the length of a clip.
        sampling_rate: Hz.
        hop_length: samples per codec frame.
        seed: of everything that is drawn.
        max_seconds: longest clip the model's context holds; longer ones of the recipe are cut to it.
        whole: make every clip that long, for a model of one window; a recording that is shorter ends in silence.
        skip_broken: count recordings that are no audio (or are silent) and go on without them instead of raising.

    Raises:
        ValueError: the recipe's clips are longer than `max_seconds`.
    """

    def __init__(
        self,
        recipe: Recipe,
        sampling_rate: int,
        hop_length: int,
        seed: int = 0,
        max_seconds: float = math.inf,
        whole: bool = False,
        skip_broken: bool = False,
    ):
        self.recipe, self.sampling_rate, self.hop_length, self.seed = recipe, sampling_rate, hop_length, seed
        self.skip_broken, self.skipped = skip_broken, 0
        shortest, longest = recipe.clip_seconds
        bounds = (max_seconds, max_seconds) if whole else (shortest, min(longest, max_seconds))
        self.clip_frames = tuple(whole_frames(seconds, sampling_rate, hop_length) for seconds in bounds)
        if self.clip_frames[0] > self.clip_frames[1]:
            raise ValueError(
                f"clips last at least {shortest} s but the context holds {max_seconds:.2f} s; lower clip_seconds"
            )

    def describe(self, digests: Digests) -> dict:
        """What decides about the pairs, by name."""
        sources = self.recipe.used_sources.items()
        return {
            "recipe": self.recipe.fingerprint,
            "seed": self.seed,
            "clip_frames": list(self.clip_frames),
            **{name: source.describe(digests) for name, source in sources if name != "speech"},
        }

    @property
    def window_frames(self) -> int | None:
        """Frames of every clip, None if they differ."""
        return self.clip_frames[1] if self.clip_frames[0] == self.clip_frames[1] else None

    def recordings(self) -> list[Clips]:
        """The recordings that pairs are made from, so far as they are files."""
        return [source.clips for source in self.recipe.used_sources.values() if hasattr(source, "clips")]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.recipe.tasks)

    def skip_or_raise(self, error: Exception) -> None:
        """Counts a broken recording, where that was asked for; one that has vanished is always an error."""
        if not self.skip_broken or isinstance(error, FileNotFoundError):
            raise error
        self.skipped += 1
        logger.warning("skipped (%d so far): %s", self.skipped, error)

    def degrade(self, speech: Clips, index: int, rng: np.random.Generator, task: str | None = None) -> dict:
        """A pair from one recording of `speech`; the task is drawn unless it is given."""
        clean = self.crop(speech, index, rng)
        noisy, clean, task, parameters = self.recipe.degrade(clean, self.sampling_rate, rng, task)
        recording = speech.short_name(index)
        return {"noisy": noisy, "clean": clean, "task": task, "parameters": parameters, "recording": recording}

    def crop(self, speech: Clips, index: int, rng: np.random.Generator) -> np.ndarray:
        """A stretch of one recording, a whole number of frames long."""
        shortest, longest = (frames * self.hop_length for frames in self.clip_frames)
        waveform = speech.audible_crop(index, longest / self.sampling_rate, self.sampling_rate, rng, SILENCE_RMS)
        usable = max(shortest, waveform.shape[-1] // self.hop_length * self.hop_length)
        return fit_length(waveform, min(usable, longest))


class DegradedPairs(ClipDegrader):
    """Pair `index` of an endless supply, the same for the same (seed, index) in every process.

    Args:
        speech: clean recordings.
        recipe, sampling_rate, hop_length: as in `ClipDegrader`.
        tasks_in_turn: take the tasks one after the other, so that a held-out set has as many clips of each.
        options: further ones of `ClipDegrader`.
    """

    def __init__(
        self,
        speech: Clips,
        recipe: Recipe,
        sampling_rate: int,
        hop_length: int,
        tasks_in_turn: bool = False,
        **options,
    ):
        super().__init__(recipe, sampling_rate, hop_length, **options)
        self.speech, self.tasks_in_turn = speech.at_least(recipe.clip_seconds[0], self.skip_broken), tasks_in_turn

    def describe(self, digests: Digests) -> dict:
        """What decides about the pairs, by name."""
        own = {"speech": digests.fingerprint(self.speech), "tasks_in_turn": self.tasks_in_turn}
        return super().describe(digests) | own

    def recordings(self) -> list[Clips]:
        """The recordings that pairs are made from."""
        return [self.speech, *super().recordings()]

    def __getitem__(self, index: int) -> dict:
        task = self.tasks[index % len(self.tasks)] if self.tasks_in_turn else None
        for attempt in range(MAX_SKIPS):
            rng = np.random.default_rng((self.seed, index, attempt))
            recording = int(rng.integers(len(self.speech)))
            try:
                return self.degrade(self.speech, recording, rng, task)
            except (OSError, ValueError) as error:
                self.skip_or_raise(error)
        raise ValueError(f"{MAX_SKIPS} draws in a row met a broken recording; the warnings above name them")

    def shard(self, numbers: range) -> Iterator[dict]:
        """The pairs of these numbers."""
        return (self[number] for number in numbers)


class StreamedPairs(ClipDegrader):
    """Pairs from a data set that is streamed, one of each recording; too short ones are left out.

    Shard `n` is file `n` of the stream, and once all files had their turn the first one's again, with new draws. A
    pair depends on the seed, the shard and the place of its recording in the file, not on names.

    Args:
        stream: of clean speech, with an undecoded `audio` column.
        version: of its content, such as its commit.
        recipe, sampling_rate, hop_length: as in `ClipDegrader`.
        options: further ones of `ClipDegrader`.
    """

    def __init__(
        self, stream: IterableDataset, version: str, recipe: Recipe, sampling_rate: int, hop_length: int, **options
    ):
        super().__init__(recipe, sampling_rate, hop_length, **options)
        self.stream, self.version = stream, version

    def describe(self, digests: Digests) -> dict:
        """What decides about the pairs, by name."""
        return super().describe(digests) | {"speech": self.version}

    def shard(self, number: int) -> Iterator[dict]:
        """The pairs of one shard.

        Raises:
            OSError: the stream broke.
        """
        files = self.stream.num_shards
        rows = iter(self.stream.shard(files, number % files))
        for row in itertools.count():
            try:
                recording = Clips([next(rows)])
            except StopIteration:
                return
            except BROKEN_STREAM as error:
                raise OSError(
                    f"the stream broke in file {number % files + 1} of {files}, at row {row} ({error}); run the same "
                    "command again: finished shards are kept"
                ) from error
            try:
                if recording.duration(0) >= self.recipe.clip_seconds[0]:
                    yield self.degrade(recording, 0, np.random.default_rng((self.seed, number, row)))
            except (OSError, ValueError) as error:
                self.skip_or_raise(error)
