"""Callbacks of a training run that need no data of their own. Knows no model."""

import time

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
        self.max_seconds, self.spent, self.started = max_seconds, 0.0, None

    def state(self) -> dict:
        return {"args": {"max_seconds": self.max_seconds}, "attributes": {"spent": self.elapsed()}}

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self.spent + (time.monotonic() - self.started if self.started is not None else 0.0)

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get("TimeBudget", {})  # of the checkpoint a run goes on from
        self.spent, self.started = saved.get("attributes", {}).get("spent", 0.0), time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if self.elapsed() >= self.max_seconds:
            control.should_training_stop = control.should_evaluate = control.should_save = True
