"""Test sets: folders of pairs, data sets, recordings without a reference, or clean speech spoiled by a recipe.

All end as clips on disk and a checksum of their samples. Knows no system and no metric.
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile

from .presets import DatasetPreset, FolderPreset, SpeechPreset, split_preset

SUBTYPE = "PCM_16"


@dataclass(frozen=True)
class Clip:
    """One recording to enhance."""

    name: str  # unique within its test set
    task: str
    noisy: Path
    clean: Path | None = None


@dataclass(frozen=True)
class TestSet:
    """Clips and what they are called together."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    clips: Sequence[Clip]
    hub_id: str | None = None

    def __post_init__(self):
        names = Counter(clip.name for clip in self.clips)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(
                f"{self.name}: {len(twice)} names stand for two recordings, such as {twice[0]}; rename one"
            )

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order they first appear."""
        return list(dict.fromkeys(clip.task for clip in self.clips))

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of names, tasks, rates and 16-bit samples of all clips: equal where the test sets are.

        Raises:
            OSError, ValueError: a recording cannot be read, or is no mono partner of the other.
        """
        digest = hashlib.sha256()
        for clip in sorted(self.clips, key=lambda clip: clip.name):
            *pair, rate = read_clip(clip, dtype="int16")
            digest.update(f"{clip.name} {clip.task}".encode())
            for samples in pair:
                if samples is not None:
                    digest.update(f"{rate} ({len(samples)}, 1)".encode() + samples.astype("<i2").tobytes())
        return digest.hexdigest()[:16]


def read_clip(clip: Clip, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray | None, int]:
    """The noisy and clean recordings of a clip, (sample,), and their rate; raises unless they are a pair."""
    noisy, rate = read_mono(clip.noisy, dtype)
    if clip.clean is None:
        return noisy, None, rate
    clean, clean_rate = read_mono(clip.clean, dtype)
    if (len(noisy), rate) != (len(clean), clean_rate):
        raise ValueError(
            f"{clip.noisy} has {len(noisy)} samples at {rate} Hz and {clip.clean} {len(clean)} at {clean_rate} Hz; "
            "a pair has the same length and rate"
        )
    return noisy, clean, rate


def read_mono(path: Path, dtype: str = "float32") -> tuple[np.ndarray, int]:
    """A mono recording (sample,), and its rate."""
    try:
        samples, rate = soundfile.read(path, dtype=dtype, always_2d=True)
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path}: cannot be read as audio ({error.error_string}); replace or remove it") from error
    if not len(samples):
        raise ValueError(f"{path} holds no samples; replace or remove it")
    if samples.shape[1] != 1:
        raise ValueError(f"{path} has {samples.shape[1]} channels; a test set is mono: give each channel as a clip")
    return samples[:, 0], rate


def open_test_set(source: str, folder: Path, split: str = "test") -> TestSet:
    """A test set by its path or name.

    Args:
        source: a preset (see `PRESETS`), a folder of pairs (`noisy/` and `clean/`, or names that say which they are;
            sub-folders are tasks), a folder of recordings without a reference, or a data set (saved, or on the Hub)
            with columns `noisy` and `clean`, or `audio` alone, and perhaps `task` and `id` or `name`.
        folder: where clips that are not files yet are written.
        split: of a data set on the Hub.

    Raises:
        FileNotFoundError, ValueError: nothing there, or not understood.
    """
    preset, rest = split_preset(source)
    if isinstance(preset, SpeechPreset):
        raise ValueError(f"{source} is clean speech; give a recipe that spoils it with --recipe")
    if isinstance(preset, FolderPreset):
        return TestSet(source.partition(":")[0], [Clip(*found) for found in preset.find(Path(rest))])
    if isinstance(preset, DatasetPreset):
        source, split = preset.hub_id, preset.split
    path = Path(source)
    if path.is_dir() and not (path / "dataset_info.json").exists():
        return folder_test_set(path)
    if not path.exists() and (path.is_absolute() or source.startswith(".")):
        raise FileNotFoundError(f"{source}: no such folder or data set")
    return dataset_test_set(source, folder, split)


def folder_test_set(folder: Path) -> TestSet:
    """Pairs where there are any, else every recording below the folder without a reference."""
    from training_dacse.clips.pairs import AUDIO_SUFFIXES, find_pairs  # not above: worker processes do without torch

    try:
        pairs = find_pairs(folder)
    except FileNotFoundError as error:
        if "no pairs" not in str(error):
            raise
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
        pairs = [(path, None) for path in files]
    if not pairs:
        raise FileNotFoundError(f"{folder}: no recordings ({', '.join(sorted(AUDIO_SUFFIXES))})")
    top = folder / "noisy" if (folder / "noisy").is_dir() else folder
    clips = []
    for noisy, clean in pairs:
        inside = noisy.relative_to(top)
        task = inside.parts[0] if len(inside.parts) > 1 else "all"
        clips.append(Clip("-".join(inside.with_suffix("").parts), task, noisy, clean))
    return TestSet(folder.name, clips)


def dataset_test_set(source: str, folder: Path, split: str) -> TestSet:
    """Writes the clips of a data set to `folder` (once) and opens them."""
    from datasets import Audio, load_dataset, load_from_disk

    dataset = load_from_disk(source) if Path(source).exists() else load_dataset(source, split=split)
    noisy, clean = ("noisy", "clean") if "noisy" in dataset.column_names else ("audio", None)
    if noisy not in dataset.column_names:
        raise ValueError(f"{source} has columns {dataset.column_names}; a test set needs noisy and clean, or audio")
    for column in filter(None, (noisy, clean)):
        dataset = dataset.cast_column(column, Audio(decode=False))

    def recording(value: dict) -> tuple[np.ndarray, int]:
        return soundfile.read(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"], dtype="float32")

    def rows() -> Iterable[dict]:
        for index, row in enumerate(dataset):
            waveform, rate = recording(row[noisy])
            target = recording(row[clean])[0] if clean else None
            name = str(row.get("id", row.get("name", f"{index:05d}"))).replace("/", "-")
            yield {"name": name, "task": row.get("task", "all"), "noisy": waveform, "clean": target, "rate": rate}

    test_set = write_test_set(folder, Path(source).name, rows(), {"source": source, "split": split})
    return replace(test_set, hub_id=None if Path(source).exists() else source)


def render_test_set(
    speech: str,
    recipe: str | Path,
    folder: Path,
    clips_per_task: int = 40,
    seed: int = 0,
    sampling_rate: int = 44100,
    split: str = "test",
    **sources,
) -> TestSet:
    """Spoils clean speech by a training recipe, the same everywhere for the same arguments.

    Args:
        speech: folder, manifest or data set of clean recordings (of a manifest, the rows of `split`), or a preset.
        recipe: YAML file, as for training; every task gets `clips_per_task` clips.
        folder: where `noisy/`, `clean/` and `clips.json` are written; kept when they hold the same test set already.
        seed: of everything that is drawn.
        sampling_rate: Hz, of the clips.
        sources: `where`, `noise`, `rooms`, `music` of `training_dacse.clips.pairs.corpus_pairs`.
    """
    from training_dacse.clips.pairs import corpus_pairs

    preset, rest = split_preset(speech)
    name, hub_id = Path(speech).stem, None
    if isinstance(preset, SpeechPreset):
        name, hub_id = speech.partition(":")[0], preset.hub_id
        speech = write_manifest(folder / "speech.csv", preset.find(Path(rest)))
    pairs = corpus_pairs(
        speech, recipe, sampling_rate, hop_length=1, split=split, seed=seed, tasks_in_turn=True, **sources
    )
    count = clips_per_task * len(pairs.recipe.tasks)

    def rows() -> Iterable[dict]:
        for index in range(count):
            pair = pairs[index]
            name = f"{pair['task']}-{index // len(pairs.recipe.tasks):03d}"
            yield {**pair, "name": name, "noisy": pair["noisy"][0], "clean": pair["clean"][0], "rate": sampling_rate}

    description = {"pairs": pairs.fingerprint, "clips": count, "seed": seed}
    return replace(write_test_set(folder, f"{name}-{Path(recipe).stem}", rows(), description), hub_id=hub_id)


def write_manifest(path: Path, recordings: Iterable[tuple[Path, float]]) -> str:
    """Writes paths and seconds as `training_dacse.clips.sources` reads them; returns the manifest's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(recording.resolve(), seconds) for recording, seconds in recordings]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "seconds"), *rows])
    return str(path)


def write_test_set(folder: Path, name: str, rows: Iterable[dict], description: dict) -> TestSet:
    """Writes clips as 16-bit FLAC and their list; a folder that holds them already is read instead."""
    listing = folder / "clips.json"
    if not listing.exists():
        for side in ("noisy", "clean"):
            (folder / side).mkdir(parents=True, exist_ok=True)
        clips = []
        for row in rows:
            file = f"{row['name']}.flac"
            soundfile.write(folder / "noisy" / file, row["noisy"], row["rate"], subtype=SUBTYPE)
            if row["clean"] is not None:
                soundfile.write(folder / "clean" / file, row["clean"], row["rate"], subtype=SUBTYPE)
            clips.append({key: row[key] for key in ("name", "task", "parameters") if key in row})
            clips[-1]["paired"] = row["clean"] is not None
        write_json(listing, {"name": name, "description": description, "clips": clips})
    content = json.loads(listing.read_text())
    if content["description"] != description:
        raise ValueError(
            f"{folder} holds another test set ({content['description']}, now {description}); give another folder"
        )
    clips = [
        Clip(
            clip["name"],
            clip["task"],
            folder / "noisy" / f"{clip['name']}.flac",
            folder / "clean" / f"{clip['name']}.flac" if clip["paired"] else None,
        )
        for clip in content["clips"]
    ]
    return TestSet(content["name"], clips)


def write_json(path: Path, content) -> None:
    """Writes whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.rename(path)
