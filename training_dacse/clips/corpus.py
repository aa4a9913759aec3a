"""A corpus of speech, noise, rooms and music opened for one split: what is held out never meets what is trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas
from datasets import Audio, DatasetDict, load_dataset
from huggingface_hub import HfApi

from .backgrounds import BackgroundClips
from .digests import Digests
from .pairs import DegradedPairs, StreamedPairs
from .recipe import Recipe
from .rooms import MeasuredRooms, SimulatedRooms
from .sources import (
    SILENCE_RMS,
    Clips,
    clips_of_dataset,
    clips_of_rows,
    find_clips,
    is_folder_of_files,
    manifest_of,
    open_dataset,
    read_manifest,
    rows_where,
)
from .splits import SPLITS, clips_of_split

OTHER_NAMES = {"valid": ("valid", "validation", "dev"), "train": ("train",), "test": ("test",)}  # of splits


@dataclass
class Source:
    """A folder, manifest or data set that may serve several kinds of recordings and several splits.

    Args:
        name: path or Hub id.
        whole: take all of it for any split, where it states no splits: something else is held out.
    """

    name: str
    whole: bool = False

    @cached_property
    def manifest(self) -> Path | None:
        """Its manifest, if it has one."""
        return manifest_of(Path(self.name))

    @cached_property
    def table(self) -> pandas.DataFrame:
        """The rows of its manifest, read once.

        Raises:
            ValueError: a recording that is in two splits.
        """
        table = read_manifest(self.manifest)
        if "split" in table:
            splits = table.groupby("path")["split"].nunique()
            if (splits > 1).any():
                raise ValueError(f"{self.manifest}: {splits.idxmax()} is in more than one split; leave it in one")
        return table

    @cached_property
    def dataset(self) -> DatasetDict:
        """Its splits, where it is a data set."""
        return open_dataset(self.name)

    def has_kind(self, kind: str) -> bool:
        """Whether it is a manifest whose `kind` column names this kind."""
        return self.manifest is not None and "kind" in self.table and bool((self.table["kind"] == kind).any())

    def clips(self, split: str, kind: str, where: str | None = None) -> Clips:
        """Its recordings of one split and kind.

        Args:
            split: one of `SPLITS`.
            kind: `speech`, `noise`, `rir` or `music`, for a manifest that has this column.
            where: further filter of the rows of a manifest.

        Raises:
            ValueError: it has none, or states splits but not this one.
        """
        if self.manifest is None and not where and not is_folder_of_files(Path(self.name)):
            if len(self.dataset) > 1:
                return clips_of_dataset(self.dataset[self.split_name(split, list(self.dataset))])
            return self.without_splits(clips_of_dataset(self.dataset["train"]), split, kind)
        if self.manifest is None:
            return self.without_splits(find_clips(self.name, where), split, kind)
        table = self.table
        if self.has_kind(kind):
            table = table[table["kind"] == kind]
        if "split" in table:
            name = self.split_name(split, table["split"].unique())
            rows = rows_where(table[table["split"] == name], where, self.manifest)
            return clips_of_rows(rows, self.manifest, where or f"split == '{name}'")
        rows = rows_where(table, where, self.manifest)
        return self.without_splits(clips_of_rows(rows, self.manifest, where), split, kind)

    def split_name(self, split: str, names) -> str:
        """What this source calls a split."""
        for name in OTHER_NAMES[split]:
            if name in names:
                return name
        raise ValueError(
            f"{self.name} has splits {', '.join(map(str, names))} but no {split!r}; add it, or give other data"
        )

    def without_splits(self, clips: Clips, split: str, kind: str) -> Clips:
        """The part of a source without splits that is a split's."""
        return clips if self.whole else clips_of_split(clips, split, f"{kind} of {self.name}")


def background_sources(
    data: Source | None, split: str, noise: str | None, rooms: str | None, music: str | None
) -> dict[str, Callable]:
    """What degradations draw from, by name, of one split; without measured rooms small ones are simulated."""

    def find(own: str | None, kind: str) -> Clips | None:
        if own:
            return Source(own).clips(split, kind)
        return data.clips(split, kind) if data and data.has_kind(kind) else None

    sources = {"small_room": SimulatedRooms(seed=SPLITS.index(split))}
    sources["room"] = sources["small_room"]
    if found := find(noise, "noise"):
        sources["noise"] = BackgroundClips(found)
    if found := find(rooms, "rir"):
        sources["room"] = MeasuredRooms(found)
    if found := find(music, "music"):
        sources["music"] = BackgroundClips(found)
    return sources


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
    whole_speech: bool = False,
    **options,
) -> DegradedPairs:
    """Pairs from one split of a corpus of clean speech.

    A manifest's `split` column and the splits of a data set are kept to. Of a source that states none, speakers (or
    folders, or recordings: see `splits.groups_of`) are split by the hashes of their names, eight in ten to train, one
    each to validate and to test. Simulated rooms differ from split to split.

    Args:
        data: folder, manifest or data set of clean speech. A manifest with a `kind` column also serves noise, room
            responses and music (`kind` of `speech`, `noise`, `rir`, `music`).
        recipe: YAML file.
        sampling_rate, hop_length: the codec's.
        split: `train`, `valid` or `test`.
        where: further filter of the speech rows of a manifest.
        noise, rooms, music: folders, manifests or data sets of their own.
        tasks: of the recipe; all when left out.
        whole_speech: take all speech of `data` if it states no splits: other speech is held out.
        options: `seed` and what else `DegradedPairs` takes.
    """
    source = Source(data, whole_speech)
    speech = source.clips(split, "speech", where)
    sources = background_sources(source, split, noise, rooms, music)
    sources["speech"] = BackgroundClips(speech, floor=SILENCE_RMS)
    return DegradedPairs(speech, Recipe.from_yaml(recipe, sources, tasks), sampling_rate, hop_length, **options)


def streamed_pairs(
    data: str,
    recipe: str | Path,
    sampling_rate: int,
    hop_length: int,
    split: str = "train",
    noise: str | None = None,
    rooms: str | None = None,
    music: str | None = None,
    tasks: list[str] | None = None,
    **options,
) -> StreamedPairs:
    """Pairs from a data set on the Hub (or a folder of its files) that is read as a stream.

    Args:
        data: Hub id or folder.
        recipe, sampling_rate, hop_length, split, noise, rooms, music, tasks, options: as in `corpus_pairs`.

    Raises:
        ValueError: the data set has no such split.
    """
    streams = load_dataset(data, streaming=True)
    stream = streams[Source(data).split_name(split, list(streams))].select_columns("audio")
    version = f"{data} at {HfApi().dataset_info(data).sha}" if not Path(data).exists() else folder_version(Path(data))
    sources = background_sources(None, split, noise, rooms, music)
    recipe = Recipe.from_yaml(recipe, sources, tasks)
    return StreamedPairs(
        stream.cast_column("audio", Audio(decode=False)), version, recipe, sampling_rate, hop_length, **options
    )


def folder_version(folder: Path) -> str:
    """Changes with what the files of a folder hold, and with their names."""
    files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return Digests().fingerprint(Clips(files, root=folder))
