"""`Trainer` for token sequences of several tasks: measures and balances them, stops at a NaN or a wall-clock budget.

Knows batches as `TokenCollator` makes them; knows no audio.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from transformers import PretrainedConfig, Trainer

from .balancing import BALANCINGS
from .callbacks import LogBeforeSave, TimeBudget
from ..tokens.collate import IGNORED
from .sampling import TaskSampler

PRIOR_CLIPS = 4096  # at most, from all over the training clips, from which it is told how common codes are


class TaskMeter:
    """Adds up loss per task and correct predictions per codebook, on the device, until it is read."""

    def __init__(self, tasks: Sequence[str], num_codebooks: int, device: torch.device):
        self.tasks = list(tasks)
        self.loss, self.tokens = torch.zeros(2, len(tasks), dtype=torch.float64, device=device)
        self.correct, self.seen = torch.zeros(2, num_codebooks, dtype=torch.float64, device=device)

    def add(self, task: Tensor, loss: Tensor, tokens: Tensor, codebook: Tensor, correct: Tensor) -> None:
        """Counts one batch: summed loss and number of tokens of each row, codebook and hit of each predicted code."""
        self.loss.index_add_(0, task, loss.double())
        self.tokens.index_add_(0, task, tokens.double())
        self.correct.index_add_(0, codebook, correct.double())
        self.seen.index_add_(0, codebook, torch.ones_like(correct, dtype=torch.float64))

    def read(self, accelerator, prefix: str) -> dict[str, float]:
        """Means since the last reading, over all processes: `{prefix}loss/TASK`, `{prefix}accuracy/codebook_N`."""
        sums = accelerator.reduce(torch.cat([self.loss, self.tokens, self.correct, self.seen]), "sum").tolist()
        for total in (self.loss, self.tokens, self.correct, self.seen):
            total.zero_()
        loss, tokens = sums[: len(self.tasks)], sums[len(self.tasks) : 2 * len(self.tasks)]
        correct, seen = sums[2 * len(self.tasks) :][: len(self.seen)], sums[-len(self.seen) :]
        names = [f"{prefix}loss/{task}" for task in self.tasks]
        names += [f"{prefix}accuracy/codebook_{number + 1}" for number in range(len(self.seen))]
        means = zip(names, loss + correct, tokens + seen, strict=True)
        return {name: total / count for name, total, count in means if count}


def log_prior(rows: Iterable[dict], layout: PretrainedConfig) -> Tensor:
    """How common each clean code is among those of its codebook, as logarithms (vocabulary,); 0 for special ids.

    Args:
        rows: clips with `clean` codes (codebook, frame).
        layout: of the ids.
    """
    counts = torch.ones(layout.num_codebooks, layout.codebook_size)  # so that none is impossible
    for row in rows:
        clean = torch.as_tensor(row["clean"])[: layout.num_codebooks]
        counts.scatter_add_(1, clean, torch.ones_like(clean, dtype=counts.dtype))
    prior = torch.zeros(layout.vocab_size)
    prior[layout.first_code_id :] = (counts / counts.sum(1, keepdim=True)).log().flatten()
    return prior


def spoil_frames(ids: Tensor, labels: Tensor, num_codebooks: int, most: float) -> tuple[Tensor, Tensor]:
    """Puts noisy frames in the place of some clean ones, a share of each row's that is drawn from 0 to `most`.

    Args:
        ids: batch of `TokenCollator`, padded on the right (row, token).
        labels: its labels (row, token).
        num_codebooks: tokens of a frame.
        most: of a row's frames, 0 to 1.

    Returns:
        The ids, and labels that leave out what was replaced: both (row, token).
    """
    codes = (labels != IGNORED).sum(1, keepdim=True) - 1  # of the clean half; the last label is [eos]
    token = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    place = token - codes - 2
    drawn = torch.rand(ids.shape, device=ids.device) < most * torch.rand(len(ids), 1, device=ids.device)
    spoiled = drawn.gather(1, place.clamp(min=0) // num_codebooks) & (place >= 0) & (place < codes)
    noisy = ids.gather(1, (token - codes - 1).clamp(min=0))
    return torch.where(spoiled, noisy, ids), labels.masked_fill(spoiled, IGNORED)


class DacSeTrainer(Trainer):
    """Trains on batches of `TokenCollator`.

    Next-token cross-entropy on what follows `start_clean`; only those positions go through the output layer. With
    `logit_adjustment` the logarithm of how common a code is, times this, is added to the logits in the loss (Menon et
    al., arXiv 2007.07314), so that the model's own logits say how far the recording speaks for a code: where it is
    unsure, greedy decoding then does not fall back on the commonest codes, which are those of silence.

    Args:
        tasks: names of the tasks, in the order of the numbers in the batches.
        all_clips: by which it is told how common codes are; the training clips when left out.
        kwargs: as for `Trainer`; `args` is a `DacSeTrainingArguments`.

    Raises:
        ValueError: a setting that the training clips or the launch do not allow.
        FloatingPointError: while training, when the loss is no longer a number.
    """

    def __init__(self, *args, tasks: Sequence[str], all_clips=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.tasks = list(tasks)
        self.layout = self.model.config
        self.train_meter, self.eval_meter = (
            TaskMeter(tasks, self.layout.num_codebooks, self.args.device) for _ in range(2)
        )
        self.balancing = BALANCINGS[self.args.balancing](len(self.tasks))
        self.refuse_what_cannot_work()
        self.log_prior = None
        if self.args.logit_adjustment:
            rows = self.train_dataset if all_clips is None else all_clips
            every = math.ceil(len(rows) / PRIOR_CLIPS)
            prior = log_prior((rows[number] for number in range(0, len(rows), every)), self.layout)
            self.log_prior = (self.args.logit_adjustment * prior).to(self.args.device)
        self.add_callback(self.balancing)
        self.step_sums = torch.zeros(3, len(tasks), device=self.args.device)  # loss, tokens, gradient norm of a step
        self.budget = None
        if self.args.max_seconds:
            self.budget = TimeBudget(self.args.max_seconds)
            self.add_callback(self.budget)
        self.add_callback(LogBeforeSave())  # after whatever may ask for a checkpoint

    def refuse_what_cannot_work(self) -> None:
        """Raises where a setting would be ignored or fail in the middle of a run."""
        if self.balancing.needs_gradient_norms and self.is_fsdp_enabled:
            raise ValueError("gradnorm needs whole layers; FSDP shards them: choose uncertainty or dwa, or use DDP")
        ordered = self.args.balanced_tasks or self.args.curriculum_steps
        if (ordered or self.args.logit_adjustment) and not hasattr(self.train_dataset, "task_numbers"):
            raise ValueError(
                "balanced_tasks, curriculum_steps and logit_adjustment need a token cache: "
                "leave on_the_fly and stream out"
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        task = inputs["task"]
        if model.training and self.args.spoiled_frames:
            ids, labels = inputs["input_ids"], inputs["labels"]
            ids, labels = spoil_frames(ids, labels, self.layout.num_codebooks, self.args.spoiled_frames)
            inputs = inputs | {"input_ids": ids, "labels": labels}
            if num_items_in_batch is not None:  # the library counts all labels
                num_items_in_batch = num_items_in_batch * (1 - self.args.spoiled_frames / 2)
        logits, targets = self.predict(model, inputs)
        scores = logits.float() if self.log_prior is None else logits.float() + self.log_prior
        flat = nn.functional.cross_entropy(
            scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        row_loss, row_tokens = flat.view_as(targets).sum(1), (targets != IGNORED).sum(1)
        self.measure(task, row_loss.detach(), row_tokens, logits.detach(), targets)
        if model.training and self.args.balancing != "none":
            self.watch_tasks(task, row_loss, row_tokens)
            row_loss = row_loss * self.balancing.weights.to(row_loss)[task]
        loss = row_loss.sum() / (row_tokens.sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def predict(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Logits (row, token, id) and what they are of, (row, token): from the first that any row is trained on."""
        labels = inputs["labels"]
        first = int((labels != IGNORED).any(0).float().argmax())
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            logits_to_keep=labels.shape[1] - first + 1,
            use_cache=False,
        ).logits[:, :-1]
        return logits, labels[:, first:]

    def watch_tasks(self, task: Tensor, row_loss: Tensor, row_tokens: Tensor) -> None:
        """Adds a batch to what the balancing is told after the step."""
        self.step_sums[0].index_add_(0, task, row_loss.detach())
        self.step_sums[1].index_add_(0, task, row_tokens.float())
        if self.balancing.needs_gradient_norms:
            shared = self.accelerator.unwrap_model(self.model).model.layers[-1].mlp.down_proj.weight
            for number in task.unique():
                mean = row_loss[task == number].sum() / row_tokens[task == number].sum()
                (gradient,) = torch.autograd.grad(mean, shared, retain_graph=True)
                self.step_sums[2, number] += gradient.norm() * row_tokens[task == number].sum()

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.args.balancing != "none" and self.accelerator.sync_gradients:
            loss_sum, tokens, norm_sum = self.accelerator.reduce(self.step_sums, "sum").cpu()
            count = tokens.clamp(min=1)
            self.balancing.update(loss_sum / count, tokens > 0, norm_sum / count)
            self.step_sums.zero_()
        return loss

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "task_numbers"):
            return super()._get_train_sampler(train_dataset)
        return TaskSampler(
            dataset.task_numbers,
            dataset.snr_db,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            balanced=self.args.balanced_tasks,
            curriculum_examples=self.args.curriculum_steps
            * self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
        )

    @torch.no_grad()
    def measure(self, task: Tensor, loss: Tensor, tokens: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch to the meter of training or evaluation."""
        codes = targets - self.layout.first_code_id
        is_code = codes >= 0
        codebook = torch.where(is_code, codes // self.layout.codebook_size, 0)
        correct = (logits.argmax(-1) == targets) & is_code
        meter = self.train_meter if self.model.training else self.eval_meter
        meter.add(task, loss, tokens, codebook[is_code], correct[is_code])

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs.update(self.train_meter.read(self.accelerator, ""))
            if self.args.balancing != "none":
                weights = zip(self.tasks, self.balancing.weights.tolist(), strict=True)
                logs.update({f"weight/{task}": weight for task, weight in weights})
            self.stop_unless_finite(logs)
        if "eval_loss" in logs:
            logs.update(self.eval_meter.read(self.accelerator, "eval_"))
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
