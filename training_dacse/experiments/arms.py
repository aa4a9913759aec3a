"""Variants of a run trained side by side on the same tokens and steps, and what they make of recordings.

Knows no metric: whoever runs an experiment brings one.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from modeling_dacse import DacSeForEnhancement
from processing_dacse import DacSeProcessor

from ..lm.arguments import DacSeTrainingArguments, DataArguments, Stage2Arguments
from ..lm.forgetting import ForgettingMatrix
from ..lm.kinds import read_kind
from ..lm.runs import last_checkpoint, make_data, make_model, make_objective, make_trainer
from ..lm.sampling import SAMPLINGS
from ..lm.stages import train_tasks
from ..lm.weighting import WEIGHTINGS

SECOND_RATE = 0.3  # of the learning rate, in the second half of a run in two stages
BATCH_SIZE = 32  # windows generated together


@dataclass(frozen=True)
class Arm:
    """One variant.

    Attributes:
        settings: fields of `DataArguments` and `DacSeTrainingArguments` that are its own.
        stage2: if there is one, it takes the second half of the steps, as many for each sub-stage.
    """

    settings: dict = field(default_factory=dict)
    stage2: Stage2Arguments | None = None


def arm_arguments(
    arm: Arm, data: DataArguments, args: DacSeTrainingArguments, seed: int, folder: Path
) -> tuple[DataArguments, DacSeTrainingArguments]:
    """The arguments of an arm with a seed; it leaves its files in `folder`."""
    names = {item.name for item in fields(DataArguments)}
    data = replace(data, **{name: value for name, value in arm.settings.items() if name in names})
    own = copy(args)
    own.seed, own.output_dir = seed, str(folder)
    for name, value in arm.settings.items():
        known = {"sampling": SAMPLINGS, "weighting": WEIGHTINGS}.get(name)
        if name not in names:
            setattr(own, name, read_kind(name, value, known) if known else value)
    return data, own


def train_arm(
    arm: Arm, data: DataArguments, args: DacSeTrainingArguments, seed: int, folder: Path
) -> tuple[DacSeForEnhancement, dict[str, float]]:
    """Trains an arm; one that was stopped goes on.

    Arms share `args.max_steps`, the warm-up as a share of them, the clips and, with the same seed, the first weights.

    Returns:
        The model, and `loss`, `loss/TASK` (held out, nats per token) and, after two stages, `forgetting`.
    """
    data, args = arm_arguments(arm, data, args, seed, folder)
    if arm.stage2 is not None:
        return train_in_two_stages(arm, data, args)
    set_seed(args.seed)
    model = make_model(data)
    train, valid = make_data(data, model.config)
    trainer = make_trainer(model, args, train, valid, objective=make_objective(args, model.config, train, data.model))
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    return trainer.model, held_out(trainer.evaluate())


def train_in_two_stages(
    arm: Arm, data: DataArguments, args: DacSeTrainingArguments
) -> tuple[DacSeForEnhancement, dict[str, float]]:
    """Half of the steps on all tasks, half of them task by task."""
    first, second = copy(args), copy(args)
    first.max_steps, first.output_dir = args.max_steps // 2, str(Path(args.output_dir) / "first")
    set_seed(args.seed)
    model = make_model(data)
    train, valid = make_data(data, model.config)
    objective = make_objective(args, model.config, train, data.model)
    trainer = make_trainer(model, first, train, valid, objective=objective)
    trainer.train(resume_from_checkpoint=last_checkpoint(first.output_dir))
    stage = replace(arm.stage2, order=arm.stage2.order or train.tasks)
    second.max_steps = max(1, (args.max_steps - first.max_steps) // (len(stage.order) * stage.rounds))
    second.learning_rate = SECOND_RATE * args.learning_rate
    second.output_dir = str(Path(args.output_dir) / "second")
    matrix = train_tasks(trainer.model, second, stage, train, valid, objective)
    return trainer.model, matrix_figures(matrix, trainer.evaluate())


def held_out(metrics: dict[str, float]) -> dict[str, float]:
    """
    >>> held_out({"eval_loss": 2.0, "eval_loss/noise": 3.0, "eval_runtime": 1.0})
    {'loss': 2.0, 'loss/noise': 3.0}
    """
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_loss")}


def matrix_figures(matrix: ForgettingMatrix, metrics: dict[str, float]) -> dict[str, float]:
    """Held-out losses, and how much was forgotten on average."""
    return held_out(metrics) | {"forgetting": float(np.mean(list(matrix.forgetting().values())))}


def evened_weights(losses: dict[str, float]) -> dict[str, float]:
    """Weights that make the weighted losses of tasks equal, of mean 1, from `loss/TASK` of a run without any.

    >>> evened_weights({"loss": 2.5, "loss/noise": 4.0, "loss/loss": 1.0})
    {'noise': 0.4, 'loss': 1.6}
    """
    inverse = {name.removeprefix("loss/"): 1 / value for name, value in losses.items() if name.startswith("loss/")}
    mean = sum(inverse.values()) / len(inverse)
    return {task: round(value / mean, 3) for task, value in inverse.items()}


Generate = Callable[[Tensor], Tensor]  # noisy codes (batch, codebook, frame) -> clean ones


def generate_with(model: PreTrainedModel, processor: DacSeProcessor) -> Generate:
    """Greedy clean codes of a language model."""

    @torch.no_grad()
    def generate(noisy: Tensor) -> Tensor:
        prompts = processor.build_prompt(noisy).to(model.device)
        rows = model.eval().generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False)
        return torch.cat([processor.clean_codes(row) for row in rows.cpu()])

    return generate


def enhance_in_windows(
    generate: Generate,
    processor: DacSeProcessor,
    waveform: np.ndarray,
    window_frames: int,
    decoder: DacSeProcessor | None = None,
) -> np.ndarray:
    """Enhances a recording (sample,) window by window, side by side without overlap.

    Args:
        generate: clean codes of noisy ones.
        processor: encodes, and decodes unless there is a `decoder`.
        waveform: mono, at the processor's rate.
        window_frames: of the clips that were trained on; the last window begins earlier.
        decoder: of what is generated, where that has other codebooks.
    """
    noisy = processor.encode(waveform[None].astype(np.float32))
    frames = noisy.shape[-1]
    starts = sorted({min(start, max(0, frames - window_frames)) for start in range(0, frames, window_frames)})
    windows = torch.cat([noisy[..., start : start + window_frames] for start in starts])
    clean = torch.cat([generate(batch) for batch in windows.split(BATCH_SIZE)])
    joined = torch.empty_like(noisy[:, : clean.shape[1]])
    for start, window in zip(starts, clean, strict=True):
        joined[0, :, start : start + window_frames] = window
    return (decoder or processor).decode_codes(joined)[0, : len(waveform)]
