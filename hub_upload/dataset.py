"""Writes the repository of a data set: a token cache, or pairs of noisy and clean recordings, with a card.

Knows no model and no codec.
"""

import json
import shutil
from pathlib import Path

from datasets import Audio, Dataset, load_dataset

from .card import dataset_card
from .facts import Facts

SHARD_BYTES = 500 << 20  # of audio in one parquet file
CACHE_NAME = "cache.json"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def stage_dataset(source: Path, folder: Path, name: str) -> None:
    """Fills `folder` with what the repository of a data set needs, and loads it once to prove that it loads.

    Args:
        source: the folder of a token cache (`cache.json` and parquet shards), or one with the folders `noisy` and
            `clean`, of recordings of the same names. `card.yaml` in it states the licence and the origin.
        folder: an existing, empty folder.
        name: the data set's id on the Hub.

    Raises:
        ValueError: `source` is neither, or a recording lacks its partner.
    """
    if (source / CACHE_NAME).is_file():
        kind, details, shards = "tokens", json.loads((source / CACHE_NAME).read_text()), copy_cache(source, folder)
    elif (source / "noisy").is_dir() and (source / "clean").is_dir():
        kind, details, shards = "pairs", {}, write_pairs(find_pairs(source), folder)
    else:
        raise ValueError(f"{source} is neither a token cache ({CACHE_NAME}) nor a pair set (folders noisy and clean)")
    facts = Facts.read(source)
    facts.write(folder)
    rows = load_dataset("parquet", data_files=[str(folder / shard) for shard in shards], split="train")
    (folder / "README.md").write_text(dataset_card(name, kind, rows, details, facts))


def copy_cache(source: Path, folder: Path) -> list[str]:
    """Copies a token cache as it is, so that its repository, downloaded, is a token cache again."""
    # A cache that has grown may still hold the shorter last shard it had before: the last name of a first row counts.
    shards = {path.stem.split("-")[1]: path for path in sorted(source.glob("tokens-*.parquet"))}
    if not shards:
        raise ValueError(f"{source} holds {CACHE_NAME} and no tokens-*.parquet: the cache is empty")
    for path in (source / CACHE_NAME, *shards.values()):
        shutil.copy(path, folder)
    return [path.name for path in shards.values()]


def find_pairs(source: Path) -> list[tuple[str, Path, Path]]:
    """Name, noisy and clean recording of every pair, in the order of their names."""
    sides = []
    for side in ("noisy", "clean"):
        paths = (path for path in (source / side).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        sides.append({path.relative_to(source / side).as_posix(): path for path in paths})
    noisy, clean = sides
    if alone := sorted(noisy.keys() ^ clean.keys()):
        raise ValueError(f"{source}: {len(alone)} recordings without a partner of the same name, such as {alone[0]}")
    if not noisy:
        raise ValueError(f"{source}: the folders noisy and clean hold no recordings ({', '.join(AUDIO_SUFFIXES)})")
    return [(name, noisy[name], clean[name]) for name in sorted(noisy)]


def write_pairs(pairs: list[tuple[str, Path, Path]], folder: Path) -> list[str]:
    """Writes the recordings, bytes and all, into parquet shards of about `SHARD_BYTES`."""
    groups, size = [], SHARD_BYTES
    for pair in pairs:
        if size >= SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(pair)
        size += sum(path.stat().st_size for path in pair[1:])
    shards = [f"data/train-{index:05d}-of-{len(groups):05d}.parquet" for index in range(len(groups))]
    for shard, group in zip(shards, groups, strict=True):
        rows = {
            "name": [name for name, _, _ in group],
            "noisy": [{"bytes": path.read_bytes(), "path": path.name} for _, path, _ in group],
            "clean": [{"bytes": path.read_bytes(), "path": path.name} for _, _, path in group],
        }
        table = Dataset.from_dict(rows)
        for side in ("noisy", "clean"):
            table = table.cast_column(side, Audio(decode=False))
        table.to_parquet(folder / shard)
    return shards
