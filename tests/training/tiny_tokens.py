"""Rows of random codes, and a corpus made into tokens: what the tests of training read in place of recordings."""

from pathlib import Path

import torch
import yaml

from tests.tiny import tiny_codec, tiny_model
from tests.tiny_corpus import write_corpus
from training_dacse.lm.arguments import DacSeTrainingArguments
from training_dacse.lm.trainer import DacSeTrainer
from training_dacse.tokens.cache import TokenRows
from training_dacse.tokens.tokenize import TokenizeArguments, tokenize

TASKS = ["clean", "white_noise", "packet_loss"]
RECIPE = {
    "clip_seconds": [0.25, 0.25],
    "tasks": {
        "clean": {},
        "white_noise": {"steps": [{"kind": "white_noise"}]},
        "packet_loss": {"steps": [{"kind": "packet_loss", "packet_ms": [20, 50]}]},
    },
}


class Rows(TokenRows):
    """Random codes whose clean side is a copy of the noisy one: something to learn."""

    tasks = ["noise", "room"]

    def __init__(self, count: int, frames: tuple[int, ...] = (4,)):
        generator = torch.Generator().manual_seed(0)
        self.codes = [torch.randint(16, (3, frames[i % len(frames)]), generator=generator) for i in range(count)]
        self.task_numbers, self.difficulty = torch.arange(count) % 2, torch.linspace(0, 1, count)
        self.num_frames = torch.tensor([codes.shape[1] for codes in self.codes])

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        return {"noisy": self.codes[index], "clean": self.codes[index], "task": int(self.task_numbers[index])}


def tiny_arguments(folder, **settings) -> DacSeTrainingArguments:
    """Of a run on the CPU that logs every step and keeps nothing."""
    settings = {"logging_steps": 1, "save_strategy": "no"} | settings
    return DacSeTrainingArguments(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        **settings,
    )


def tiny_trainer(folder, rows=None, model=None, valid=None, strategy=None, objective=None, **settings) -> DacSeTrainer:
    """A trainer of a tiny model on rows, on the CPU."""
    args = tiny_arguments(folder, **{"max_steps": 4, "learning_rate": 1e-2} | settings)
    rows = rows or Rows(16)
    return DacSeTrainer(model or tiny_model(), args, rows, valid or rows, strategy, objective)


def logged_losses(trainer: DacSeTrainer) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def write_place(folder: Path) -> Path:
    """Corpus, codec and recipe."""
    write_corpus(folder / "corpus")
    tiny_codec(downsampling_ratios=[8, 8, 4]).save_pretrained(folder / "codec")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return folder


def make_tokens(place: Path, output: str = "tokens", **settings) -> Path:
    """Tokens of a place's corpus."""
    given = {"corpus": str(place / "corpus"), "codec": str(place / "codec"), "recipe": str(place / "recipe.yaml")}
    numbers = {"clips": 24, "valid_clips": 2, "shard_size": 8}
    tokenize(TokenizeArguments(output=str(place / output), **(given | numbers | settings)))
    return place / output
