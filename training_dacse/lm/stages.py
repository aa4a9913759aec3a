"""Stage 2: one model fine-tuned on task after task, with what it forgets measured. Knows rows and trainers."""

from collections.abc import Iterator
from copy import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from processing_dacse import DacSeProcessor

from ..tokens.cache import TokenCache
from ..tokens.collate import TokenCollator
from .anchors import Anchor, fisher_information
from .arguments import DacSeTrainingArguments, Stage2Arguments
from .forgetting import ForgettingMatrix
from .objective import Objective
from .runs import last_checkpoint, make_trainer, task_losses
from .strategy import Strategy
from .trainer import DacSeTrainer

FISHER_BATCHES = 16


def train_tasks(
    model: PreTrainedModel,
    args: DacSeTrainingArguments,
    stage: Stage2Arguments,
    train: TokenCache,
    valid: TokenCache,
    objective: Objective,
    processor: DacSeProcessor | None = None,
) -> ForgettingMatrix:
    """Fine-tunes `model` on every task in turn and measures all tasks after each.

    Every sub-stage leaves its weights under `OUTPUT/ROUND-TASK`; a run that was stopped goes on in the sub-stage it
    was in, from its last checkpoint. The matrix is in `OUTPUT/forgetting.json` and `.png`.

    Args:
        model: changed in place.
        args: of every sub-stage; `max_steps` long each.
        stage: the order, replay and anchor.
        train, valid: clips of all tasks.
        objective: what is minimised.
        processor: with it and `listen_clips`, held-out clips are enhanced at every evaluation.

    Raises:
        ValueError: clips that have no end, a task without clips, or a folder that holds a run of another order.
    """
    order = checked_order(stage, train)
    names = [(f"{turn + 1}-{task}", task) for turn in range(stage.rounds) for task in order]
    matrix = matrix_so_far(args.output_dir, train.tasks, [name for name, _ in names])
    if not matrix.stages:
        start = make_trainer(model, args, train, valid, objective=objective)
        add_row(matrix, "start", start, args.output_dir)
    elif len(matrix.stages) > 1:
        last = Path(args.output_dir) / matrix.stages[-1]
        model.load_state_dict(type(model).from_pretrained(last).state_dict())
    for name, task in names[len(matrix.stages) - 1 :]:
        here = copy(args)
        here.output_dir = str(Path(args.output_dir) / name)
        strategy = Strategy.from_settings(train.tasks, args.sampling, args.weighting)
        strategy.anchor = make_anchor(model, stage, train, task, args.seed, objective)
        part = with_replay(train, task, stage.replay, args.seed)
        trainer = make_trainer(model, here, part, valid, processor, objective, strategy)
        trainer.train(resume_from_checkpoint=last_checkpoint(here.output_dir))
        trainer.save_model()
        add_row(matrix, name, trainer, args.output_dir)
    return matrix


def checked_order(stage: Stage2Arguments, train: TokenCache) -> list[str]:
    """The tasks of a round, one after the other.

    Raises:
        ValueError: clips that have no end, or a task without any.
    """
    if not isinstance(train, TokenCache):
        raise ValueError("stage 2 takes the clips of a task from all there are; leave window_shards out")
    order, present = stage.order or present_tasks(train), present_tasks(train)
    if missing := [task for task in order if task not in present]:
        raise ValueError(f"no training clip of task {missing[0]!r}; there are {', '.join(present)}")
    return order


def matrix_so_far(folder: str | Path, tasks: list[str], planned: list[str]) -> ForgettingMatrix:
    """What is known of a run's sub-stages; nothing for a new run.

    Raises:
        ValueError: the folder holds a run of another order.
    """
    if not (Path(folder) / "forgetting.json").exists():
        return ForgettingMatrix(tasks)
    matrix = ForgettingMatrix.load(folder)
    done = matrix.stages[1:]
    if done != planned[: len(done)]:
        raise ValueError(f"{folder}: holds the sub-stages {done}, not the first of {planned}; give another output")
    return matrix


def add_row(matrix: ForgettingMatrix, name: str, trainer: DacSeTrainer, folder: str | Path) -> None:
    """Measures all tasks after a sub-stage; the first process writes the matrix."""
    matrix.add(name, task_losses(trainer))
    if trainer.is_world_process_zero():
        matrix.save(folder)


def present_tasks(rows: TokenCache) -> list[str]:
    """The tasks that have any clip."""
    return [rows.tasks[number] for number in rows.task_numbers.unique().tolist()]


def with_replay(train: TokenCache, task: str, share: float, seed: int) -> TokenCache:
    """The clips of a task, and so many of the others that they make up `share` of the whole."""
    is_task = train.task_numbers == train.tasks.index(task)
    own, others = is_task.nonzero().flatten(), (~is_task).nonzero().flatten()
    wanted = min(len(others), round(len(own) * share / (1 - share)))
    picked = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:wanted]]
    return train.pick(torch.cat([own, picked]))


def make_anchor(
    model: PreTrainedModel, stage: Stage2Arguments, train: TokenCache, task: str, seed: int, objective: Objective
) -> Anchor | None:
    """What pulls a sub-stage towards the weights it begins with; of EWC, as far as they matter to the other tasks."""
    if stage.anchor == "none":
        return None
    others = [other for other in present_tasks(train) if other != task]
    if stage.anchor == "l2sp" or not others:
        return Anchor(model, stage.anchor_strength)
    losses = batch_losses(model, train.only(*others), seed, objective)
    return Anchor(model, stage.anchor_strength, fisher_information(model, losses))


def batch_losses(model: PreTrainedModel, rows: TokenCache, seed: int, objective: Objective) -> Iterator[Tensor]:
    """The mean loss of a few single clips, each with its graph."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(rows, 1, shuffle=True, generator=generator, collate_fn=TokenCollator(model.config))
    for _, batch in zip(range(FISHER_BATCHES), loader, strict=False):
        yield objective(model, {name: tensor.to(model.device) for name, tensor in batch.items()}).loss.mean()
