"""Stage 2: one model fine-tuned on task after task, with what it forgets measured. Knows caches and trainers."""

from copy import copy
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .arguments import DacSeTrainingArguments, Stage2Arguments
from ..tokens.collate import TokenCollator
from ..tokens.cache import TokenCache
from .forgetting import ForgettingMatrix
from .regularizers import Anchor, fisher_information
from .runs import make_trainer, task_losses

FISHER_BATCHES = 16


def train_tasks(
    model: PreTrainedModel,
    args: DacSeTrainingArguments,
    stage: Stage2Arguments,
    train: TokenCache,
    valid: TokenCache,
) -> ForgettingMatrix:
    """Fine-tunes `model` on every task in turn and measures all tasks after each.

    Every sub-stage leaves its weights under `OUTPUT/ROUND-TASK`; a run that was stopped goes on after the last one.
    The matrix is in `OUTPUT/forgetting.json` and `.png`.

    Args:
        model: changed in place.
        args: of every sub-stage; `max_steps` long each.
        stage: the order, replay and anchor.
        train, valid: clips of all tasks.

    Raises:
        ValueError: clips without a cache, a task without clips, or a folder that holds a run of another order.
    """
    if not isinstance(train, TokenCache):
        raise ValueError("stage 2 takes the clips of a task from a token cache; leave on_the_fly and stream out")
    order, present = stage.order or train.tasks, set(train.rows["task"])
    if missing := [task for task in order if task not in present]:
        raise ValueError(f"no training clip of task {missing[0]!r}; there are {', '.join(sorted(present))}")
    folder = Path(args.output_dir)
    matrix = ForgettingMatrix(train.tasks)
    names = [(f"{turn + 1}-{task}", task) for turn in range(stage.rounds) for task in order]
    if (folder / "forgetting.json").exists():
        matrix = ForgettingMatrix.load(folder)
        done, planned = matrix.stages[1:], [name for name, _ in names]
        if done != planned[: len(done)]:
            raise ValueError(f"{folder}: holds the sub-stages {done}, not the first of {planned}; give another output")
        model.load_state_dict(type(model).from_pretrained(folder / matrix.stages[-1]).state_dict())
    else:
        matrix.add("start", task_losses(make_trainer(model, args, train, valid)))
    for name, task in names[len(matrix.stages) - 1 :]:
        here = copy(args)
        here.output_dir = str(folder / name)
        part = with_replay(train, task, stage.replay, args.seed)
        trainer = make_trainer(model, here, part, valid, all_clips=train)
        if stage.anchor != "none":
            others = [other for other in train.tasks if other != task]
            importance = task_importance(model, train.only(*others), args) if stage.anchor == "ewc" else None
            trainer.add_callback(Anchor(model, stage.anchor_strength, importance))
        trainer.train()
        trainer.save_model()
        matrix.add(name, task_losses(trainer))
        if trainer.is_world_process_zero():
            matrix.save(folder)
    return matrix


def with_replay(train: TokenCache, task: str, share: float, seed: int) -> TokenCache:
    """The clips of a task, and so many of the others that they make up `share` of the whole."""
    is_task = torch.tensor([name == task for name in train.rows["task"]])
    own, others = is_task.nonzero().flatten(), (~is_task).nonzero().flatten()
    wanted = min(len(others), round(len(own) * share / (1 - share)))
    picked = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:wanted]]
    return train.pick(torch.cat([own, picked]).tolist())


def task_importance(model: PreTrainedModel, rows: TokenCache, args: DacSeTrainingArguments) -> dict[str, torch.Tensor]:
    """Fisher information of the weights for the tasks of `rows`, from a few batches."""
    generator = torch.Generator().manual_seed(args.seed)
    size = args.per_device_train_batch_size
    loader = DataLoader(rows, size, shuffle=True, generator=generator, collate_fn=TokenCollator(model.config))

    def losses():
        for _, batch in zip(range(FISHER_BATCHES), loader, strict=False):
            del batch["task"]
            yield model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss

    return fisher_information(model, losses())
