"""A corpus made into tokens, to train on and to hold out, by any number of processes and machines.

The unit of work is a numbered shard. The second of eight machines makes shards 1, 9, 17, ..., which its processes
share; what was made before is left as it is.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.compute
import torch
from tqdm.auto import tqdm

from ..clips.corpus import corpus_pairs, streamed_pairs
from ..clips.digests import Digests
from ..clips.recorded import RecordedPairs
from .shards import READING, Shards, shard_name
from .writer import Pairs, ShardWriter, loaded_processor, refuse_shared_recordings

PARTS = ("valid", "train")  # held-out clips first: they are few
RECORDINGS = "recordings.parquet"  # digests of what was read, so that it is read once
PAIR_SECONDS = 4.0  # of clips from recorded pairs, unless said otherwise
POLL_SECONDS = 0.5


@dataclass
class TokenizeArguments:
    """What tokens are made from, and where they go.

    Args:
        corpus: clean speech (folder, manifest, data set), or without a recipe a folder of noisy/clean pairs.
        output: folder of the tokens, which get into `train/` and `valid/`.
        codec: folder or Hub id of a `DacModel`, or of a model with its processor.
        recipe: YAML of the degradations; None for recorded pairs.
        clips: degraded clips to train on (of recorded pairs and of a stream: all there are).
        valid_clips: held-out clips of each task.
        tasks: of the recipe; all when left out.
        where: rows of a manifest: "bandwidth_hz >= 14500 and snr_db >= 30".
        noise, rooms, music: folders, manifests or data sets; without rooms small ones are simulated.
        valid_data: held-out speech, or pairs; else what `corpus` holds out.
        max_seconds: the longest clip; that of the recipe when left out.
        whole: make all clips that long, for a model of one window.
        stream: read `corpus`, a data set on the Hub or a folder of its files, as a stream; one shard for each file.
        seed: of clips, tasks and degradations.
        skip_broken: count unreadable or silent recordings and go on without them.
        shard: which machine this is, from 1, and of how many.
        processes: that degrade and encode here.
        device: where they encode, such as "cuda".
        shard_size: clips of a shard.
        follow: go on with new clips for as long as a training run reads them, and remove those it has read.
        ahead: with `follow`, how many shards to make that the run does not read yet.

    Raises:
        ValueError: a number out of its range, or settings that exclude one another.
    """

    corpus: str
    output: str
    codec: str
    recipe: str | None = None
    clips: int = 20_000
    valid_clips: int = 16
    tasks: Sequence[str] | None = None
    where: str | None = None
    noise: str | None = None
    rooms: str | None = None
    music: str | None = None
    valid_data: str | None = None
    max_seconds: float | None = None
    whole: bool = False
    stream: bool = False
    seed: int = 0
    skip_broken: bool = False
    shard: tuple[int, int] = (1, 1)
    processes: int = 1
    device: str = "cpu"
    shard_size: int = 256
    follow: bool = False
    ahead: int = 2

    def __post_init__(self):
        for name in ("clips", "valid_clips", "processes", "shard_size", "ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"shard is {self.shard[0]}/{self.shard[1]}; the first of four machines is 1/4")
        if self.whole and self.max_seconds is None:
            raise ValueError("whole makes all clips as long as max_seconds; give max_seconds")
        if self.recipe is None and (self.stream or self.follow):
            raise ValueError("pairs of recordings are neither streamed nor followed; give a recipe for clean speech")


def tokenize(arguments: TokenizeArguments, write: Callable | None = None) -> dict[str, dict[str, int]]:
    """Makes this machine's shards of both parts.

    Args:
        arguments: what from, and where to.
        write: called as `write_shards` is, to have a cluster make the shards.

    Returns:
        `shards`, `clips` and `tokens` that are in each part's folder now, noisy and clean ones.

    Raises:
        ValueError: the folder holds tokens made from something else, or what is held out is also trained on.
        OSError: a recording that cannot be read, a full disk, a stream that broke.
    """
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    digests = Digests(output / RECORDINGS)
    pairs = {part: open_pairs(arguments, part) for part in PARTS}
    refuse_shared_recordings([pairs["train"], pairs["valid"]], digests)
    writers = {part: make_writer(arguments, part, pairs[part]) for part in PARTS}
    for writer in writers.values():
        writer.claim(digests)
    shards = shards_to_make(arguments, writers)
    (write or write_shards)(writers, shards if arguments.follow else list(shards), arguments.processes)
    return {part: count_tokens(output, part) for part in PARTS}


def shards_to_make(arguments: TokenizeArguments, writers: dict[str, ShardWriter]) -> Iterator[tuple[str, int]]:
    """Part and number of the shards that are missing, held-out ones first."""
    for part, writer in writers.items():
        if part == "train" and arguments.follow:
            numbers = wanted_shards(writer.folder, arguments.shard, arguments.ahead)
        else:
            numbers = range(arguments.shard[0] - 1, writer.num_shards, arguments.shard[1])
        yield from ((part, number) for number in numbers if not writer.is_there(number))


def count_tokens(output: Path, part: str) -> dict[str, int]:
    """How much there is of a part."""
    shards = Shards(output, part)
    rows = shards.rows()
    frames = sum(int(pyarrow.compute.sum(shards.table(number)["frames"]).as_py()) for number in rows)
    tokens = 2 * frames * shards.description["num_codebooks"]
    return {"shards": len(rows), "clips": sum(rows.values()), "tokens": tokens}


def open_pairs(arguments: TokenizeArguments, part: str) -> Pairs:
    """The pairs to train on (`train`) or to hold out (`valid`)."""
    processor = loaded_processor(arguments.codec, arguments.device)
    grid = processor.sampling_rate, processor.hop_length
    elsewhere = arguments.valid_data is not None
    data = arguments.valid_data if elsewhere and part == "valid" else arguments.corpus
    options = {"whole": arguments.whole, "skip_broken": arguments.skip_broken}
    if arguments.recipe is None:
        seconds = arguments.max_seconds or PAIR_SECONDS
        return RecordedPairs(data, *grid, seconds, part="all" if elsewhere else part, **options)
    if arguments.max_seconds is not None:
        options["max_seconds"] = arguments.max_seconds
    options |= {"split": part, "tasks": arguments.tasks, "seed": arguments.seed + (part == "valid")}
    options |= {name: getattr(arguments, name) for name in ("noise", "rooms", "music")}
    if arguments.stream and part == "train":
        return streamed_pairs(data, arguments.recipe, *grid, **options)
    where = arguments.where if data == arguments.corpus else None
    options |= {"where": where, "whole_speech": elsewhere, "tasks_in_turn": part == "valid"}
    return corpus_pairs(data, arguments.recipe, *grid, **options)


def make_writer(arguments: TokenizeArguments, part: str, pairs: Pairs) -> ShardWriter:
    """What makes the shards of a part."""
    if isinstance(pairs, RecordedPairs):
        count = len(pairs)
    elif part == "valid":
        count = arguments.valid_clips * len(pairs.tasks)
    else:
        count = None if arguments.follow or arguments.stream else arguments.clips
    folder = Path(arguments.output) / part
    return ShardWriter(folder, pairs, arguments.codec, count, arguments.shard_size, device=arguments.device)


job: dict[str, ShardWriter] = {}  # what a process of a pool was given, by part


def start_worker(writers: dict[str, ShardWriter]) -> None:
    """Prepares a process of a pool: they share the cores."""
    torch.set_num_threads(1)
    job.update(writers)


def work(shard: tuple[str, int]) -> None:
    """Makes a shard in a process of a pool."""
    part, number = shard
    job[part].write(number)


def write_shards(writers: dict[str, ShardWriter], shards: Iterable[tuple[str, int]], processes: int = 1) -> None:
    """Makes shards, several at once.

    Args:
        writers: make them, by part.
        shards: part and number of each; may go on and on.
        processes: that share the cores; 1 for this process alone, with all its threads.

    Raises:
        OSError: a process has ended without a word.
    """
    total, shards = len(shards) if isinstance(shards, list) else None, iter(shards)
    with tqdm(desc="tokens", total=total, unit="shard", delay=1.0) as progress:
        if processes == 1:
            for part, number in shards:
                writers[part].write(number)
                progress.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, start_worker, (writers,)) as pool:
            try:
                at_work = {pool.submit(work, shard) for shard in islice(shards, processes)}
                while at_work:
                    done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        progress.update()
                    at_work |= {pool.submit(work, shard) for shard in islice(shards, len(done))}
            except BrokenExecutor as error:
                raise OSError(
                    "a process that made shards was ended, most often because memory ran out; run the same command "
                    f"again with fewer --processes than {processes}: finished shards stay"
                ) from error


def wanted_shards(folder: Path, shard: tuple[int, int], ahead: int) -> Iterator[int]:
    """The shards a training run reads now or soon, as it goes on, until it ends; removes those it has read.

    Args:
        folder: of the shards, in which `reading.json` says where the run is.
        shard: which machine this is, from 1, and how many there are.
        ahead: how many shards to make that the run does not read yet.
    """
    reading = folder / READING
    begun, first, last, given = False, 0, -1, set()
    while True:
        place = json.loads(reading.read_text()) if reading.exists() else {"ended": True}
        if place["ended"] and begun:  # and not a run before this one
            return
        if not place["ended"]:
            begun, first, last = True, place["first"], place["last"]
        mine = range(shard[0] - 1, last + 1 + ahead, shard[1])
        there = {number: rows for number, rows in Shards(folder).rows().items() if number in mine}
        for number in [number for number in there if number < first]:
            (folder / shard_name(number, there[number])).unlink()
        given -= there.keys()
        wanted = [number for number in mine if number >= first and number not in given | there.keys()]
        if wanted:
            given.add(wanted[0])
            yield wanted[0]
        else:
            time.sleep(POLL_SECONDS)
