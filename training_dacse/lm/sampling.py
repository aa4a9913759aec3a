"""The order in which a run meets its clips: as they come, tasks in equal shares, easy ones first, task by task.

Each is a dataclass called as `(rows, epoch, seed)` that gives the numbers of as many rows as there are: a pure
function, so a resumed run meets the same clips. A new one is a class in this file and its name in `SAMPLINGS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens.cache import TokenRows
from ..tokens.stream import shuffled

EASIEST = 0.2  # share of each task's clips, the least changed first, that a curriculum begins with


def generator_of(epoch: int, seed: int) -> torch.Generator:
    """The random numbers of an epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def progress_of(epoch: int, epochs: float, count: int) -> Tensor:
    """How far a curriculum of so many epochs is at each of `count` draws of an epoch, 0 to 1.

    >>> progress_of(1, 2.0, 4).tolist()
    [0.5, 0.625, 0.75, 0.875]
    """
    return ((epoch + torch.arange(count) / count) / epochs).clamp(max=1.0)


@dataclass(frozen=True)
class Balanced:
    """Every task equally often, however many clips it has; clips of a task with replacement."""

    def __call__(self, rows: TokenRows, epoch: int, seed: int) -> Tensor:
        return draw(rows, generator_of(epoch, seed), open_share=None, balanced=True)


@dataclass(frozen=True)
class EasyFirst:
    """Of each task first the clips that were changed least, then more and more of them (Bengio et al. 2009).

    Args:
        epochs: after which all clips are open.
    """

    epochs: float = 1.0

    def __call__(self, rows: TokenRows, epoch: int, seed: int) -> Tensor:
        progress = progress_of(epoch, self.epochs, len(rows))
        return draw(rows, generator_of(epoch, seed), open_share=EASIEST + (1 - EASIEST) * progress)


@dataclass(frozen=True)
class TasksInTurn:
    """First one task, then one more, until all are drawn from by their numbers of clips.

    Args:
        epochs: after which the last task has come in.
        order: names of the tasks; as they stand in the tokens when left out.
    """

    epochs: float = 1.0
    order: Sequence[str] | None = None

    def __call__(self, rows: TokenRows, epoch: int, seed: int) -> Tensor:
        names = list(self.order or rows.tasks)
        if unknown := sorted(set(names) ^ set(rows.tasks)):
            raise ValueError(f"tasks_in_turn needs every task once: {', '.join(rows.tasks)}; see {unknown[0]!r}")
        rank = torch.tensor([names.index(task) for task in rows.tasks])
        open_tasks = 1 + (progress_of(epoch, self.epochs, len(rows)) * (len(names) - 1)).floor()
        return draw(rows, generator_of(epoch, seed), open_share=None, open_tasks=open_tasks, rank=rank)


def draw(
    rows: TokenRows,
    generator: torch.Generator,
    open_share: Tensor | None,
    balanced: bool = False,
    open_tasks: Tensor | None = None,
    rank: Tensor | None = None,
) -> Tensor:
    """Draws as many rows as there are, with replacement: first the task of each, then one of its clips.

    Args:
        rows: to draw from.
        generator: of the random numbers.
        open_share: share of a task's clips, the least changed first, that may be drawn, (draw,); all when None.
        balanced: draw all tasks equally often, not by their numbers of clips.
        open_tasks: how many of the first tasks may be drawn, (draw,); all when None.
        rank: place of each task in the order they come in, (task,).
    """
    count, present = len(rows), rows.task_numbers.unique()
    # clips that were changed alike come in an order of their own, not in that of their numbers
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    order = mixed[torch.argsort(rows.difficulty[mixed], stable=True)]
    by_task = [order[rows.task_numbers[order] == task] for task in present]
    counts = torch.tensor([len(clips) for clips in by_task], dtype=torch.float)
    shares = (torch.ones_like(counts) if balanced else counts).expand(count, -1)
    if open_tasks is not None:
        first = rank[present].argsort().argsort()  # a task that has no clips holds nobody up
        shares = shares * (first < open_tasks[:, None].clamp(max=len(present)))
    task = torch.multinomial(shares, 1, generator=generator)[:, 0]
    open_clips = counts[task] if open_share is None else (open_share * counts[task]).ceil()
    place = (torch.rand(count, generator=generator) * open_clips).long()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.long().cumsum(0)[:-1]])
    return torch.cat(by_task)[starts[task] + place]


@dataclass(frozen=True)
class Shuffled:
    """Every clip once."""

    def __call__(self, rows: TokenRows, epoch: int, seed: int) -> Tensor:
        return shuffled(rows, epoch, seed)


SAMPLINGS: dict[str, type] = {
    "shuffled": Shuffled,
    "balanced": Balanced,
    "easy_first": EasyFirst,
    "tasks_in_turn": TasksInTurn,
}
