"""`Trainer` for token sequences of several tasks: measures and weighs them, stops at a NaN or a wall-clock budget.

Knows batches as the collators make them; knows no audio.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from ..tokens.cache import TokenRows
from ..tokens.collate import PackingCollator, TokenCollator, sequence_length
from ..tokens.stream import HeldOutBatches, TokenStream
from .callbacks import LogBeforeSave, TimeBudget
from .meter import SpeedMeter, TaskMeter
from .objective import Objective, TokenLosses, save_prior
from .strategy import Strategy

CHECKED = 4  # held-out clips by which an objective is told whether it works for a model


class StreamPlace(TrainerCallback, ExportableState):
    """Keeps the place of a source of batches in the checkpoints."""

    def __init__(self, stream: TokenStream):
        self.stream = stream

    def state(self) -> dict:
        return {"args": {}, "attributes": self.stream.state_dict()}

    def on_train_begin(self, args, state, control, **kwargs):
        self.stream.load_state_dict(state.stateful_callbacks[type(self).__name__]["attributes"])


class DacSeTrainer(Trainer):
    """Trains on rows of tokens, from one source of batches that goes on where a checkpoint was written.

    Args:
        model: of the token layout of the rows.
        args: `DacSeTrainingArguments`.
        train_dataset, eval_dataset: `TokenRows`, all of whose tasks are those of `train_dataset`.
        strategy: how the tasks are served; that of `args` when left out.
        objective: what is minimised; by `args` when left out.
        kwargs: as for `Trainer`.

    Raises:
        ValueError: a setting that the launch or the model does not allow.
        FloatingPointError: while training, when the loss is no longer a number.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model,
        args,
        train_dataset: TokenRows,
        eval_dataset: TokenRows,
        strategy: Strategy | None = None,
        objective: Objective | None = None,
        **kwargs,
    ):
        config = model.config
        flash = "flash" in (config._attn_implementation or "")
        packed = args.batching == "packed"
        collator = PackingCollator(config, flash) if packed else TokenCollator(config)
        super().__init__(model, args, collator, train_dataset, eval_dataset, **kwargs)
        self.layout, self.tasks = config, list(train_dataset.tasks)
        self.strategy = strategy or Strategy.from_settings(self.tasks, args.sampling, args.weighting)
        self.objective = objective or Objective(config, None, args.spoiled_frames)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.strategy.refuse_shards("FSDP" if self.is_fsdp_enabled else "DeepSpeed")
        self.train_meter, self.eval_meter = (
            TaskMeter(self.tasks, config.num_codebooks, args.device) for _ in range(2)
        )
        self.speed_meter = SpeedMeter(config, args.device, args.peak_tflops)
        self.step_sums = torch.zeros(3, len(self.tasks), device=args.device)  # loss, tokens, gradient norm of a step
        self.stream = TokenStream(
            train_dataset,
            args.train_batch_size,
            self.strategy.order,
            args.seed if args.data_seed is None else args.data_seed,
            args.batching,
            lambda frames: sequence_length(frames, config.num_codebooks),
            config.max_position_embeddings,
            args.process_index,
            args.world_size,
        )
        few = [eval_dataset[number] for number in range(min(CHECKED, len(eval_dataset)))]
        self.objective.check(self.model, self._prepare_inputs(TokenCollator(config)(few)))
        self.add_callback(self.strategy.weighting)
        self.add_callback(StreamPlace(self.stream))
        self.budget = None
        if args.max_seconds:
            self.budget = TimeBudget(args.max_seconds)
            self.add_callback(self.budget)
        self.add_callback(LogBeforeSave())  # after whatever may ask for a checkpoint

    # Steps

    def _run_epoch(self, **kwargs) -> None:
        """As the library's, which would take one step more with a run that has ended and is started again."""
        budget_is_spent = self.budget is not None and self.budget.elapsed >= self.budget.max_seconds
        if self.state.global_step >= self.state.max_steps or budget_is_spent:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process, from the place where the run is, without end."""
        if self.args.max_steps <= 0:
            each_step = self.args.gradient_accumulation_steps * self.args.world_size
            self.args.max_steps = math.ceil(self.args.num_train_epochs * self.stream.batches_of_epoch(0) / each_step)
        return self.loader(self.train_dataset, self.data_collator, self.stream)

    def loader(self, rows: TokenRows, collator, batches: Iterable[list]) -> DataLoader:
        """Reads batches of places; its workers' random numbers are no draw from torch's global state."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            rows.storage,
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
        )

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses = self.objective(model, inputs)
        self.measure(self.train_meter, losses)
        weighted = losses.loss
        if not self.strategy.weighting.is_trivial:
            self.watch_tasks(model, losses)
            weighted = weighted * self.strategy.weighting.weights.to(weighted)[losses.task]
        trained = num_items_in_batch * self.objective.trained_share  # of this step, in all processes
        loss = weighted.sum() / trained
        if self.args.average_tokens_across_devices:  # the count is of all processes, whose gradients are averaged
            loss = loss * self.accelerator.num_processes
        if self.strategy.anchor is not None:
            pull = self.strategy.anchor.penalty(self.accelerator.unwrap_model(model))
            loss = loss + pull / self.current_gradient_accumulation_steps
        return loss

    def watch_tasks(self, model, losses: TokenLosses) -> None:
        """Adds a batch to what the weighting is told after the step."""
        tokens = torch.ones_like(losses.loss)
        sums = torch.zeros_like(self.step_sums)
        sums[0].index_add_(0, losses.task, losses.loss.detach())
        sums[1].index_add_(0, losses.task, tokens)
        norms = self.strategy.weighting.gradient_norms(self.accelerator.unwrap_model(model), losses.task, losses.loss)
        if norms is not None:
            sums[2] = norms * sums[1]
        self.step_sums += sums

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.batch_is_done()
        self.speed_meter.add(lengths_of(inputs))
        if not self.strategy.weighting.is_trivial and self.accelerator.sync_gradients:
            loss_sum, tokens, norm_sum = self.accelerator.reduce(self.step_sums, "sum").cpu()
            count = tokens.clamp(min=1)
            self.strategy.weighting.update(loss_sum / count, tokens > 0, norm_sum / count)
            self.step_sums.zero_()
        return loss

    def batch_is_done(self) -> None:
        """A batch has been trained on."""
        self.stream.advance()

    @torch.no_grad()
    def measure(self, meter: TaskMeter, losses: TokenLosses) -> None:
        """Adds a batch to the meter of training or evaluation."""
        codes = losses.target - self.layout.first_code_id
        is_code = codes >= 0
        codebook = codes[is_code] // self.layout.codebook_size
        meter.add(losses.task, losses.loss.detach(), codebook, (losses.likeliest == losses.target)[is_code])

    # Evaluation

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Measures every held-out clip once: losses are means over tokens, however many processes share the clips."""
        model, batches = self.model, dataloader.batch_sampler
        if not self.accelerator._models:  # nothing was trained yet
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        was_training = model.training
        model.eval()
        for number, batch in enumerate(dataloader):
            losses = self.objective(model, self._prepare_inputs(batch))
            if number < batches.counted:  # the others keep pace with processes that have one more
                self.measure(self.eval_meter, losses)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(was_training)
        metrics = self.eval_meter.read(self.accelerator, f"{metric_key_prefix}_")
        return EvalLoopOutput(None, None, metrics, len(batches.rows))

    def get_eval_dataloader(self, eval_dataset: TokenRows | None = None) -> DataLoader:
        """This process's batches of held-out clips, each of like lengths."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = HeldOutBatches(rows, self.args.eval_batch_size, self.args.process_index, self.args.world_size)
        return self.loader(rows, TokenCollator(self.layout), batches)

    # Logs and files

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs.update(self.train_meter.read(self.accelerator, ""))
            logs.update(self.speed_meter.read())
            if not self.strategy.weighting.is_trivial:
                weights = zip(self.tasks, self.strategy.weighting.weights.tolist(), strict=True)
                logs.update({f"weight/{task}": weight for task, weight in weights})
            self.stop_unless_finite(logs)
        self.state.epoch = self.stream.epochs
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        """As in `Trainer`; FSDP gives a model a class of its own, whose code would be saved instead of the model's."""
        model = self.accelerator.unwrap_model(self.model)
        sharded = type(model)
        if isinstance(model, FSDPModule):
            model.__class__ = sharded.__bases__[1]
            for name in model.all_tied_weights_keys:  # gathered one by one, they are no longer one tensor
                state_dict.pop(name, None)
        try:
            super()._save(output_dir, state_dict)
        finally:
            model.__class__ = sharded
        if self.objective.log_prior is not None:
            save_prior(self.objective.log_prior, output_dir or self.args.output_dir)

    def stop_unless_finite(self, logs: dict[str, float]) -> None:
        """Raises before a checkpoint with broken weights is written."""
        if not math.isfinite(logs["loss"]):
            broken = [name.removeprefix("loss/") for name, value in logs.items() if value != value and "/" in name]
            raise FloatingPointError(
                f"loss is {logs['loss']} at step {self.state.global_step} (tasks {', '.join(broken) or 'all'}); "
                f"start again from the last checkpoint in {self.args.output_dir} with a learning rate below "
                f"{self.args.learning_rate}"
            )

    def create_scheduler(self, num_training_steps, optimizer=None):
        """With a wall-clock budget: linear warm-up in steps, then half a cosine over the budget, to a twentieth."""
        if self.budget is None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = max(1, self.args.get_warmup_steps(num_training_steps))

        def factor(step: int) -> float:
            progress = min(1.0, max(step / num_training_steps, self.budget.elapsed / self.budget.max_seconds))
            return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler


def lengths_of(batch: dict[str, Tensor]) -> Tensor:
    """Tokens of each sequence of a batch, without padding, (sequence,)."""
    if "example" in batch:
        return batch["example"].flatten().bincount()
    mask = batch.get("attention_mask")
    rows, tokens = batch["input_ids"].shape
    return torch.full((rows,), tokens) if mask is None else mask.sum(1)
