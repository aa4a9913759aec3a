"""Rows of tokens to train on and to measure by: some of those in shards. Knows no file format, no model."""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PretrainedConfig

from .shards import SIDES, Shards


class TokenRows(Dataset):
    """What a training run asks of its rows. Row by row: `task_numbers`, `difficulty` and `num_frames`, (row,).

    A row is a dict of `noisy` and `clean` codes (codebook, frame) and the number of its `task` in `tasks`.
    `difficulty` is the share of codes that a degradation has changed.
    """

    tasks: list[str]
    task_numbers: Tensor
    difficulty: Tensor
    num_frames: Tensor

    def of_epoch(self, epoch: int) -> "TokenRows":
        """The rows that an epoch draws from: these, unless other ones take their places."""
        return self

    @property
    def storage(self) -> Dataset:
        """What rows are read from, by their places."""
        return self

    def places(self, numbers: Sequence[int]) -> list:
        """Where in the storage rows are."""
        return list(numbers)


class TokenCache(TokenRows):
    """The rows of all shards of a folder or of a data set on the Hub, or of some.

    Args:
        source: `Shards`, or what they are in.
        part: folder inside it.
        numbers: of shards; all when left out, or of a folder in which shards come and go those that are there.
        num_codebooks: how many of the first codebooks of a row are given; all when left out.

    Raises:
        FileNotFoundError: there are none, or some are missing.
    """

    def __init__(
        self,
        source: str | Path | Shards,
        part: str = "",
        numbers: Sequence[int] | None = None,
        num_codebooks: int | None = None,
    ):
        self.shards = source if isinstance(source, Shards) else Shards(source, part)
        self.num_codebooks = num_codebooks or self.shards.description["num_codebooks"]
        rows = self.shards.rows()
        if numbers is None:
            planned = self.shards.description["num_shards"] or 1  # unless they go on and on
            numbers = sorted(rows) if self.shards.is_rolling else range(max(planned, max(rows, default=0) + 1))
        missing = [number for number in numbers if number not in rows]
        if missing or not numbers:
            raise FileNotFoundError(
                f"{self.shards}: of its shards {', '.join(map(str, missing[:5])) or 'all'} are missing; run `dacse "
                "tokenize` again, with each --shard I/N"
            )
        self.place_of = np.concatenate(
            [np.stack([np.full(rows[n], n), np.arange(rows[n])], axis=1) for n in numbers]
        )  # (row, 2): shard and row in it

    def __len__(self) -> int:
        return len(self.place_of)

    def __getitem__(self, index: int) -> dict:
        (place,) = self.places([index])
        return self.storage[place]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return self.shards.tasks

    @property
    def storage(self) -> "FirstCodebooks":
        """What rows are read from, by their places."""
        return FirstCodebooks(self.shards, self.num_codebooks)

    def places(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Where in the storage rows are."""
        return list(map(tuple, self.place_of[np.asarray(numbers, dtype=np.int64)].tolist()))

    def column(self, name: str) -> Tensor | list:
        """What all rows hold under a name, (row,)."""
        columns = []
        for number in dict.fromkeys(self.place_of[:, 0].tolist()):
            rows = self.place_of[self.place_of[:, 0] == number, 1]
            columns.append(self.shards.table(number)[name].take(rows).combine_chunks())
        column = pyarrow.concat_arrays(columns)
        return column.to_pylist() if pyarrow.types.is_string(column.type) else torch.tensor(column.to_numpy())

    @cached_property
    def task_numbers(self) -> Tensor:
        """The task of every row, (row,)."""
        return torch.tensor([self.tasks.index(task) for task in self.column("task")])

    @cached_property
    def difficulty(self) -> Tensor:
        """The share of codes that differ from side to side, of every row, (row,)."""
        return self.column("changed")

    @cached_property
    def num_frames(self) -> Tensor:
        """The length of every row, (row,)."""
        return self.column("frames")

    def only(self, *tasks: str) -> "TokenCache":
        """The rows of some tasks; the numbers of the tasks stay.

        Raises:
            ValueError: there is no row of a task.
        """
        there = {self.tasks[number] for number in self.task_numbers.unique().tolist()}
        for task in tasks:
            if task not in there:
                raise ValueError(f"{self.shards}: no clip of task {task!r}; there are {', '.join(sorted(there))}")
        wanted = torch.tensor([self.tasks.index(task) for task in tasks])
        return self.pick(torch.isin(self.task_numbers, wanted).nonzero().flatten())

    def pick(self, numbers: Sequence[int] | Tensor) -> "TokenCache":
        """Some rows, by their numbers, in the order of their shards."""
        part = copy(self)
        for name in ("task_numbers", "difficulty", "num_frames"):
            part.__dict__.pop(name, None)
        part.place_of = self.place_of[np.sort(np.asarray(numbers, dtype=np.int64))]
        return part

    def check_fits(self, config: PretrainedConfig) -> None:
        """
        Raises:
            ValueError: the tokens are none of a model's: another grid, or clips longer than its context.
        """
        made = self.shards.description
        grid = (self.num_codebooks, made["codebook_size"])
        if grid != (config.num_codebooks, config.codebook_size):
            raise ValueError(
                f"{self.shards} holds codes of {grid[0]} codebooks of {grid[1]}, and the model speaks "
                f"{config.num_codebooks} of {config.codebook_size}; make tokens with the codec the model was trained "
                "with (dacse tokenize --codec MODEL)"
            )
        longest = int(self.num_frames.max())
        if longest > config.max_frames:
            raise ValueError(
                f"{self.shards} holds clips of {longest} frames, but the model's context holds {config.max_frames}; "
                "make shorter ones (dacse tokenize --max-seconds) or give a model of a longer context"
            )


class FirstCodebooks(Dataset):
    """Rows of shards, of which the first codebooks are given."""

    def __init__(self, shards: Shards, num_codebooks: int):
        self.shards, self.num_codebooks = shards, num_codebooks

    def __getitem__(self, place: tuple[int, int]) -> dict:
        row = self.shards[place]
        return row | {side: row[side][: self.num_codebooks] for side in SIDES}
