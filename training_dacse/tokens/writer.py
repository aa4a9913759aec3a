"""Pairs written as numbered shards. Knows pairs, codec and shards; knows no process but its own.

The bytes of a shard depend on what the recordings hold, the recipe, the codec, the seed and the shard's number, on
nothing else: all shards together are the same whoever made them.
"""

import importlib.metadata
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import soundfile

from processing_dacse import DacSeProcessor

from ..clips.digests import Digests
from ..clips.pairs import DegradedPairs, StreamedPairs
from ..clips.recipe import lowest_snr
from ..clips.recorded import RecordedPairs
from .encode import codec_fingerprints, encode_pairs, find_processor
from .shards import claim, shard_name, write_shard

GRID = ("num_codebooks", "codebook_size", "sampling_rate", "hop_length")
PACKAGES = ("dacse", "numpy", "scipy", "soxr", "pyroomacoustics", "torch", "transformers")

Pairs = DegradedPairs | RecordedPairs | StreamedPairs


@dataclass
class ShardWriter:
    """Makes shards of a folder.

    Args:
        folder: of the shards.
        pairs: what they are made from.
        codec_path: folder or Hub id of the codec.
        count: how many pairs there are in all; None for an endless supply, or a stream.
        shard_size: pairs of a shard; of a stream a shard is a file.
        batch_size: pairs encoded together.
        device: where they are encoded.
    """

    folder: Path
    pairs: Pairs
    codec_path: str
    count: int | None = None
    shard_size: int = 256
    batch_size: int = 16
    device: str = "cpu"

    @property
    def num_shards(self) -> int | None:
        """How many shards there are in all, None if they go on and on."""
        if isinstance(self.pairs, StreamedPairs):
            return self.pairs.stream.num_shards
        return None if self.count is None else math.ceil(self.count / self.shard_size)

    def claim(self, digests: Digests) -> None:
        """Writes what the shards are made from, or compares it with what is written.

        Raises:
            ValueError: the folder holds shards that were made from something else.
        """
        processor = loaded_processor(self.codec_path, self.device)
        fingerprints = codec_fingerprints(processor.audio_tokenizer)
        description = {
            "tasks": self.pairs.tasks,
            **{name: getattr(processor, name) for name in GRID},
            "shard_size": self.shard_size,
            "codec": fingerprints[-1],
            "pairs": self.pairs.describe(digests),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
            | {"libsndfile": soundfile.__libsndfile_version__},
        }
        remarks = {"codec_path": str(self.codec_path), "window_frames": self.pairs.window_frames}
        remarks["codec_of_first"] = fingerprints  # codebooks
        remarks["num_shards"] = self.num_shards
        claim(self.folder, description, remarks)

    def numbers(self, shard: int) -> range:
        """The pairs of a shard."""
        whole = range(shard * self.shard_size, (shard + 1) * self.shard_size)
        return whole if self.count is None else range(whole.start, min(whole.stop, self.count))

    def is_there(self, shard: int) -> bool:
        """Whether a shard was made."""
        if isinstance(self.pairs, DegradedPairs):
            return (self.folder / shard_name(shard, len(self.numbers(shard)))).exists()
        return any(self.folder.glob(shard_name(shard, "*")))  # recordings may have been left out of it

    def write(self, shard: int) -> None:
        """Makes a shard."""
        streamed = isinstance(self.pairs, StreamedPairs)
        pairs = self.pairs.shard(shard if streamed else self.numbers(shard))
        processor = loaded_processor(self.codec_path, self.device)
        rows = list(token_rows(processor, shard * self.shard_size, iter(pairs), self.batch_size))
        write_shard(self.folder, shard, rows)


def token_rows(processor: DacSeProcessor, first: int, pairs: Iterator[dict], batch_size: int) -> Iterator[dict]:
    """Rows of a shard, see `shards.features`; `first` is the number of the first pair."""
    numbers = count(first)
    while batch := list(islice(pairs, batch_size)):
        for pair, (noisy, clean) in zip(batch, encode_pairs(processor, batch), strict=True):
            yield {
                "index": next(numbers),
                "task": pair["task"],
                "recording": pair["recording"],
                "snr_db": lowest_snr(pair["parameters"]),
                "parameters": json.dumps(pair["parameters"]),
                "changed": (noisy != clean).float().mean().item(),
                "frames": clean.shape[1],
                "noisy": noisy.T.flatten().numpy(),
                "clean": clean.T.flatten().numpy(),
            }


processors: dict[tuple[str, str], DacSeProcessor] = {}  # that this process has loaded


def loaded_processor(path: str, device: str) -> DacSeProcessor:
    """A processor with its codec on a device, loaded once by a process."""
    if (path, device) not in processors:
        processors[path, device] = find_processor(path)
        processors[path, device].audio_tokenizer.to(device)
    return processors[path, device]


def refuse_shared_recordings(pairs: Iterable[Pairs], digests: Digests) -> None:
    """
    Raises:
        ValueError: what is held out is also trained on, whatever the names of the files.
    """
    met: dict[str, tuple[int, str]] = {}
    for part, supply in enumerate(pairs):
        for clips in supply.recordings():
            for index, digest in enumerate(digests.of(clips)):
                there, name = met.setdefault(digest, (part, clips.name(index)))
                if there != part:
                    raise ValueError(
                        f"{clips.name(index)} is held out, but {name} is the same recording and is trained on: "
                        "remove one"
                    )
