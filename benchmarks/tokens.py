"""How tokens are best stored: writing, opening and random reading of the same rows as Arrow and as Parquet.

    python benchmarks/tokens.py [--rows 20480] [--frames 86]

Rows are those of the embedded model's clips: two sides of so many frames of six codebooks.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars, load_dataset
from machine import describe_machine

from training_dacse.tokens.shards import Shards, claim, features, write_shard

CODEBOOKS, CODES, SHARD = 6, 512, 256


def make_rows(first: int, frames: int) -> list[dict]:
    """A shard of codes, of which the low ones are the commonest."""
    rng = np.random.default_rng(first)
    codes = np.minimum(CODES - 1, rng.exponential(90, (SHARD, 2, frames * CODEBOOKS))).astype(np.int16)
    about = {"task": "noise", "recording": "", "parameters": "{}", "snr_db": 0.0, "changed": 1.0, "frames": frames}
    return [about | {"index": first + i, "noisy": noisy, "clean": clean} for i, (noisy, clean) in enumerate(codes)]


def timed(work) -> tuple[float, object]:
    """Seconds of processor time, and what came out."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def megabytes(folder: Path, pattern: str) -> float:
    return sum(path.stat().st_size for path in folder.glob(pattern)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20480)
    parser.add_argument("--frames", type=int, default=86)
    args = parser.parse_args()
    disable_progress_bars()
    result = {"machine": describe_machine(), "rows": args.rows, "frames": args.frames}
    order = np.random.default_rng(0).permutation(args.rows)[:4000].tolist()
    with tempfile.TemporaryDirectory() as place:
        arrow, parquet = Path(place) / "arrow", Path(place) / "parquet"
        write = {"arrow": 0.0, "parquet": 0.0}
        described = {"tasks": ["noise"], "num_codebooks": CODEBOOKS, "codebook_size": CODES}
        claim(arrow, described, {"num_shards": args.rows // SHARD})
        parquet.mkdir()
        for number in range(args.rows // SHARD):
            rows = make_rows(number * SHARD, args.frames)
            write["arrow"] += timed(lambda rows=rows, number=number: write_shard(arrow, number, rows))[0]
            table = Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]}, features(CODES))
            path = parquet / f"{number:06d}.parquet"
            write["parquet"] += timed(lambda table=table, path=path: table.to_parquet(path))[0]
        shards = Shards(arrow)
        opened, _ = timed(lambda: [shards.table(number) for number in shards.rows()])
        read, _ = timed(lambda: [shards[divmod(number, SHARD)] for number in order])
        result["arrow"] = {"write_s": write["arrow"], "mb": megabytes(arrow, "*.arrow"), "open_s": opened}
        result["arrow"]["random_rows_per_s"] = len(order) / read
        files = sorted(map(str, parquet.glob("*.parquet")))
        load = {"data_files": files, "split": "train", "cache_dir": str(Path(place) / "cache")}
        opened, rows = timed(lambda: load_dataset("parquet", **load).with_format("numpy"))
        read, _ = timed(lambda: [rows[number]["noisy"] for number in order])
        result["parquet"] = {"write_s": write["parquet"], "mb": megabytes(parquet, "*.parquet"), "open_s": opened}
        result["parquet"]["random_rows_per_s"] = len(order) / read
        stream = load_dataset("parquet", **load, streaming=True)
        read, _ = timed(lambda: [row["noisy"] for row in stream.take(4000)])
        result["parquet"]["streamed_rows_per_s"] = 4000 / read
    rounded = {
        name: {key: round(v, 3) for key, v in value.items()}
        for name, value in result.items()
        if isinstance(value, dict)
    }
    print(json.dumps(result | rounded, indent=2))


if __name__ == "__main__":
    main()
