"""Test sets: folders of pairs, data sets, recordings without a reference. All end as clips on disk and a checksum.

Knows no system and no metric.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile

from .audio import load_audio, read_mono
from .presets import DatasetPreset, FolderPreset, SpeechPreset, split_preset

SUBTYPE = "PCM_16"


@dataclass(frozen=True)
class Clip:
    """One recording to enhance."""

    name: str  # unique within its test set
    task: str
    noisy: Path
    clean: Path | None = None
    speaker: str | None = None  # clips of one speaker are no independent evidence


@dataclass(frozen=True)
class TestSet:
    """Clips and what they are called together."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    clips: Sequence[Clip]
    hub_id: str | None = None

    def __post_init__(self):
        refuse_twins(
            self.name, ((clip.name, clip.name) for clip in self.clips), "stand for two recordings; rename one"
        )

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order they first appear."""
        return list(dict.fromkeys(clip.task for clip in self.clips))

    @property
    def speakers(self) -> dict[str, str]:
        """The speaker of each clip, by its name; a clip whose speaker is unknown stands for itself."""
        return {clip.name: clip.speaker or clip.name for clip in self.clips}

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of names, tasks, rates and 16-bit samples of all clips: equal where the test sets are.

        Raises:
            OSError, ValueError: a recording cannot be read, or is no mono partner of the other, or is there twice.
        """
        digest, contents = hashlib.sha256(), []
        for clip in sorted(self.clips, key=lambda clip: clip.name):
            *pair, rate = read_clip(clip)
            heading = f"{clip.name} {clip.task}".encode()
            samples = b"".join(
                f"{rate} ({len(side)}, 1)".encode() + as_int16(side).tobytes() for side in pair if side is not None
            )
            contents.append((clip.name, (clip.task, hashlib.sha256(samples).digest())))
            digest.update(heading + samples)
        refuse_twins(self.name, contents, "hold the same samples: what is there twice counts twice; remove one")
        return digest.hexdigest()[:16]


def refuse_twins(test_set: str, items: Iterable[tuple[str, object]], trouble: str) -> None:
    """Raises ValueError where two of `(clip, content)` are alike."""
    first = {}
    for clip, content in items:
        if content in first:
            raise ValueError(f"{test_set}: {first[content]} and {clip} {trouble}")
        first[content] = clip


def as_int16(samples: np.ndarray) -> np.ndarray:
    """Samples within [-1, 1] as 16-bit integers, little-endian: those of a 16-bit file exactly.

    >>> as_int16(np.array([0.5, -1.0, 1.0]))
    array([ 16384, -32768,  32767], dtype=int16)
    """
    return np.clip(np.round(samples * 2.0**15), -(2**15), 2**15 - 1).astype("<i2")


def read_clip(clip: Clip) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The noisy and clean recordings of a clip, (sample,), and their rate; raises unless they are a pair."""
    noisy, rate = read_mono(clip.noisy)
    if clip.clean is None:
        return noisy, None, rate
    clean, clean_rate = read_mono(clip.clean)
    if (len(clean), clean_rate) != (len(noisy), rate):
        raise ValueError(
            f"{clip.noisy} has {len(noisy)} samples at {rate} Hz, {clip.clean} {len(clean)} at {clean_rate}; "
            "a pair needs the same length and rate"
        )
    return noisy, clean, rate


def open_test_set(source: str, folder: Path, split: str = "test") -> TestSet:
    """A test set by its path or name.

    Args:
        source: a preset (see `PRESETS`), a folder of pairs (`noisy/` and `clean/`, or names that say which they are;
            sub-folders are tasks), a folder of recordings without a reference, or a data set (saved, or on the Hub)
            with columns `noisy` and `clean`, or `audio` alone, and perhaps `task`, `speaker` and `id` or `name`.
        folder: where clips that are not files yet are written.
        split: of a data set on the Hub.

    Raises:
        FileNotFoundError, ValueError: nothing there, or not understood.
    """
    preset, rest = split_preset(source)
    if isinstance(preset, SpeechPreset):
        raise ValueError(f"{source} is clean speech; give a recipe that spoils it with --recipe")
    if isinstance(preset, FolderPreset):
        return TestSet(source.partition(":")[0], [Clip(**found) for found in preset.find(Path(rest))])
    if isinstance(preset, DatasetPreset):
        return dataset_test_set(preset.hub_id, folder, preset.split, preset.speaker)
    path = Path(source)
    if path.is_dir() and not (path / "dataset_info.json").exists():
        return folder_test_set(path)
    if not path.exists() and (path.is_absolute() or source.startswith(".")):
        raise FileNotFoundError(f"{source}: no such folder or data set")
    return dataset_test_set(source, folder, split)


def folder_test_set(folder: Path) -> TestSet:
    """Pairs where there are any, else every recording below the folder without a reference."""
    # not above: worker processes do without
    from training_dacse.clips.recorded import find_pairs
    from training_dacse.clips.sources import AUDIO_SUFFIXES

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
        inside = Path(noisy).relative_to(top)
        task = inside.parts[0] if len(inside.parts) > 1 else "all"
        clips.append(Clip("-".join(inside.with_suffix("").parts), task, Path(noisy), Path(clean) if clean else None))
    return TestSet(folder.name, clips)


def dataset_test_set(source: str, folder: Path, split: str, speaker=lambda name: None) -> TestSet:
    """Writes the clips of a data set to `folder` (once) and opens them; `speaker` tells that of a clip's name."""
    from datasets import Audio, load_dataset, load_from_disk

    dataset = load_from_disk(source) if Path(source).exists() else load_dataset(source, split=split)
    noisy, clean = ("noisy", "clean") if "noisy" in dataset.column_names else ("audio", None)
    if noisy not in dataset.column_names:
        raise ValueError(f"{source} has columns {dataset.column_names}; a test set needs noisy and clean, or audio")
    for column in filter(None, (noisy, clean)):
        dataset = dataset.cast_column(column, Audio(decode=False))

    def rows() -> Iterable[dict]:
        for index, row in enumerate(dataset):
            waveform, rate = load_audio(row[noisy])
            target = load_audio(row[clean])[0] if clean else None
            name = str(row.get("id", row.get("name", f"{index:05d}"))).replace("/", "-")
            about = {"task": row.get("task", "all"), "speaker": row.get("speaker") or speaker(name)}
            yield {"name": name, **about, "noisy": waveform, "clean": target, "rate": rate}

    test_set = write_test_set(folder, Path(source).name, rows(), {"source": source, "split": split})
    return replace(test_set, hub_id=None if Path(source).exists() else source)


def write_test_set(folder: Path, name: str, rows: Iterable[dict], description: dict) -> TestSet:
    """Writes clips as 16-bit FLAC and their list; a folder that holds them already is read instead.

    Args:
        folder: for `noisy/`, `clean/` and `clips.json`.
        name: of the test set.
        rows: for each clip `name`, `task`, `noisy` and `clean` (or None), (channel, sample), `rate` in Hz, and perhaps
            `speaker`, `recording` and `parameters`.
        description: of what the rows are made from.

    Raises:
        ValueError: the folder holds another test set.
    """
    listing = folder / "clips.json"
    if not listing.exists():
        for side in ("noisy", "clean"):
            (folder / side).mkdir(parents=True, exist_ok=True)
        clips = []
        for row in rows:
            file = f"{row['name']}.flac"
            soundfile.write(folder / "noisy" / file, row["noisy"].T, row["rate"], subtype=SUBTYPE)
            if row["clean"] is not None:
                soundfile.write(folder / "clean" / file, row["clean"].T, row["rate"], subtype=SUBTYPE)
            kept = ("name", "task", "speaker", "recording", "parameters")
            clips.append({key: row[key] for key in kept if key in row} | {"paired": row["clean"] is not None})
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
            clip.get("speaker"),
        )
        for clip in content["clips"]
    ]
    return TestSet(content["name"], clips)


def write_json(path: Path, content) -> None:
    """Writes whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.rename(path)
