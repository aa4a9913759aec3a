"""What a training run is told: dataclasses filled from a YAML file and the command line. Knows no data, no model."""

import json
import logging
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..tokens.stream import BATCHINGS
from .kinds import read_kind
from .sampling import SAMPLINGS
from .weighting import WEIGHTINGS

logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """The model to train and the tokens it is trained on."""

    tokens: str = field(metadata={"help": "folder, or data set on the Hub, with tokens in train/ and valid/"})
    model: str = field(
        default="tiny", metadata={"help": "size of a new model, or folder or Hub id of one to go on with"}
    )
    model_overrides: str | None = field(
        default=None, metadata={"help": "of a new model: 'hidden_size=256,num_hidden_layers=6'"}
    )
    num_codebooks: int | None = field(default=None, metadata={"help": "of a new model: the first codebooks only"})
    codec: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of the codec to save with the model; else the tokens'"},
    )
    window_shards: int = field(
        default=0, metadata={"help": "shards of an epoch, where `dacse tokenize --follow` makes new ones; 0 for all"}
    )
    fresh_shards: int = field(default=1, metadata={"help": "of these, how many are new in every epoch"})

    def __post_init__(self):
        if self.fresh_shards != 1 and not self.window_shards:
            raise ValueError(f"fresh_shards is {self.fresh_shards}, of no window; give window_shards or leave it out")
        if self.window_shards and not 1 <= self.fresh_shards <= self.window_shards:
            raise ValueError(f"fresh_shards is {self.fresh_shards}; give 1 to window_shards, {self.window_shards}")


@dataclass
class DacSeTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what this trainer adds. Epochs have no end of their own: count in steps."""

    output_dir: str | None = field(
        default="output", metadata={"help": "checkpoints and model", "aliases": ["--output"]}
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "wall-clock budget over all restarts; the learning rate follows it to its end"}
    )
    batching: str = field(
        default="rows",
        metadata={
            "help": "clips as they come, of like length, or packed: as many as fit the context, "
            "per_device_train_batch_size times",
            "choices": list(BATCHINGS),
        },
    )
    sampling: dict | str | None = field(
        default="shuffled",
        metadata={"help": f"order of the clips: {', '.join(SAMPLINGS)}, or {{kind: easy_first, epochs: 2}}"},
    )
    weighting: dict | str | None = field(
        default="equal",
        metadata={"help": f"of the tasks' losses: {', '.join(WEIGHTINGS)}, or {{kind: fixed, weights: {{noise: 2}}}}"},
    )
    logit_adjustment: float | None = field(
        default=None,
        metadata={
            "help": "how far codes are discounted for being common, 0 to about 1; a model that was trained with it "
            "keeps to it unless told otherwise"
        },
    )
    spoiled_frames: float = field(
        default=0.0,
        metadata={
            "help": "replace up to this share of a clip's clean frames by its noisy ones, which are not trained on: "
            "what generate goes on from is not all clean either"
        },
    )
    listen_clips: int = field(default=0, metadata={"help": "held-out clips enhanced and logged at every evaluation"})
    peak_tflops: float | None = field(
        default=None, metadata={"help": "of a device in the precision of training, where its name does not say it"}
    )
    remove_unused_columns: bool = False  # the collator needs them all
    ignore_data_skip: bool = True  # the source of batches knows where it is: nothing is read to be skipped
    ddp_find_unused_parameters: bool | None = False  # there are none: looking for them costs time in every step
    logging_nan_inf_filter: bool = False  # a NaN must be seen
    prediction_loss_only: bool = True  # the trainer measures accuracy itself; logits of a whole set fill the memory

    def __post_init__(self):
        if not 0 <= self.spoiled_frames <= 1:
            raise ValueError(f"spoiled_frames is {self.spoiled_frames}; give a share from 0 to 1")
        if self.spoiled_frames and self.batching == "packed":
            raise ValueError("spoiled_frames and packed batches exclude one another; batch clips of like length")
        self.sampling = read_kind("sampling", self.sampling, SAMPLINGS)
        self.weighting = read_kind("weighting", self.weighting, WEIGHTINGS)
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else bf16 is refused on a CPU
        can_tell = torch.backends.mkldnn.is_available()
        if self.use_cpu and self.bf16 and can_tell and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            logger.warning("this CPU has no bf16 arithmetic, which would be many times slower: training in float32")
            self.bf16 = False
        super().__post_init__()
        for name, setting in (("train_sampling_strategy", "random"), ("dataloader_drop_last", False)):
            if getattr(self, name) != setting:
                raise ValueError(f"{name} has no effect here; give sampling and batching")
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(f"{name} is epoch, but batches come without end; give steps")


@dataclass
class Stage2Arguments:
    """How one model is fine-tuned on task after task; `max_steps` is the length of a sub-stage."""

    order: list[str] | None = field(
        default=None, metadata={"help": "tasks, one after the other; else all of the tokens"}
    )
    rounds: int = field(default=1, metadata={"help": "times the order is gone through"})
    replay: float = field(default=0.0, metadata={"help": "share of other tasks' clips in a sub-stage"})
    anchor: str = field(default="none", metadata={"help": "against forgetting", "choices": ["none", "l2sp", "ewc"]})
    anchor_strength: float = field(default=1.0, metadata={"help": "of the anchor"})

    def __post_init__(self):
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay is {self.replay}; it is a share within [0, 1)")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")
        if twice := [task for task in self.order or () if self.order.count(task) > 1]:
            raise ValueError(f"order names {twice[0]!r} more than once; rounds goes through the whole order again")


@dataclass
class AdapterArguments:
    """The shape of a LoRA adapter and what it is for."""

    rank: int = field(default=8, metadata={"help": "of the update; file size and capacity grow with it"})
    alpha: float = field(default=16.0, metadata={"help": "the update is scaled by alpha / rank"})
    modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], metadata={"help": "layers that are adapted"}
    )
    purpose: str = field(default="own recordings", metadata={"help": "what it is for, in words for its card"})
    adapted_tasks: list[str] | None = field(default=None, metadata={"help": "tasks it is trained on; else all"})


@dataclass
class Stage3Arguments:
    """What is rewarded, and how a model learns from it."""

    rewards: dict | str = field(
        default_factory=lambda: {"dnsmos_ovrl": 1.0, "estoi": 1.0},
        metadata={"help": "weight of each score that counts; what is better when lower is negated before"},
    )
    metrics: list[str] = field(
        default_factory=lambda: ["dnsmos", "stoi", "pesq", "mel_distance"],
        metadata={"help": "that score held-out clips, NAME or NAME:MODEL; those of the rewards score answers too"},
    )
    loss: str = field(default="gspo", metadata={"help": "what is minimised", "choices": ["gspo", "grpo", "dpo"]})
    answers: int = field(default=8, metadata={"help": "drawn to each prompt"})
    updates: int = field(default=2, metadata={"help": "steps on the same answers"})
    clip: float | None = field(default=None, metadata={"help": "of importance ratios; that of the loss's paper"})
    kl: float = field(default=0.02, metadata={"help": "weight of the distance from the start; DPO's beta"})
    heard_clips: int = field(default=32, metadata={"help": "held-out clips that are enhanced and scored"})
    patience: int = field(
        default=0,
        metadata={"help": "evaluations without a better metric_for_best_model after which it stops; 0: none"},
    )
    processes: int = field(default=2, metadata={"help": "that score; 0: this one"})
    full: bool = field(default=False, metadata={"help": "train all weights, and no adapter"})

    def __post_init__(self):
        if isinstance(self.rewards, str):
            self.rewards = json.loads(self.rewards)
        if not self.rewards:
            raise ValueError("rewards is empty; give the weight of a score, as {dnsmos_ovrl: 1.0}")
        for name, least in (("answers", 2), ("updates", 1), ("heard_clips", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")


class RunParser(HfArgumentParser):
    """The library's parser with `--config FILE.yaml`: nested settings as they stand there; the command line wins.

    Args:
        types: dataclasses whose fields are the options.
        defaults: options in place of those of the dataclasses; the YAML file wins over them.
    """

    def __init__(self, types: Sequence[type], defaults: dict | None = None):
        super().__init__(types, formatter_class=ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        self.add_argument("--config", type=Path, help="YAML file of options")
        self.use_defaults(defaults or {}, "the defaults")

    def use_defaults(self, settings: dict, source: str | Path) -> None:
        """Takes settings for options that the command line leaves out.

        Raises:
            ValueError: an unknown setting, or a value of another kind than the setting's.
        """
        actions = {action.dest: action for action in self._actions if action.option_strings}
        for name, value in settings.items():
            if name not in actions:
                raise ValueError(f"{source}: unknown setting {name!r}; `--help` lists them all")
            choices = actions[name].choices
            if choices and value not in choices:
                raise ValueError(f"{source}: {name} is {value!r}; choose one of {', '.join(choices)}")
            if wanted := what_instead(actions[name], value):
                raise ValueError(f"{source}: {name} is {value!r}; give {wanted}")
            actions[name].required = False
        self.set_defaults(**settings)


def what_instead(option: Action, value: Any) -> str | None:
    """What an option takes, where a value from a file is something else."""
    if value is None:
        return None
    if option.nargs == "+":
        return None if isinstance(value, list) else f"a list, [{value}]"
    if option.type in (int, float):
        try:
            option.type(str(value))
        except ValueError:
            return "a whole number" if option.type is int else "a number"
    return None


def read_settings(path: Path) -> dict:
    """The settings in a YAML file.

    Raises:
        ValueError: it holds none.
    """
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: no settings; give a line `name: value` for each")
    return settings


def parse_arguments(*types: type, defaults: dict | None = None, argv: list[str] | None = None) -> tuple:
    """Fills dataclasses from `--config FILE.yaml` and the command line; the command line wins.

    Args:
        types: dataclasses whose fields are the options.
        defaults: options in place of those of the dataclasses; the YAML file wins over them.
        argv: `sys.argv[1:]` when left out.

    Raises:
        ValueError: a setting that does not exist, or a value out of its range.
        SystemExit: a wrong option on the command line, which is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = RunParser(types, defaults)
    finder = HfArgumentParser([], add_help=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(argv)[0].config
    if path is not None:
        parser.use_defaults(read_settings(path), path)
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[: len(types)]


def as_options(settings: dict) -> list[str]:
    """Settings as command-line options.

    >>> as_options({"bf16": True, "tasks": ["noise", "room"], "noise": None, "sampling": {"kind": "balanced"}})
    ['--bf16', 'True', '--tasks', 'noise', 'room', '--sampling', '{"kind": "balanced"}']
    """
    options = []
    for name, value in settings.items():
        if isinstance(value, dict):
            options += [f"--{name}", json.dumps(value)]
        elif value is not None:
            options += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return options
