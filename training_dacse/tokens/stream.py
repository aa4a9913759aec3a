"""The one source of a training run's batches: in what order rows come, and where the run is. Knows no token, no model.

All processes of a run share one endless sequence of batches, a pure function of the seed: process `r` of `w` takes
batches `r`, `r + w`, `r + 2 w`, ... So two processes train as one does, and going on means to know one place in it.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .cache import TokenRows

Order = Callable[[TokenRows, int, int], Tensor]  # (rows, epoch, seed) -> the numbers of rows, as they come
POOL = 64  # batches that are sorted, or packed, together


def shuffled(rows: TokenRows, epoch: int, seed: int) -> Tensor:
    """Every row once, (row,)."""
    return torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def in_turn(order: Tensor, batch_size: int, lengths: Tensor, budget: int) -> Iterator[list[int]]:
    """Batches of so many rows as they come; the last may be smaller.

    >>> list(in_turn(torch.tensor([3, 1, 2]), 2, torch.ones(4), 0))
    [[3, 1], [2]]
    """
    for batch in order.split(batch_size):
        yield batch.tolist()


def by_length(order: Tensor, batch_size: int, lengths: Tensor, budget: int) -> Iterator[list[int]]:
    """Batches of rows of like lengths, from pools of 64 batches: little padding, and no order by length overall.

    >>> list(by_length(torch.tensor([0, 1, 2, 3]), 2, torch.tensor([9, 2, 8, 1]), 0))
    [[0, 2], [1, 3]]
    """
    for pool in order.split(POOL * batch_size):
        batches = pool[lengths[pool].argsort(descending=True, stable=True)].split(batch_size)
        mixed = torch.randperm(len(batches), generator=torch.Generator().manual_seed(int(pool[0])))
        for number in mixed.tolist():
            yield batches[number].tolist()


def packed(order: Tensor, batch_size: int, lengths: Tensor, budget: int) -> Iterator[list[int]]:
    """Batches of as many rows as fit `budget` tokens, from pools of 64 contexts: first fit, the longest rows first.

    >>> list(packed(torch.tensor([0, 1, 2, 3]), 1, torch.tensor([6, 3, 5, 4]), 10))
    [[0, 3], [2, 1]]
    """
    whole = int(POOL * budget / lengths[order].double().mean())
    for pool in order.split(max(1, whole)):
        bins, room = [], []
        for row in pool[lengths[pool].argsort(descending=True, stable=True)].tolist():
            length = int(lengths[row])
            place = next((number for number, left in enumerate(room) if left >= length), len(bins))
            if place == len(bins):
                bins.append([])
                room.append(budget)
            bins[place].append(row)
            room[place] -= length
        yield from bins


BATCHINGS = {"rows": in_turn, "length": by_length, "packed": packed}


class TokenStream(Sampler[list]):
    """The batches of one process, as places in the storage of the rows, without end.

    Args:
        rows: to draw from.
        batch_size: rows of a batch; of packed ones, how many contexts are filled.
        order: of the rows of an epoch.
        seed: of the order.
        batching: `rows` as they come, rows of like `length`, or rows `packed` into the context.
        tokens: (frames,) -> tokens of rows of so many frames.
        context: tokens that the model holds.
        rank, world_size: of this process, and how many there are.

    Raises:
        ValueError: an unknown batching.
    """

    def __init__(
        self,
        rows: TokenRows,
        batch_size: int,
        order: Order = shuffled,
        seed: int = 0,
        batching: str = "rows",
        tokens: Callable[[Tensor], Tensor] = lambda frames: frames,
        context: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batching not in BATCHINGS:
            raise ValueError(f"batching is {batching!r}; choose one of {', '.join(BATCHINGS)}")
        self.rows, self.batch_size, self.order, self.seed = rows, batch_size, order, seed
        self.make_batches, self.tokens = BATCHINGS[batching], tokens
        self.budget = batch_size * context if batching == "packed" else 0
        self.rank, self.world_size = rank, world_size
        self.lengths: dict[int, int] = {}  # batches of the epochs that were gone through
        self.expected = 0.0  # batches of the epoch that was begun last
        self.epoch, self.batch, self.taken = 0, 0, 0

    def batches(self, epoch: int) -> Iterator[list]:
        """The batches of an epoch, of all processes."""
        rows = self.rows.of_epoch(epoch)
        lengths = self.tokens(rows.num_frames)
        each = self.batch_size if self.budget == 0 else self.budget / lengths.double().mean().item()
        self.expected = max(1.0, len(rows) / each)
        for batch in self.make_batches(self.order(rows, epoch, self.seed), self.batch_size, lengths, self.budget):
            yield rows.places(batch)

    def batches_of_epoch(self, epoch: int) -> int:
        """How many batches an epoch has."""
        if epoch not in self.lengths:
            self.lengths[epoch] = sum(1 for _ in self.batches(epoch))
        return self.lengths[epoch]

    def __iter__(self) -> Iterator[list]:
        """Batches of this process from the place where the run is."""
        epoch, skipped, turn = self.epoch, self.batch, 0
        while True:
            number = -1
            for number, batch in enumerate(self.batches(epoch)):
                if number < skipped:
                    continue
                if turn % self.world_size == self.rank:
                    yield batch
                turn += 1
            self.lengths[epoch] = number + 1
            epoch, skipped = epoch + 1, 0

    def advance(self) -> None:
        """One batch of every process has been trained on."""
        self.taken += 1

    def state_dict(self) -> dict[str, int]:
        """Where the run is: the epoch, and which of all processes' batches in it comes next."""
        epoch, batch = self.epoch, self.batch + self.taken * self.world_size
        while epoch in self.lengths and batch >= self.lengths[epoch]:
            epoch, batch = epoch + 1, batch - self.lengths[epoch]
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a place that `state_dict` gave, of any number of processes."""
        self.epoch, self.batch, self.taken = state["epoch"], state["batch"], 0

    @property
    def epochs(self) -> float:
        """Epochs gone through, as far as that is known."""
        state = self.state_dict()
        return state["epoch"] + min(1.0, state["batch"] / self.lengths.get(state["epoch"], self.expected or math.inf))


class HeldOutBatches:
    """One process's batches of rows that are measured: rows of like lengths together, each in one process alone.

    Every process has as many batches. The first `counted` of them are its own; what is left keeps pace with others.

    Args:
        rows: to measure.
        batch_size: rows of a batch.
        rank, world_size: of this process, and how many there are.
    """

    def __init__(self, rows: TokenRows, batch_size: int, rank: int = 0, world_size: int = 1):
        self.rows = rows
        batches = rows.num_frames.argsort(stable=True).split(batch_size)
        own = batches[rank::world_size]
        self.counted = len(own)
        self.batches = [*own, *batches[: -(-len(batches) // world_size) - len(own)]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list]:
        return (self.rows.places(batch.tolist()) for batch in self.batches)
