"""Numbered shards of tokens in a folder or on the Hub: what a row holds, and how one is found. Knows no waveform.

A folder of shards has a `cache.json` that says what they were made from, and files `tokens-NUMBER-ROWS.arrow`: Arrow
streams that are mapped into memory and that `datasets` reads (`Dataset.from_file`, `load_dataset("arrow", ...)`). Each
has the fingerprint of what it was made from in its header.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow
import torch
from datasets import Features, List, Value
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import httpx
from torch.utils.data import Dataset

from ..files import write_json, written_whole

DESCRIPTION = "cache.json"
READING = "reading.json"  # which shards a training run reads now
MADE_FROM = "made_from"  # a fingerprint, in the description and in every shard
NAME = re.compile(r"tokens-(\d{6,})-(\d+)\.arrow")
SIDES = ("noisy", "clean")


def features(codebook_size: int) -> Features:
    """What a row holds.

    `index` is the number of the pair, `recording` the clean recording's name, `parameters` what was drawn (JSON),
    `snr_db` the lowest ratio of its degradations (infinite when there is none), `changed` the share of codes that
    differ from side to side, `frames` its length, and `noisy` and `clean` are codes, frame by frame.
    """
    codes = List(Value("int16" if codebook_size <= 2**15 else "int32"))
    words = {name: Value("string") for name in ("task", "recording", "parameters")}
    numbers = {name: Value("float32") for name in ("snr_db", "changed")}
    whole = {"index": Value("int64"), "frames": Value("int32")}
    return Features({**whole, **words, **numbers, "noisy": codes, "clean": codes})


def shard_name(number: int, rows: int) -> str:
    """
    >>> shard_name(12, 256)
    'tokens-000012-256.arrow'
    """
    return f"tokens-{number:06d}-{rows}.arrow"


def write_shard(folder: Path, number: int, rows: list[dict]) -> None:
    """Writes one shard, whole or not at all; what else there is of its number, other rows or half a file, goes.

    Args:
        folder: that was claimed for what the shard is made from.
        number: of the shard.
        rows: see `features`.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    described = json.loads((folder / DESCRIPTION).read_text())
    schema = features(described["codebook_size"]).arrow_schema
    schema = schema.with_metadata(schema.metadata | {MADE_FROM: described[MADE_FROM]})
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    path = folder / shard_name(number, len(rows))
    with written_whole(path) as unfinished:
        with pyarrow.OSFile(str(unfinished), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.combine_chunks())
    for other in folder.glob(f"tokens-{number:06d}-*"):
        if other != path:
            other.unlink(missing_ok=True)


def claim(folder: Path, description: dict, remarks: dict) -> None:
    """Writes what the shards of a folder are made from, or compares it with what is written.

    Args:
        folder: of the shards.
        description: what decides about their bytes.
        remarks: what does not, and is written all the same, each time anew.

    Raises:
        ValueError: they were made from something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DESCRIPTION
    found = json.loads(path.read_text()) if path.exists() else description
    for name, value in flat(description).items():
        if flat(found).get(name) != value:
            raise ValueError(
                f"{folder}: these tokens were made with another {name} ({flat(found).get(name)}, now {value}); give "
                "another folder or delete this one"
            )
    content = json.dumps(description, sort_keys=True)
    described = description | {MADE_FROM: hashlib.sha256(content.encode()).hexdigest()[:16]} | remarks
    if found != described:
        write_json(path, described)


def flat(description: dict) -> dict:
    """
    >>> flat({"codec": "a", "pairs": {"seed": 0}})
    {'codec': 'a', 'pairs.seed': 0}
    """
    nested = {name: value for name, value in description.items() if isinstance(value, dict)}
    inner = {f"{name}.{key}": entry for name, value in nested.items() for key, entry in flat(value).items()}
    return {name: value for name, value in description.items() if name not in nested} | inner


@contextmanager
def streaming(source: str, name: str) -> Iterator[None]:
    """Names what could not be had from the Hub, and the remedy.

    Raises:
        FileNotFoundError: the Hub has no such data set.
        OSError: it cannot be reached, or has no such file.
    """
    try:
        yield
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{source}: no such folder, nor a data set on the Hub that you may read; make tokens with `dacse tokenize`"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise OSError(
            f"the stream of tokens from {source} broke at {name} ({error}); the run goes on from its last checkpoint "
            "when it is started again"
        ) from error


class Shards(Dataset):
    """The shards of a folder, or of a data set on the Hub, each fetched when it is first read.

    What a process gets of them is a handle: tables are opened by whoever reads. Rows are read by `(shard, row)`.

    Args:
        source: folder, or `ORGANISATION/NAME` of a data set on the Hub.
        part: folder inside it, such as `train`.

    Raises:
        FileNotFoundError: there are none.
    """

    def __init__(self, source: str | Path, part: str = ""):
        self.source, self.part, self.tables = str(source), part, {}
        self.folder = Path(source) / part
        self.is_local = Path(source).is_dir()
        if not self.is_local and (self.folder.is_absolute() or self.source.startswith(".") or "/" not in self.source):
            raise FileNotFoundError(f"{source}: no such folder; make tokens with `dacse tokenize CORPUS -o {source}`")
        with streaming(self.source, "its revision"):
            self.revision = None if self.is_local else HfApi().dataset_info(self.source).sha
        if DESCRIPTION not in self.files():
            raise FileNotFoundError(f"{self}: no tokens (no {DESCRIPTION}); make them with `dacse tokenize`")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.source, self.part)))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"tables": {}}

    @cached_property
    def description(self) -> dict:
        """What the shards are made from."""
        return json.loads(Path(self.fetch(DESCRIPTION)).read_text())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return self.description["tasks"]

    @property
    def is_rolling(self) -> bool:
        """Whether shards have come and gone while a run read them."""
        return READING in self.files()

    def files(self) -> list[str]:
        """Names of the files."""
        if self.is_local:
            return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        with streaming(self.source, "the list of its files"):
            names = HfApi().list_repo_files(self.source, repo_type="dataset", revision=self.revision)
        prefix = f"{self.part}/" if self.part else ""
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def rows(self) -> dict[int, int]:
        """How many rows each shard has, by its number."""
        found = filter(None, map(NAME.fullmatch, self.files()))
        return {int(match[1]): int(match[2]) for match in found}

    def fetch(self, name: str) -> str:
        """Path of a file; one on the Hub is brought here first.

        Raises:
            OSError: the Hub cannot be reached.
        """
        if self.is_local:
            return str(self.folder / name)
        inside = f"{self.part}/{name}" if self.part else name
        with streaming(self.source, name):
            return HfApi().hf_hub_download(self.source, inside, repo_type="dataset", revision=self.revision)

    def table(self, number: int) -> pyarrow.Table:
        """One shard, mapped into memory.

        Raises:
            FileNotFoundError: there is no such shard.
            OSError: it is damaged.
            ValueError: it was made from something else than the others.
        """
        if number not in self.tables:
            rows = self.rows()
            if number not in rows:
                raise FileNotFoundError(f"{self}: shard {number} is missing; run `dacse tokenize` again")
            path = self.fetch(shard_name(number, rows[number]))
            try:
                table = pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()
            except pyarrow.ArrowInvalid as error:
                raise OSError(f"{path}: this shard is damaged ({error}); delete it and make it again") from error
            if table.schema.metadata.get(MADE_FROM.encode(), b"").decode() != self.description[MADE_FROM]:
                raise ValueError(
                    f"{path}: this shard was made from something else than {DESCRIPTION} beside it says; delete it "
                    "and run `dacse tokenize` again"
                )
            self.tables[number] = table
        return self.tables[number]

    def __getitem__(self, place: tuple[int, int]) -> dict:
        """`noisy` and `clean` codes (codebook, frame) of a row, and the number of its `task`."""
        number, row = place
        table, width = self.table(number), self.description["num_codebooks"]
        codes = {side: np.array(table[side].chunk(0)[row].values, dtype=np.int64) for side in SIDES}
        task = self.tasks.index(table["task"].chunk(0)[row].as_py())
        return {side: torch.from_numpy(flat.reshape(-1, width).T) for side, flat in codes.items()} | {"task": task}
