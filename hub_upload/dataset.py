"""Writes the repository of a data set: tokens, or pairs of noisy and clean recordings, with a card.

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
PARTS = ("train", "valid")  # of tokens
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def stage_dataset(source: Path, folder: Path, name: str) -> None:
    """Fills `folder` with what the repository of a data set needs, and loads it once to prove that it loads.

    Args:
        source: a folder of tokens, as `dacse tokenize` makes it, or one with the folders `noisy` and `clean`, of
            recordings of the same names. `card.yaml` in it states the licence and the origin.
        folder: an existing, empty folder.
        name: the data set's id on the Hub.

    Raises:
        ValueError: `source` is neither, or a recording lacks its partner.
    """
    if (source / PARTS[0] / CACHE_NAME).is_file():
        details = json.loads((source / PARTS[0] / CACHE_NAME).read_text())
        kind, shards = "tokens", copy_tokens(source, folder)
    elif (source / "noisy").is_dir() and (source / "clean").is_dir():
        kind, details, shards = "pairs", {}, write_pairs(find_pairs(source), folder)
    else:
        raise ValueError(
            f"{source} holds neither tokens (folder train with {CACHE_NAME}) nor pairs (folders noisy and clean)"
        )
    facts = Facts.read(source)
    facts.write(folder)
    builder = "arrow" if kind == "tokens" else "parquet"
    rows = load_dataset(builder, data_files=[str(folder / shard) for shard in shards], split="train")
    (folder / "README.md").write_text(dataset_card(name, kind, rows, details, facts))


def copy_tokens(source: Path, folder: Path) -> list[str]:
    """Copies tokens as they are, to be trained on from the Hub; returns the shards to train on."""
    for part in PARTS:
        shards = sorted((source / part).glob("tokens-*.arrow"))
        if not shards:
            raise ValueError(f"{source / part} holds no tokens-*.arrow: make them with `dacse tokenize`")
        (folder / part).mkdir()
        for path in (source / part / CACHE_NAME, *shards):
            shutil.copy(path, folder / part)
    return [f"{PARTS[0]}/{path.name}" for path in sorted((source / PARTS[0]).glob("tokens-*.arrow"))]


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
