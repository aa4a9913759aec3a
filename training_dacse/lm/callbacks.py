"""Callbacks of a training run that need no data of their own. Knows no model."""

import time

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class LogBeforeSave(TrainerCallback):
    """Has every checkpoint preceded by a log: that is where the trainer notices a NaN and stops."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class TimeBudget(TrainerCallback, ExportableState):
    """Ends the run when its wall-clock budget is used up, counted over all restarts from checkpoints.

    Args:
        max_seconds: the budget.
    """

    def __init__(self, max_seconds: float):
        self.max_seconds, self.started = max_seconds, 0.0
        self.elapsed = 0.0  # seconds of training up to the last step, the same in every process

    def state(self) -> dict:
        return {"args": {"max_seconds": self.max_seconds}, "attributes": {"elapsed": self.elapsed}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get("TimeBudget", {})  # of the checkpoint a run goes on from
        self.elapsed = saved.get("attributes", {}).get("elapsed", 0.0)
        self.started = time.monotonic() - self.elapsed

    def on_step_end(self, args, state, control, **kwargs):
        seconds = torch.tensor(time.monotonic() - self.started, dtype=torch.float32, device=args.device)
        self.elapsed = broadcast(seconds).item()  # the first process's clock
        if self.elapsed >= self.max_seconds:
            control.should_training_stop = control.should_evaluate = control.should_save = True
