"""Pairs turned into codes: the token cache on disk and the data set a trainer reads. Knows no degradation, no model.

A cache is a folder of parquet shards and a `cache.json` that says what it was made from. A row holds `index`, `task`,
`snr_db` (lowest ratio of its degradations, infinite when there is none), `parameters` (JSON), and `noisy` and `clean`
codes, flattened frame by frame.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DacModel

from processing_dacse.codec_dacse import encode_in_pieces

from .recipe import lowest_snr

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


def load_codec(path: str | Path) -> DacModel:
    """The codec in a folder or repository, also where it stands inside a processor's (`audio_tokenizer/`)."""
    inside = (Path(path) / "audio_tokenizer").is_dir()
    return DacModel.from_pretrained(path, subfolder="audio_tokenizer" if inside else "").eval()


def codec_fingerprint(codec: DacModel) -> str:
    """Changes with any weight or with the shape of the codec."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
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

    Raises:
        ValueError: `folder` holds a cache made with another codec, recipe or speech.
    """
    folder = Path(folder)
    codec = load_codec(codec_path)
    count = len(pairs) if count is None else count
    description = {
        "codec": codec_fingerprint(codec),
        "pairs": pairs.fingerprint,
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
    if num_processes > 1 and missing:
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
    for first in range(0, len(shard), batch_size):
        indices = shard[first : first + batch_size]
        batch = [pairs[index] for index in indices]
        for index, pair, (noisy, clean) in zip(indices, batch, encode_pairs(codec, batch), strict=True):
            row = {"index": index, "task": pair["task"], "snr_db": lowest_snr(pair["parameters"])}
            codes = {"noisy": noisy.T.flatten().tolist(), "clean": clean.T.flatten().tolist()}
            rows.append({**row, "parameters": json.dumps(pair["parameters"]), **codes})
    path = shard_path(folder, shard)
    Dataset.from_list(rows, features=CACHE_FEATURES).to_parquet(path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


worker = {}  # what a process of the pool was given: pairs, codec, folder, batch size


def start_worker(pairs, codec_path: str, folder: Path, batch_size: int) -> None:
    """Loads the codec once per process."""
    torch.set_num_threads(1)
    worker.update(pairs=pairs, codec=load_codec(codec_path), folder=folder, batch_size=batch_size)


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
        folder = Path(folder)
        shards = sorted(folder.glob("tokens-*.parquet"))
        if not shards:
            raise FileNotFoundError(f"{folder}: no token cache (no tokens-*.parquet)")
        self.description = json.loads((folder / "cache.json").read_text())
        tables = {}  # by first row: a cache that has grown may still hold the shorter last shard it had before
        for shard in shards:
            tables[shard.stem.split("-")[1]] = shard
        rows = concatenate_datasets(
            [Dataset.from_parquet(str(shard), keep_in_memory=True) for shard in tables.values()]
        )
        self.rows = rows.select(range(min(len(rows), count or len(rows)))).with_format("torch")
        self.num_codebooks = num_codebooks or self.description["num_codebooks"]
        self.task_names: Sequence[str] = self.rows.with_format(None)["task"][:]
        self.snr_db = torch.tensor(self.rows.with_format(None)["snr_db"][:])
        self.tasks = sorted(set(self.task_names))
        self.number = {name: number for number, name in enumerate(self.tasks)}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def max_frames(self) -> int:
        """Frames of the longest clip."""
        width = self.description["num_codebooks"]
        return max(len(codes) for codes in self.rows.with_format("arrow")["clean"][:]) // width

    def __getitem__(self, index: int) -> dict:
        row, width = self.rows[index], self.description["num_codebooks"]
        codes = {side: row[side].long().view(-1, width).T[: self.num_codebooks] for side in ("noisy", "clean")}
        return {**codes, "task": self.number[row["task"]]}
