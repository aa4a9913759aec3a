"""What a training run is told: dataclasses filled from a YAML file and the command line. Knows no data, no model."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """The model to train and the clips it is trained on."""

    data: str = field(metadata={"help": "clean speech (folder, manifest, data set) or a folder of noisy/clean pairs"})
    codec: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a DacModel or of a processor that holds one; else the model's"},
    )
    model: str = field(
        default="tiny", metadata={"help": "size of a new model, or folder or Hub id of one to go on with"}
    )
    model_overrides: str | None = field(
        default=None, metadata={"help": "of a new model: 'hidden_size=256,num_hidden_layers=6'"}
    )
    window_frames: int | None = field(
        default=None,
        metadata={"help": "of a new model: frames of every clip, and then of every window it is given"},
    )
    start_as_quantizer: bool = field(
        default=False, metadata={"help": "a new model with window_frames starts as the codec's own quantizer"}
    )
    recipe: str | None = field(default=None, metadata={"help": "YAML of the degradations; none for a folder of pairs"})
    tasks: list[str] | None = field(default=None, metadata={"help": "tasks of the recipe; else all"})
    where: str | None = field(
        default=None, metadata={"help": "rows of a manifest: 'bandwidth_hz >= 14500 and snr_db >= 30'"}
    )
    noise: str | None = field(default=None, metadata={"help": "folder, manifest or data set of noise"})
    rooms: str | None = field(
        default=None, metadata={"help": "the same of room impulse responses; else simulated rooms"}
    )
    music: str | None = field(default=None, metadata={"help": "the same of music"})
    valid_data: str | None = field(
        default=None, metadata={"help": "held-out speech; else split 'valid' of the manifest"}
    )
    cache: str | None = field(default=None, metadata={"help": "folder of the token cache; else OUTPUT/tokens"})
    train_clips: int = field(default=20000, metadata={"help": "degraded clips in the cache (pairs: all there are)"})
    valid_clips: int = field(default=16, metadata={"help": "held-out clips of each task"})
    num_codebooks: int | None = field(default=None, metadata={"help": "train on the first codebooks only"})
    on_the_fly: bool = field(
        default=False, metadata={"help": "degrade and encode training clips in the loader's workers, without a cache"}
    )
    stream: bool = field(
        default=False,
        metadata={
            "help": "read `data`, a data set with an `audio` column, as a stream, each clip once; with fewer files "
            "than processes, every process encodes the clips of all"
        },
    )
    cache_processes: int = field(default=1, metadata={"help": "processes that degrade and encode"})
    pairs_seed: int = field(default=0, metadata={"help": "of clips, tasks and degradations"})
    skip_broken: bool = field(default=False, metadata={"help": "count unreadable or silent recordings, go on without"})

    def __post_init__(self):
        for name in ("train_clips", "valid_clips", "cache_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.stream and not self.valid_data:
            raise ValueError("a streamed data set cannot be held out in part; give other speech as valid_data")


@dataclass
class DacSeTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what this trainer adds."""

    output_dir: str | None = field(
        default="output", metadata={"help": "checkpoints and model", "aliases": ["--output"]}
    )
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"dispatch_batches": False},  # every process reads its own part of a stream
        metadata={"help": "as for `TrainingArguments`"},
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "wall-clock budget over all restarts; the learning rate follows it to its end"}
    )
    balancing: str = field(
        default="none",
        metadata={"help": "of the tasks' losses", "choices": ["none", "uncertainty", "gradnorm", "dwa"]},
    )
    balanced_tasks: bool = field(default=False, metadata={"help": "meet every task equally often"})
    logit_adjustment: float = field(
        default=0.0,
        metadata={"help": "how far codes are discounted for being common, 0 to about 1; needs a token cache"},
    )
    spoiled_frames: float = field(
        default=0.0,
        metadata={
            "help": "replace up to this share of a clip's clean frames by its noisy ones, which are not trained on: "
            "what generate goes on from is not all clean either"
        },
    )
    tokens_per_frame: int = field(
        default=0,
        metadata={"help": "train on so many random tokens of a frame, a model that started as a quantizer; 0 for all"},
    )
    curriculum_steps: int = field(
        default=0, metadata={"help": "steps from the easiest clips to all of them; 0 for none"}
    )
    listen_clips: int = field(default=0, metadata={"help": "held-out clips enhanced and logged at every evaluation"})
    remove_unused_columns: bool = False  # the collator needs them all
    ddp_find_unused_parameters: bool | None = False  # there are none: looking for them costs time in every step
    ddp_timeout: int = 86_400  # s: the first process may build a large token cache while the others wait
    logging_nan_inf_filter: bool = False  # a NaN must be seen
    prediction_loss_only: bool = True  # the trainer measures accuracy itself; logits of a whole set fill the memory

    def __post_init__(self):
        if not 0 <= self.spoiled_frames <= 1:
            raise ValueError(f"spoiled_frames is {self.spoiled_frames}; give a share from 0 to 1")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else bf16 is refused on a CPU
        can_tell = torch.backends.mkldnn.is_available()
        if self.use_cpu and self.bf16 and can_tell and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            logger.warning("this CPU has no bf16 arithmetic, which would be many times slower: training in float32")
            self.bf16 = False
        super().__post_init__()


@dataclass
class Stage2Arguments:
    """How one model is fine-tuned on task after task; `max_steps` is the length of a sub-stage."""

    order: list[str] | None = field(
        default=None, metadata={"help": "tasks, one after the other; else all of the recipe"}
    )
    rounds: int = field(default=1, metadata={"help": "times the order is gone through"})
    replay: float = field(default=0.0, metadata={"help": "share of other tasks' clips in a sub-stage"})
    anchor: str = field(default="none", metadata={"help": "against forgetting", "choices": ["none", "l2sp", "ewc"]})
    anchor_strength: float = field(default=1.0, metadata={"help": "of the anchor"})

    def __post_init__(self):
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay is {self.replay}; it is a share within [0, 1)")


@dataclass
class AdapterArguments:
    """The shape of a LoRA adapter."""

    rank: int = field(default=8, metadata={"help": "of the update; file size and capacity grow with it"})
    alpha: float = field(default=16.0, metadata={"help": "the update is scaled by alpha / rank"})
    modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], metadata={"help": "layers that are adapted"}
    )
    purpose: str = field(default="own recordings", metadata={"help": "what it is for, in words for its card"})


def parse_arguments(*types: type, defaults: dict | None = None, argv: list[str] | None = None) -> tuple:
    """Fills dataclasses from `--config FILE.yaml` and the command line; the command line wins.

    Args:
        types: dataclasses whose fields are the options.
        defaults: options in place of those of the dataclasses; the YAML file wins over them.
        argv: `sys.argv[1:]` when left out.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--config" in argv:
        position = argv.index("--config")
        settings = yaml.safe_load(Path(argv[position + 1]).read_text())
        argv = as_options(settings) + argv[:position] + argv[position + 2 :]
    return HfArgumentParser(types).parse_args_into_dataclasses(as_options(defaults or {}) + argv)


def as_options(settings: dict) -> list[str]:
    """Settings as command-line options.

    >>> as_options({"bf16": True, "tasks": ["noise", "room"], "noise": None})
    ['--bf16', 'True', '--tasks', 'noise', 'room']
    """
    options = []
    for name, value in settings.items():
        if value is not None:
            options += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return options
