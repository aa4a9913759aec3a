"""Test sets: folders of pairs, data sets, recordings without a reference, or clean speech spoiled by a recipe.

All end as clips on disk and a checksum of their samples. Knows no system and no metric.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

SUBTYPE = "PCM_16"
PRESETS = {"voicebank-demand": ("JacobLinCool/VoiceBank-DEMAND-16k", "test")}  # name -> (Hub id, split)


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

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order they first appear."""
        return list(dict.fromkeys(clip.task for clip in self.clips))

    @property
    def checksum(self) -> str:
        """SHA-256 of names, tasks, rates and 16-bit samples of all clips: equal where the test sets are."""
        digest = hashlib.sha256()
        for clip in sorted(self.clips, key=lambda clip: clip.name):
            digest.update(f"{clip.name} {clip.task}".encode())
            for path in filter(None, (clip.noisy, clip.clean)):
                samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
                digest.update(f"{rate} {samples.shape}".encode() + samples.astype("<i2").tobytes())
        return digest.hexdigest()[:16]


def read_clip(clip: Clip) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The noisy and clean recordings of a clip, float32 (sample,), and their rate; raises unless they are a pair."""
    noisy, rate = read_mono(clip.noisy)
    if clip.clean is None:
        return noisy, None, rate
    clean, clean_rate = read_mono(clip.clean)
    if (len(noisy), rate) != (len(clean), clean_rate):
        raise ValueError(
            f"{clip.noisy} has {len(noisy)} samples at {rate} Hz and {clip.clean} {len(clean)} at {clean_rate} Hz; "
            "a pair has the same length and rate"
        )
    return noisy, clean, rate


def read_mono(path: Path) -> tuple[np.ndarray, int]:
    """A mono recording as float32 (sample,), and its rate."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if samples.shape[1] != 1:
        raise ValueError(f"{path} has {samples.shape[1]} channels; a test set is mono: give each channel as a clip")
    return samples[:, 0], rate


def open_test_set(source: str, folder: Path, split: str = "test") -> TestSet:
    """A test set by its path or name.

    Args:
        source: a preset's name, a folder of pairs (`noisy/` and `clean/`, or names that say which they are;
            sub-folders are tasks), a folder of recordings without a reference, or a data set (saved, or on the Hub)
            with columns `noisy` and `clean`, or `audio` alone, and perhaps `task` and `id`.
        folder: where clips that are not files yet are written.
        split: of a data set on the Hub.

    Raises:
        FileNotFoundError, ValueError: nothing there, or not understood.
    """
    if source in PRESETS:
        source, split = PRESETS[source]
    path = Path(source)
    if path.is_dir() and not (path / "dataset_info.json").exists():
        return folder_test_set(path)
    if not path.exists() and (path.is_absolute() or source.startswith(".")):
        raise FileNotFoundError(f"{source}: no such folder or data set")
    return dataset_test_set(source, folder, split)


def folder_test_set(folder: Path) -> TestSet:
    """Pairs where there are any, else every recording below the folder without a reference."""
    from training_dacse.pairs import AUDIO_SUFFIXES, find_pairs  # not above: worker processes do without torch

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
            (waveform, rate), name = recording(row[noisy]), str(row.get("id", f"{index:05d}"))
            target = recording(row[clean])[0] if clean else None
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
        speech: folder, manifest or data set of clean recordings (of a manifest, the rows of `split`).
        recipe: YAML file, as for training; every task gets `clips_per_task` clips.
        folder: where `noisy/`, `clean/` and `clips.json` are written; kept when they hold the same test set already.
        seed: of everything that is drawn.
        sampling_rate: Hz, of the clips.
        sources: `where`, `noise`, `rooms`, `music` of `training_dacse.pairs.corpus_pairs`.
    """
    from training_dacse.pairs import corpus_pairs

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
    return write_test_set(folder, f"{Path(speech).stem}-{Path(recipe).stem}", rows(), description)


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
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    Path(file.name).rename(path)
