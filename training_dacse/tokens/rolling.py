"""A window over shards that are made while a run reads them. Knows no waveform, no model."""

import time
from pathlib import Path

from tqdm.auto import tqdm

from ..files import write_json
from .cache import FirstCodebooks, TokenCache, TokenRows
from .shards import READING, Shards

LONGEST_WAIT = 900.0  # seconds for a shard that another process makes
POLL_SECONDS = 0.2


class RollingTokens(TokenRows):
    """A window over shards that go on and on: at every epoch some leave it and new ones come in.

    The shards are made meanwhile by `dacse tokenize --follow`, which learns from `reading.json` how far the training
    is; it removes what has been read, and makes again what a run that was resumed asks for.

    Args:
        source, part, num_codebooks: as in `TokenCache`.
        window: shards of an epoch.
        fresh: of these, how many are new in each epoch.
        announces: whether this process says how far it is: one of each run.
    """

    def __init__(
        self,
        source: str | Path,
        part: str = "",
        window: int = 16,
        fresh: int = 1,
        num_codebooks: int | None = None,
        announces: bool = True,
    ):
        if not 1 <= fresh <= window:
            raise ValueError(f"{fresh} fresh shards of {window}; give at least 1 and at most the window")
        self.shards, self.window, self.fresh, self.announces = Shards(source, part), window, fresh, announces
        self.num_codebooks = num_codebooks or self.shards.description["num_codebooks"]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return self.shards.tasks

    @property
    def storage(self) -> FirstCodebooks:
        """What rows are read from, by their places."""
        return FirstCodebooks(self.shards, self.num_codebooks)

    def of_epoch(self, epoch: int) -> TokenCache:
        """The rows of an epoch; waits for shards that are still to come.

        Raises:
            TimeoutError: a shard does not come.
        """
        numbers = range(epoch * self.fresh, epoch * self.fresh + self.window)
        if self.announces:
            kept = max(0, numbers.start - self.fresh)  # workers still read the epoch before
            write_json(self.shards.folder / READING, {"first": kept, "last": numbers.stop - 1, "ended": False})
        self.wait_for(numbers)
        return TokenCache(self.shards, numbers=numbers, num_codebooks=self.num_codebooks)

    def wait_for(self, numbers: range) -> None:
        """Returns once all shards are there."""
        progress, deadline, before = tqdm(total=len(numbers), desc="shards", delay=5.0), None, -1
        while (there := len(self.shards.rows().keys() & set(numbers))) < len(numbers):
            if there != before:
                before, deadline = there, time.monotonic() + LONGEST_WAIT
                progress.update(there - progress.n)
            if time.monotonic() > deadline:
                missing = min(set(numbers) - self.shards.rows().keys())
                raise TimeoutError(
                    f"{self.shards}: shard {missing} has not come for {LONGEST_WAIT:.0f} s; is `dacse tokenize "
                    "--follow` running on this folder?"
                )
            time.sleep(POLL_SECONDS)
        progress.close()

    def end(self) -> None:
        """Says that nothing more is read."""
        if self.announces:
            write_json(self.shards.folder / READING, {"first": 0, "last": -1, "ended": True})
