"""Speed of training steps: how long one takes, how much of it waits for data, and the share of the device's peak.

    python benchmarks/training.py --size tiny --frames 86 --batch-size 4                        (a CPU, 1 s clips)
    python benchmarks/training.py --size 250M --batch-size 16 --peak-tflops 989     (an H100 or H200; also --size 1B)

Clips are random codes (4 s of the released grid by default): the speed does not depend on what they say.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from machine import describe_machine
from torch.utils.data import DataLoader

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from training_dacse.lm.arguments import DacSeTrainingArguments
from training_dacse.tokens.collate import TokenCollator
from training_dacse.experiments.costs import training_flops_per_token
from training_dacse.tokens.cache import CACHE_FEATURES, TokenCache
from training_dacse.lm.trainer import DacSeTrainer


def write_cache(folder: Path, config: DacSeConfig, frames: int, count: int) -> None:
    codes = torch.randint(config.codebook_size, (count, 2, frames * config.num_codebooks)).tolist()
    rows = [
        {"index": i, "task": "noise", "snr_db": 0.0, "parameters": "{}", "noisy": noisy, "clean": clean}
        for i, (noisy, clean) in enumerate(codes)
    ]
    Dataset.from_list(rows, features=CACHE_FEATURES).to_parquet(folder / f"tokens-00000000-{count:08d}.parquet")
    (folder / "cache.json").write_text(json.dumps({"tasks": ["noise"], "num_codebooks": config.num_codebooks}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--num-codebooks", type=int, default=9)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--frames", type=int, default=345, help="of a clip; 345 are 4 s of the released grid")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device in bf16, to state the share of it that is used"
    )
    args = parser.parse_args()

    layout = {"num_codebooks": args.num_codebooks, "codebook_size": args.codebook_size}
    length = 2 * args.frames * args.num_codebooks + 3
    config = DacSeConfig.from_size(args.size, **layout, max_position_embeddings=length, attention_dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder), config, args.frames, count=8 * args.batch_size)
        training = DacSeTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=args.batch_size,
            max_steps=1,
            bf16=True,
            activation_checkpointing=args.checkpointing,
            torch_compile=args.compile,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        rows = TokenCache(folder)
        trainer = DacSeTrainer(
            model=DacSeForEnhancement(config),
            args=training,
            tasks=rows.tasks,
            train_dataset=rows,
            data_collator=TokenCollator(config),
        )
        trainer.train()  # sets everything up, compiles
        waits, steps = [], []
        loader = DataLoader(rows, args.batch_size, collate_fn=TokenCollator(config))
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for _ in range(args.steps):
            start = time.perf_counter()
            batch = next(batches)
            fetched = time.perf_counter()
            trainer.training_step(trainer.model_wrapped, batch)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            waits.append(fetched - start)
            steps.append(time.perf_counter() - start)
    step, wait = statistics.median(steps), statistics.median(waits)
    flops = training_flops_per_token(config) * length * args.batch_size / step
    result = {
        "machine": describe_machine(),
        **{name: value for name, value in vars(args).items() if value is not None},
        "dtype": "bfloat16" if training.bf16 else "float32",
        "step_seconds": round(step, 4),
        "step_spread": [round(min(steps), 4), round(max(steps), 4)],
        "waiting_for_data": round(wait / step, 4),
        "tokens_per_second": round(length * args.batch_size / step),
        "tflops": round(flops / 1e12, 3),
    }
    if args.peak_tflops:
        result["share_of_peak"] = round(flops / 1e12 / args.peak_tflops, 3)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
