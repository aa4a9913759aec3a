"""Speed of training steps: how long one takes, how much of it waits for data, and the share of the device's peak.

    python benchmarks/training.py --size tiny --frames 86 --batch-size 4                        (a CPU, 1 s clips)
    python benchmarks/training.py --size 250M --batch-size 16 --packed --compile                (a GPU; also --size 1B)

Clips are random codes of a third of the longest length up (4 s of the released grid by default), written as shards and
read as training reads them: the speed does not depend on what they say.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from training_dacse.lm.arguments import DacSeTrainingArguments
from training_dacse.lm.trainer import DacSeTrainer
from training_dacse.tokens.cache import TokenCache
from training_dacse.tokens.shards import claim, write_shard


def write_random_tokens(folder: Path, config: DacSeConfig, longest: int, count: int) -> TokenCache:
    """A shard of random codes."""
    rng, rows = np.random.default_rng(0), []
    for index in range(count):
        frames = int(rng.integers(longest // 3, longest, endpoint=True))
        noisy, clean = rng.integers(config.codebook_size, size=(2, frames * config.num_codebooks))
        about = {"index": index, "task": "noise", "recording": "", "parameters": "{}", "snr_db": 0.0, "changed": 1.0}
        rows.append({**about, "frames": frames, "noisy": noisy, "clean": clean})
    grid = {"num_codebooks": config.num_codebooks, "codebook_size": config.codebook_size}
    claim(folder, {"tasks": ["noise"], **grid}, {"num_shards": 1})
    write_shard(folder, 0, rows)
    return TokenCache(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--num-codebooks", type=int, default=9)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument(
        "--frames", type=int, default=345, help="of the longest clip; 345 are 4 s of the released grid"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    layout = {"num_codebooks": args.num_codebooks, "codebook_size": args.codebook_size}
    context = 2 * args.frames * args.num_codebooks + 3
    config = DacSeConfig.from_size(args.size, **layout, max_position_embeddings=context, attention_dropout=0.0)
    with tempfile.TemporaryDirectory() as folder:
        rows = write_random_tokens(Path(folder), config, args.frames, 16 * args.batch_size)
        training = DacSeTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=args.batch_size,
            batching="packed" if args.packed else "rows",
            max_steps=1,
            bf16=True,
            activation_checkpointing=args.checkpointing,
            torch_compile=args.compile,
            dataloader_num_workers=args.workers,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DacSeTrainer(DacSeForEnhancement(config), training, rows, rows)
        trainer.train()  # sets everything up, compiles
        waits, steps, batches = [], [], iter(trainer.get_train_dataloader())
        trainer.speed_meter.read()
        for _ in range(args.steps):
            start = time.perf_counter()
            batch = next(batches)
            fetched = time.perf_counter()
            trainer.training_step(trainer.model_wrapped, batch, (batch["labels"] != -100).sum())
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            waits.append(fetched - start)
            steps.append(time.perf_counter() - start)
    step, wait = statistics.median(steps), statistics.median(waits)
    result = {
        "machine": describe_machine(),
        **{name: value for name, value in vars(args).items() if value is not None},
        "dtype": "bfloat16" if training.bf16 else "float32",
        "step_seconds": round(step, 4),
        "step_spread": [round(min(steps), 4), round(max(steps), 4)],
        "waiting_for_data": round(wait / step, 4),
        **{name: round(value, 3) for name, value in trainer.speed_meter.read().items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
