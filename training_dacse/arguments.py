"""What a training run is told: dataclasses filled from a YAML file and the command line. Knows no data, no model."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments


@dataclass
class DataArguments:
    """The model to train and the clips it is trained on."""

    data: str = field(metadata={"help": "clean speech (folder, manifest, data set) or a folder of noisy/clean pairs"})
    codec: str = field(metadata={"help": "folder or Hub id of a DacModel, or of a processor that holds one"})
    model: str = field(
        default="tiny", metadata={"help": "size of a new model, or folder or Hub id of one to go on with"}
    )
    model_overrides: str | None = field(
        default=None, metadata={"help": "of a new model: 'hidden_size=256,num_hidden_layers=6'"}
    )
    recipe: str | None = field(default=None, metadata={"help": "YAML of the degradations; none for a folder of pairs"})
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
    cache_processes: int = field(default=1, metadata={"help": "processes that degrade and encode"})
    pairs_seed: int = field(default=0, metadata={"help": "of clips, tasks and degradations"})
    skip_broken: bool = field(default=False, metadata={"help": "count unreadable or silent recordings, go on without"})

    def __post_init__(self):
        for name in ("train_clips", "valid_clips", "cache_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass
class DacSeTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what this trainer adds."""

    output_dir: str | None = field(
        default="output", metadata={"help": "checkpoints and model", "aliases": ["--output"]}
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "wall-clock budget over all restarts; the learning rate follows it to its end"}
    )
    balancing: str = field(
        default="none",
        metadata={"help": "of the tasks' losses", "choices": ["none", "uncertainty", "gradnorm", "dwa"]},
    )
    balanced_tasks: bool = field(default=False, metadata={"help": "meet every task equally often"})
    curriculum_steps: int = field(
        default=0, metadata={"help": "steps from the easiest clips to all of them; 0 for none"}
    )
    remove_unused_columns: bool = False  # the collator needs them all
    logging_nan_inf_filter: bool = False  # a NaN must be seen
    prediction_loss_only: bool = True  # the trainer measures accuracy itself; logits of a whole set fill the memory

    def __post_init__(self):
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else bf16 is refused on a CPU
        super().__post_init__()


def parse_arguments(*types: type, argv: list[str] | None = None) -> tuple:
    """Fills dataclasses from `--config FILE.yaml` and the command line; the command line wins.

    Args:
        types: dataclasses whose fields are the options.
        argv: `sys.argv[1:]` when left out.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--config" in argv:
        position = argv.index("--config")
        path = Path(argv[position + 1])
        argv = yaml_options(path) + argv[:position] + argv[position + 2 :]
    return HfArgumentParser(types).parse_args_into_dataclasses(argv)


def yaml_options(path: Path) -> list[str]:
    """The settings of a YAML file as command-line options."""
    options = []
    for name, value in (yaml.safe_load(path.read_text()) or {}).items():
        if value is not None:
            options += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return options
