"""Counts what a run measures: losses by task, accuracy by codebook, and how fast the device is at work."""

import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PretrainedConfig

from ..experiments.costs import training_flops

# dense bf16 arithmetic, by the makers' data sheets, in TFLOP/s
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "A10G": 70}


class TaskMeter:
    """Adds up loss per task and correct predictions per codebook, on the device, until it is read."""

    def __init__(self, tasks: Sequence[str], num_codebooks: int, device: torch.device):
        self.tasks = list(tasks)
        self.loss, self.tokens = torch.zeros(2, len(tasks), dtype=torch.float64, device=device)
        self.correct, self.seen = torch.zeros(2, num_codebooks, dtype=torch.float64, device=device)

    def add(self, task: Tensor, loss: Tensor, codebook: Tensor, correct: Tensor) -> None:
        """Counts some tokens: their task and loss, and of those that are codes the codebook and whether it was hit."""
        self.loss.index_add_(0, task, loss.double())
        self.tokens.index_add_(0, task, torch.ones_like(loss, dtype=torch.float64))
        self.correct.index_add_(0, codebook, correct.double())
        self.seen.index_add_(0, codebook, torch.ones_like(correct, dtype=torch.float64))

    def read(self, accelerator: Accelerator, prefix: str) -> dict[str, float]:
        """Means since the last reading, over all processes and tokens.

        Returns:
            `{prefix}loss` of all tasks, `{prefix}loss/TASK` and `{prefix}accuracy/codebook_N`.
        """
        sums = accelerator.reduce(torch.cat([self.loss, self.tokens, self.correct, self.seen]), "sum").tolist()
        for total in (self.loss, self.tokens, self.correct, self.seen):
            total.zero_()
        loss, tokens = sums[: len(self.tasks)], sums[len(self.tasks) : 2 * len(self.tasks)]
        correct, seen = sums[2 * len(self.tasks) :][: len(self.seen)], sums[-len(self.seen) :]
        names = [f"{prefix}loss/{task}" for task in self.tasks]
        names += [f"{prefix}accuracy/codebook_{number + 1}" for number in range(len(self.seen))]
        names.append(f"{prefix}loss")
        means = zip(names, [*loss, *correct, sum(loss)], [*tokens, *seen, sum(tokens)], strict=True)
        return {name: total / count for name, total, count in means if count}


class SpeedMeter:
    """Measures tokens and arithmetic per second of one process, and the share of its device's peak (MFU).

    Args:
        config: of the model.
        device: that is at work.
        peak_tflops: of the device; by its name when left out.
    """

    def __init__(self, config: PretrainedConfig, device: torch.device, peak_tflops: float | None = None):
        self.config, self.peak_tflops = config, peak_tflops
        if peak_tflops is None and device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            self.peak_tflops = next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
        self.begun, self.tokens, self.flops = time.perf_counter(), 0, 0.0

    def add(self, lengths: Tensor) -> None:
        """Counts a batch of sequences of these lengths (sequence,), without padding."""
        self.tokens += int(lengths.sum())
        self.flops += training_flops(self.config, lengths)

    def read(self) -> dict[str, float]:
        """Since the last reading: `tokens_per_second`, `tflops`, and `mfu` where the peak is known."""
        now = time.perf_counter()
        seconds, self.begun = now - self.begun, now
        read = {"tokens_per_second": self.tokens / seconds, "tflops": self.flops / seconds / 1e12}
        if self.peak_tflops:
            read["mfu"] = read["tflops"] / self.peak_tflops
        self.tokens, self.flops = 0, 0.0
        return read
