"""Pairs turned into codes: the token cache on disk and the data set a trainer reads. Knows no degradation, no model.

A cache is a folder of parquet shards and a `cache.json` that says what it was made from. A row holds `index`, `task`,
`snr_db` (lowest ratio of its degradations, infinite when there is none), `parameters` (JSON), and `noisy` and `clean`
codes, flattened frame by frame.
"""

import hashlib
import json
import multiprocessing
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from datasets import Audio, Dataset, Features, IterableDataset, List, Value
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DacModel
from transformers.utils import cached_file

from processing_dacse.codec_dacse import encode_in_pieces, load_codec

from ..clips.recipe import lowest_snr
from ..clips.sources import Clips

CODEC_FOLDER = "audio_tokenizer"  # where a processor keeps its codec
CACHE_FEATURES = Features(
    {
        "index": Value("int64"),
        "task": Value("string"),
        "snr_db": Value("float32"),
        "parameters": Value("string"),
        "noisy": List(Value("int16")),
        "clean": List(Value("int16")),
    }
)


def find_codec(path: str | Path) -> DacModel:
    """The codec in a folder or repository, also where it stands inside a processor's (`audio_tokenizer/`)."""
    inside = cached_file(path, "config.json", subfolder=CODEC_FOLDER, _raise_exceptions_for_missing_entries=False)
    return load_codec(path, **({"subfolder": CODEC_FOLDER} if inside else {})).eval()


def codec_fingerprint(codec: DacModel) -> str:
    """Changes with any weight or shape that decides about codes; the decoder may be trained further."""
    digest = hashlib.sha256()
    decisive = {name: tensor for name, tensor in codec.state_dict().items() if not name.startswith("decoder.")}
    for name, tensor in sorted(decisive.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@torch.inference_mode()
def encode_pairs(codec: DacModel, pairs: list[dict]) -> list[tuple[Tensor, Tensor]]:
    """Codes (codebook, frame) of each pair's noisy and clean waveform; neighbours of one length share a batch."""
    codes = []
    for _, group in groupby(pairs, key=lambda pair: pair["clean"].shape[-1]):
        group = list(group)
        waveforms = torch.stack([torch.from_numpy(pair[side][0]) for side in ("noisy", "clean") for pair in group])
        encoded = encode_in_pieces(codec, waveforms.to(codec.device)).cpu()
        codes += list(zip(encoded[: len(group)], encoded[len(group) :], strict=True))
    return codes


def build_token_cache(
    folder: str | Path,
    pairs,
    codec_path: str | Path,
    count: int | None = None,
    num_processes: int = 1,
    shard_size: int = 256,
    batch_size: int = 16,
    device: str | None = None,
) -> "TokenCache":
    """Encodes pairs `0 .. count - 1` into `folder` and opens it; shards that are already there are kept.

    Args:
        folder: of the cache. Shards are renamed when whole, so a killed run goes on where it was.
        pairs: `DegradedPairs` or `PairedFiles`.
        codec_path: folder or repository of the codec.
        count: number of pairs; all of them when left out.
        num_processes: processes that degrade and encode; more than one share the cores, one thread each.
        shard_size: pairs per parquet file.
        batch_size: pairs encoded together.
        device: where this process encodes what the others degrade, such as "cuda"; when left out every process does
            both, on the CPU.

    Raises:
        ValueError: `folder` holds a cache made with another codec, recipe or speech.
    """
    folder = Path(folder)
    codec = find_codec(codec_path)
    count = len(pairs) if count is None else count
    description = {
        "codec": codec_fingerprint(codec),
        "pairs": pairs.fingerprint,
        "tasks": pairs.tasks,
        "shard_size": shard_size,
        "num_codebooks": codec.config.n_codebooks,
        "codebook_size": codec.config.codebook_size,
        "sampling_rate": codec.config.sampling_rate,
        "hop_length": codec.config.hop_length,
    }
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, description)
    shards = [range(first, min(first + shard_size, count)) for first in range(0, count, shard_size)]
    missing = [shard for shard in shards if not shard_path(folder, shard).exists()]
    if device is not None:
        write_shards(pairs, codec.to(device), folder, missing, batch_size, num_processes)
    elif num_processes > 1 and missing:
        setup = (pairs, str(codec_path), folder, batch_size)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, context, start_worker, setup) as pool:
            list(tqdm(pool.map(work, missing), "token cache", len(missing), unit="shard"))
    else:
        for shard in tqdm(missing, "token cache", unit="shard", disable=not missing):
            write_shard(pairs, codec, folder, shard, batch_size)
    return TokenCache(folder, count)


def claim(folder: Path, description: dict) -> None:
    """Writes what the cache is made from, or compares it with what is written."""
    path = folder / "cache.json"
    if not path.exists():
        path.with_suffix(".tmp").write_text(json.dumps(description, indent=2) + "\n")
        path.with_suffix(".tmp").rename(path)
        return
    found = json.loads(path.read_text())
    for key, value in description.items():
        if found[key] != value:
            raise ValueError(
                f"{folder}: this cache was made with another {key} ({found[key]}, now {value}); "
                "give another cache folder or delete this one"
            )


def shard_path(folder: Path, shard: range) -> Path:
    """The last shard of a cache may be shorter than the others: its name says where it ends."""
    return folder / f"tokens-{shard.start:08d}-{shard.stop:08d}.parquet"


def write_shard(pairs, codec: DacModel, folder: Path, shard: range, batch_size: int) -> None:
    """Degrades, encodes and writes one shard."""
    rows = []
    for indices in batches(shard, batch_size):
        rows += encoded_rows(codec, indices, [pairs[index] for index in indices])
    save_shard(folder, shard, rows)


def write_shards(
    pairs, codec: DacModel, folder: Path, shards: list[range], batch_size: int, num_processes: int
) -> None:
    """Encodes and writes shards in this process, on the device of the codec, while others degrade."""
    wanted = [indices for shard in shards for indices in batches(shard, batch_size)]
    # pairs leave their process as they are
    degraded = iter(DataLoader(pairs, batch_sampler=wanted, num_workers=num_processes, collate_fn=list))
    for shard in tqdm(shards, "token cache", unit="shard", disable=not shards):
        rows = []
        for indices in batches(shard, batch_size):
            rows += encoded_rows(codec, indices, next(degraded))
        save_shard(folder, shard, rows)


def batches(shard: range, batch_size: int) -> list[range]:
    """
    >>> batches(range(4, 9), 2)
    [range(4, 6), range(6, 8), range(8, 9)]
    """
    return [shard[first : first + batch_size] for first in range(0, len(shard), batch_size)]


def encoded_rows(codec: DacModel, indices: range, pairs: list[dict]) -> list[dict]:
    """Rows of a cache."""
    rows = []
    for index, pair, (noisy, clean) in zip(indices, pairs, encode_pairs(codec, pairs), strict=True):
        row = {"index": index, "task": pair["task"], "snr_db": lowest_snr(pair["parameters"])}
        codes = {"noisy": noisy.T.flatten().tolist(), "clean": clean.T.flatten().tolist()}
        rows.append({**row, "parameters": json.dumps(pair["parameters"]), **codes})
    return rows


def save_shard(folder: Path, shard: range, rows: list[dict]) -> None:
    """Writes one shard, whole or not at all."""
    path = shard_path(folder, shard)
    Dataset.from_list(rows, features=CACHE_FEATURES).to_parquet(path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


worker = {}  # what a process of the pool was given: pairs, codec, folder, batch size


def start_worker(pairs, codec_path: str, folder: Path, batch_size: int) -> None:
    """Loads the codec once per process."""
    torch.set_num_threads(1)
    worker.update(pairs=pairs, codec=find_codec(codec_path), folder=folder, batch_size=batch_size)


def work(shard: range) -> None:
    """Writes one shard in a process of the pool."""
    write_shard(worker["pairs"], worker["codec"], worker["folder"], shard, worker["batch_size"])


class TokenCache(torch.utils.data.Dataset):
    """The rows of a cache as tensors: `noisy` and `clean` codes (codebook, frame) and `task`, an index into `tasks`.

    Args:
        folder: of the cache.
        count: how many of its first rows; all when left out.
        num_codebooks: how many of the first codebooks; all when left out.
    """

    def __init__(self, folder: str | Path, count: int | None = None, num_codebooks: int | None = None):
        self.folder = Path(folder)
        shards = sorted(self.folder.glob("tokens-*.parquet"))
        if not shards:
            raise FileNotFoundError(f"{folder}: no token cache (no tokens-*.parquet)")
        self.description = json.loads((self.folder / "cache.json").read_text())
        tables = {shard.stem.split("-")[1]: shard for shard in shards}  # a cache that grew holds its last shard twice
        # an Arrow copy beside the shards is mapped, not read: a cache may be larger than the memory
        rows = Dataset.from_parquet([str(shard) for shard in tables.values()], cache_dir=str(self.folder / "arrow"))
        self.rows = rows.select(range(min(len(rows), count or len(rows))))
        self.num_codebooks = num_codebooks or self.description["num_codebooks"]
        self.tasks: list[str] = self.description["tasks"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row, width = self.rows[index], self.description["num_codebooks"]
        codes = {side: torch.tensor(row[side]).view(-1, width).T[: self.num_codebooks] for side in ("noisy", "clean")}
        return {**codes, "task": self.tasks.index(row["task"])}

    @property
    def task_numbers(self) -> Tensor:
        """The task of every row, (row,)."""
        return torch.tensor([self.tasks.index(task) for task in self.rows["task"][:]])

    @property
    def snr_db(self) -> Tensor:
        """The lowest ratio of every row, (row,)."""
        return torch.tensor(self.rows["snr_db"][:])

    def only(self, *tasks: str) -> "TokenCache":
        """The rows of some tasks; the numbers of the tasks stay.

        Raises:
            ValueError: there is no row of a task.
        """
        for task in tasks:
            if task not in set(self.rows["task"]):
                raise ValueError(
                    f"{self.folder}: no clip of task {task!r}; there are {', '.join(set(self.rows['task']))}"
                )
        return self.pick([number for number, task in enumerate(self.rows["task"]) if task in tasks])

    def pick(self, numbers: Sequence[int]) -> "TokenCache":
        """Some rows, by their numbers."""
        part = copy(self)
        part.rows = self.rows.select(numbers)
        return part


class TokensOnTheFly(torch.utils.data.Dataset):
    """Rows like a cache's, degraded and encoded when they are asked for (by the workers of a loader).

    Args:
        pairs: `DegradedPairs` or `PairedFiles`.
        codec: encodes them.
        count: how many pairs an epoch has.
        num_codebooks: how many of the first codebooks; all when left out.
    """

    def __init__(self, pairs, codec: DacModel, count: int, num_codebooks: int | None = None):
        self.pairs, self.codec, self.count, self.tasks = pairs, codec, count, pairs.tasks
        self.num_codebooks = num_codebooks or codec.config.n_codebooks

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        pair = self.pairs[index]
        noisy, clean = encode_pairs(self.codec, [pair])[0]
        width = self.num_codebooks
        return {"noisy": noisy[:width], "clean": clean[:width], "task": self.tasks.index(pair["task"])}


def stream_tokens(
    stream: IterableDataset, pairs, codec: DacModel, num_codebooks: int | None = None
) -> IterableDataset:
    """Rows like a cache's from a streamed data set with an `audio` column; too short recordings are left out.

    A clip is drawn by `pairs.seed` and the name of its recording, or its bytes: the same in any process, worker or
    order. A launcher that shards the stream (`dispatch_batches=False`) gives every process clips of its own.

    Args:
        stream: a streamed data set of clean speech.
        pairs: `DegradedPairs`, for its recipe and its grid; its recordings are not read.
        codec: encodes the clips.
        num_codebooks: how many of the first codebooks; all when left out.
    """

    def tokenize(batch: dict) -> dict:
        (audio,) = batch["audio"]
        clips = Clips([audio])
        name = Path(audio["path"]).name.encode() if audio["path"] else audio["bytes"]
        try:
            if clips.duration(0) < pairs.recipe.clip_seconds[0]:
                return {"noisy": [], "clean": [], "task": []}
            pair = pairs.degrade(clips, 0, np.random.default_rng((pairs.seed, zlib.crc32(name))))
        except (OSError, ValueError) as error:
            pairs.skip_or_raise(error)
            return {"noisy": [], "clean": [], "task": []}
        noisy, clean = encode_pairs(codec, [pair])[0]
        codes = {"noisy": [noisy[:num_codebooks].tolist()], "clean": [clean[:num_codebooks].tolist()]}
        return {**codes, "task": [pairs.tasks.index(pair["task"])]}

    undecoded = stream.cast_column("audio", Audio(decode=False))
    one_by_one = {"batched": True, "batch_size": 1}  # a batch may lose its row
    return undecoded.map(tokenize, remove_columns=stream.column_names, **one_by_one).with_format("torch")
