"""The trainer of stage 3: draws groups of answers to noisy prompts, has them scored, and learns what sets them apart.

A `DacSeTrainer`, since the sources of clips, budgets, checkpoints and held-out losses are the same. TRL's
`GRPOTrainer` (1.16) was read for it: it wants a tokenizer that decodes answers to text, takes their log-probabilities
over the whole vocabulary where the grid allows one codebook, and hands rewards text. Prompts of ids come in only
through its experimental `rollout_func`; the rest would have been private methods overridden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from processing_dacse import DacSeProcessor

from ...tokens.cache import TokenRows
from ..arguments import DacSeTrainingArguments, Stage3Arguments
from ..trainer import DacSeTrainer
from .answers import PromptCollator, RepeatedAnswers, answer_log_probabilities, draw_answers, generate_answers
from .figures import Means
from .losses import CLIPS, dpo_loss, grpo_loss, gspo_loss, kl_to_start
from .reward import Reward, by_prompt, group_advantages
from .symptoms import symptoms


class RewardTrainer(DacSeTrainer):
    """Trains a model, or its adapter, on scores of its own answers.

    Every step draws `answers` to each prompt and goes over them `updates` times. Logs have the mean of every score,
    the distance from the start (`kl`, nats per token), and symptoms of a hacked reward: `level_db` and
    `silent_seconds` against the clean recordings. Evaluations add scores of held-out clips as the model enhances
    them, `eval_reward/NAME`, those that are not rewarded too; a score by which the run is to stop is named by
    `metric_for_best_model`.

    Args:
        model: to train; where it is a `PeftModel`, its base is the start that it is held to, else a copy of it.
        args: of the run.
        stage: what is rewarded, and how.
        train, valid: clips to draw answers to, and held-out ones.
        processor: decodes answers.
        reward: scores answers.
        watched: scores held-out ones.

    Raises:
        ValueError: a setting that has no effect here, or does not go with the others.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: DacSeTrainingArguments,
        stage: Stage3Arguments,
        train: TokenRows,
        valid: TokenRows,
        processor: DacSeProcessor,
        reward: Reward,
        watched: Reward,
    ):
        check_settings(args, stage)
        super().__init__(model, args, train, valid)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("answers are drawn by whole weights, which no process has in shards: use DDP")
        self.stage, self.processor, self.reward, self.watched = stage, processor, reward, watched
        processor.audio_tokenizer.to(args.device)
        self.data_collator = PromptCollator(self.layout)
        self.start = None if hasattr(model, "disable_adapter") else deepcopy(model).eval().requires_grad_(False)
        leave_dropout_out(model)
        self.figures, self.batches_drawn, self.batches_trained = Means(), 0, 0
        if stage.patience:
            self.add_callback(EarlyStoppingCallback(stage.patience))

    @property
    def policy(self) -> PreTrainedModel:
        """The model that answers, with its adapter."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    # Answers

    def get_train_dataloader(self) -> RepeatedAnswers:
        """Answers of this process, from the place where the run is, without end."""
        prompts = super().get_train_dataloader()
        return RepeatedAnswers(prompts, self.draw, self.args.gradient_accumulation_steps, self.stage.updates)

    def batch_is_done(self) -> None:
        """A batch of answers has been trained on; its prompts are done after `updates` steps."""
        self.batches_trained += 1
        batches = self.args.gradient_accumulation_steps
        if self.batches_trained % (batches * self.stage.updates) == 0:
            for _ in range(batches):
                self.stream.advance()

    @torch.no_grad()
    def draw(self, batch: dict) -> dict[str, Tensor]:
        """Answers to a batch of `PromptCollator`, scored.

        Returns:
            `input_ids` (row, token), `advantages` (row,), and `old` and `start`: log-probabilities (row, token) by the
            model as it is and as it was. For DPO the rows are the best and the worst answer to each prompt.
        """
        prompts, count = batch["input_ids"].to(self.args.device), self.stage.answers
        with self.answering():
            ids = draw_answers(self.policy, prompts, self.next_seeds(len(prompts) * count))
            waveforms, references = self.decode(ids, batch["whole"])
            scores = self.reward(waveforms, references, self.processor.sampling_rate)
            advantages = group_advantages(by_prompt(scores, count), self.stage.rewards).to(ids.device)
            self.add_scores(self.figures, scores, waveforms, references)
            if self.stage.loss == "dpo":
                first = count * torch.arange(len(prompts), device=ids.device)
                pairs = torch.stack([first + advantages.argmax(1), first + advantages.argmin(1)], dim=1)
                ids, advantages = ids[pairs.flatten()], advantages.flatten()[pairs]
            answered = self.layout, ids.shape[1] - prompts.shape[1]
            old = log_probabilities(self.model, ids, *answered)
            with self.as_it_began():
                begun = log_probabilities(self.model, ids, *answered)
        return {"input_ids": ids, "advantages": advantages.flatten(), "old": old, "start": begun}

    def next_seeds(self, count: int) -> Tensor:
        """Seeds of the answers of a batch, (row,): of the run's seed, the step, the batch's place and the process."""
        batch = self.batches_drawn % self.args.gradient_accumulation_steps
        place = (self.args.seed, self.state.global_step, batch, self.args.process_index)
        self.batches_drawn += 1
        states = np.random.SeedSequence(place).generate_state(count, np.uint64)
        return torch.from_numpy(states.astype(np.int64)).to(self.args.device)

    def decode(self, ids: Tensor, whole: list[Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Waveforms (sample,) of rows, and of the clean half of the clip each is an answer to."""
        clean, each = self.processor.batch_decode(whole), len(ids) // len(whole)
        return self.processor.batch_decode(list(ids.cpu())), [clean[row // each] for row in range(len(ids))]

    def add_scores(self, figures: Means, scores: dict, waveforms: list, references: list) -> None:
        """Adds scores and symptoms of some waveforms."""
        for name, values in scores.items():
            figures.add(f"reward/{name}", values)
        for name, values in symptoms(waveforms, references, self.processor.sampling_rate).items():
            figures.add(name, values)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """With the model for inference."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextmanager
    def as_it_began(self) -> Iterator[None]:
        """With the model as the run began with it."""
        if self.start is None:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                yield
            return
        trained, self.model = self.model, self.start
        try:
            yield
        finally:
            self.model = trained

    def before_and_after(self) -> tuple[dict[str, float], dict[str, float]]:
        """What an evaluation says of the model as the run began with it, and as it is."""
        with self.as_it_began():
            before = self.evaluate()
        return before, self.evaluate()

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        own, mask = answer_log_probabilities(model, inputs["input_ids"], inputs["old"].shape[1], self.layout)
        kl = kl_to_start(own, inputs["start"], mask)
        self.figures.add("kl", kl.detach().cpu().numpy())
        if self.stage.loss == "dpo":
            return dpo_loss(own, inputs["start"], mask, self.stage.kl).mean()
        loss = {"gspo": gspo_loss, "grpo": grpo_loss}[self.stage.loss]
        clip = CLIPS[self.stage.loss] if self.stage.clip is None else self.stage.clip
        return (loss(own, inputs["old"], mask, inputs["advantages"], clip) + self.stage.kl * kl).mean()

    # Evaluation and logs

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        """Held-out losses as in the other stages, and scores of held-out clips as the model enhances them."""
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        heard = {f"{metric_key_prefix}_{name}": value for name, value in self.listen().items()}
        return output._replace(metrics=output.metrics | heard)

    @torch.no_grad()
    def listen(self) -> dict[str, float]:
        """Means of scores and symptoms over `heard_clips` of the held-out clips, from all over them."""
        rows, means = self.eval_dataset, Means()
        numbers = np.unique(np.linspace(0, len(rows) - 1, self.stage.heard_clips).round().astype(int))
        processors = {}
        if self.processor.minimum_risk:
            processors = {"logits_processor": [self.policy.risk_processor(self.processor.code_vectors)]}
        own = numbers[self.args.process_index :: self.args.world_size]
        for first in range(0, len(own), self.args.eval_batch_size):
            clips = [rows[int(number)] for number in own[first : first + self.args.eval_batch_size]]
            batch = self.data_collator(clips)
            with self.answering():
                prompts = batch["input_ids"].to(self.args.device)
                ids = generate_answers(self.policy, prompts, do_sample=False, **processors)
            waveforms, references = self.decode(ids, batch["whole"])
            scores = self.watched(waveforms, references, self.processor.sampling_rate)
            self.add_scores(means, scores, waveforms, references)
        return means.read(self.accelerator)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs.update(self.figures.read(self.accelerator))
        super().log(logs, start_time)


def log_probabilities(model: nn.Module, ids: Tensor, layout, num_tokens: int) -> Tensor:
    """Those of `answer_log_probabilities` alone."""
    return answer_log_probabilities(model, ids, num_tokens, layout)[0]


def check_settings(args: DacSeTrainingArguments, stage: Stage3Arguments) -> None:
    """Raises ValueError for settings that have no effect in this stage, or do not go together."""
    others = {"weighting": args.weighting["kind"] != "equal", "spoiled_frames": bool(args.spoiled_frames)}
    others |= {"logit_adjustment": args.logit_adjustment is not None, "batching": args.batching == "packed"}
    if found := [name for name, is_set in others.items() if is_set]:
        raise ValueError(f"{found[0]} is {getattr(args, found[0])!r}, but answers are trained on: leave it out")
    if args.max_steps <= 0:
        raise ValueError(f"max_steps is {args.max_steps}; give the number of steps")
    if args.save_strategy == "steps" and args.save_steps % stage.updates:
        raise ValueError(
            f"save_steps is {args.save_steps}, in the midst of {stage.updates} updates on the same answers, which are "
            "not saved: give a multiple"
        )
    if stage.patience and not (args.load_best_model_at_end and args.metric_for_best_model):
        raise ValueError("patience stops at a best model: give load_best_model_at_end and metric_for_best_model")


def leave_dropout_out(model: nn.Module) -> None:
    """Has a model answer in training as it does in inference: ratios of the two would be noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
