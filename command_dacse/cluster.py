"""Work shared out among the workers of a Ray cluster, chunk by chunk. Knows neither audio nor tokens.

When a worker dies, Ray starts it again and has its chunk done again. What a chunk writes must therefore be whole at
any time, and the same however often it is written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import re
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from typing import Any

from command_dacse.terminal import one_line, say

CHUNKS_A_WORKER = 16  # so that the last chunk is not long waited for
MOST_ITEMS = 64  # of a chunk: what is done again at most; short recordings still fill a batch
CONNECT_TIMEOUT = 8  # seconds for a cluster to answer at its address
ATTEMPTS = 3  # at a chunk, and then at each item of it, before workers are spared them


class WorkerDied(OSError):
    """Every worker that does this dies of it."""


def run_on_ray(address: str, work: Callable[[list], Any], items: list, use_gpus: bool) -> Iterator[tuple[list, Any]]:
    """Has a cluster do items, with one worker on each of its GPUs, or of its cores where it has no GPU.

    Args:
        address: "local" starts a cluster on this machine that ends with this process, "auto" is the one that this
            machine belongs to, anything else the address of one.
        work: does a chunk of items; it travels to the workers, and each of them keeps its own.
        items: that may travel.
        use_gpus: whether workers want a GPU each, where there are any.

    Yields:
        Chunks with what came of them, in any order; `WorkerDied` for an item that no worker survives.

    Raises:
        OSError: Ray is not installed, or there is no such cluster.
    """
    if not find_spec("ray"):
        raise OSError("--ray needs Ray; pip install 'dacse[ray]'")
    with _connected(address):
        workers, resources = _find_room(use_gpus)
        say(f"{workers} workers on Ray ({address})")
        size = max(1, min(MOST_ITEMS, len(items) // (workers * CHUNKS_A_WORKER)))
        lost: list = []
        for chunk, answer in _map_chunks(work, _cut(items, size), workers, resources):
            if isinstance(answer, WorkerDied) and len(chunk) > 1:
                lost += chunk
            else:
                yield chunk, answer
        if lost:
            yield from _map_chunks(work, _cut(lost, 1), workers, resources)


def _map_chunks(
    work: Callable[[list], Any], chunks: list[list], workers: int, resources: dict[str, float]
) -> Iterator[tuple[list, Any]]:
    """Yields every chunk with its answer, or with `WorkerDied`."""
    import ray
    import ray.data

    attempts = ray.remote(num_cpus=0, max_restarts=-1)(_Attempts).remote()
    rows = [{"number": number, "chunk": pickle.dumps(chunk)} for number, chunk in enumerate(chunks)]
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(work, attempts),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=min(workers, len(chunks))),
        **resources,
    )
    for row in answers.iter_rows():
        answer = pickle.loads(row["answer"])
        if isinstance(answer, Exception) and not isinstance(answer, WorkerDied):
            raise answer
        yield chunks[row["number"]], answer


class _Worker:
    """What does the chunks of one worker. What it raises travels as an answer, for Ray would only say where."""

    def __init__(self, work: Callable[[list], Any], attempts: Any):
        self.work, self.attempts = work, attempts

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        import ray

        (number,), (chunk,) = batch["number"], batch["chunk"]
        if ray.get(self.attempts.begin.remote(int(number))) > ATTEMPTS:
            answer = WorkerDied(f"{ATTEMPTS} workers died over this")
        else:
            try:
                answer = self.work(pickle.loads(chunk))
            except Exception as error:
                answer = error
        return {"number": [number], "answer": [pickle.dumps(answer)]}


class _Attempts:
    """Counts how often each chunk was begun: a worker that died of it cannot."""

    def __init__(self):
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self.begun[number] += 1
        return self.begun[number]


@contextlib.contextmanager
def _connected(address: str) -> Generator[None]:
    """A connection to a cluster, of which people hear a line for each loss and nothing else."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised as well
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do some day
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(_Losses()):
        own = {"include_dashboard": False} if address == "local" else {}
        try:
            _check_answers(address)
            with _no_standard_error():  # where it tells of the level above
                ray.init(address, logging_level="ERROR", log_to_driver=False, **own)
        except Exception as error:  # of many kinds, bare ones among them
            raise OSError(f"no cluster of Ray at {address!r} ({one_line(error)}); is it running?") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises OSError if nothing listens at an address with a port, which Ray would try for minutes."""
    if place := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address):
        socket.create_connection((place[1], int(place[2])), timeout=CONNECT_TIMEOUT).close()


@contextlib.contextmanager
def _no_standard_error() -> Generator[None]:
    """Without standard error, also of code that is not Python's."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


class _Losses(io.StringIO):
    """Takes what Ray prints in long lines, and says what of it matters to people."""

    def write(self, text: str) -> int:
        if "worker died" in text:
            say("a worker died; what it was at is done again")
        return len(text)


def _find_room(use_gpus: bool) -> tuple[int, dict[str, float]]:
    """How many workers a cluster has room for, and what each takes of it."""
    import ray

    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    if use_gpus and gpus:
        return gpus, {"num_gpus": 1, "num_cpus": min(1.0, cores / gpus)}
    if not cores:
        raise OSError("the cluster has no cores for workers; start a node with more than --num-cpus 0")
    return cores, {"num_cpus": 1}


def _cut(items: list, size: int) -> list[list]:
    """
    >>> _cut([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    return [items[first : first + size] for first in range(0, len(items), size)]
