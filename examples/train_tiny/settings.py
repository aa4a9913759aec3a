"""A run of the recipe: where it reads and writes, and the settings of its stages. Knows no stage."""

import argparse
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml
from transformers import DacConfig

from training_dacse.lm.arguments import DataArguments

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("codec", "stage1", "adapters")  # of a folder of settings
# files it may have, and what is read where it has none
OPTIONAL = {"decoder": None, "subsampled": None, "stage2": None, "evaluate": HERE / "evaluate.yaml"}
BUDGETS = ("codec", "decoder", "subsampled", "stage1", "stage2", "adapters")
OWN = ("window_seconds", "adapters")  # settings that are no options of the training scripts


@dataclass(frozen=True)
class Run:
    """A run.

    Args:
        data: folder of recordings with a MANIFEST.tsv.
        output: where everything is written.
        settings: of each stage, by its name.
    """

    data: Path
    output: Path
    settings: dict[str, dict]

    @property
    def device(self) -> str:
        """Where networks are trained."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def corpus(self) -> Path:
        """The decoded recordings."""
        return self.output / "corpus"

    @property
    def codec(self) -> Path:
        """The trained codec, as it is packaged."""
        return self.output / "audio_tokenizer"

    @property
    def package(self) -> Path:
        """The repository that comes out."""
        return self.output / "package"

    @property
    def package_name(self) -> str:
        """The package as evaluations name it: by its path from here, if it lies below, so the same for everybody."""
        here = os.path.relpath(self.package)
        return str(self.package) if here.startswith("..") else here

    def made_with(self, stage: str) -> dict:
        """The settings that a stage depends on; clips and model are those of stage 1 in the two before it as well."""
        settings, first = self.settings.get(stage, {}), self.settings["stage1"]
        if stage not in ("tokens", "subsampled"):
            return settings
        shared = {*DataArguments.__dataclass_fields__, "window_seconds"}
        return settings | {"stage1": {name: value for name, value in first.items() if name in shared}}

    def with_settings(self, stage: str, **changes) -> "Run":
        """This run with some settings of a stage changed."""
        return replace(self, settings=self.settings | {stage: self.settings[stage] | changes})

    def with_budget(self, stage: str, seconds: float) -> "Run":
        """This run with another wall-clock budget of a stage (of each sub-stage, or adapter).

        Raises:
            ValueError: the settings leave this stage out.
        """
        if not self.settings[stage]:
            raise ValueError(f"{stage}={seconds:g}: these settings have no {stage}.yaml, so the stage is left out")
        if stage == "codec":
            return self.with_settings("codec", training=self.settings["codec"]["training"] | {"max_seconds": seconds})
        return self.with_settings(stage, max_seconds=seconds)

    def options(self, stage: str) -> dict:
        """Options of the training scripts for a stage of the language model; all stages share stage 1's clips."""
        codec = DacConfig.from_pretrained(self.codec)
        first = self.settings["stage1"]
        frames = int(first["window_seconds"] * codec.sampling_rate / codec.hop_length)
        shared = {item.name: first[item.name] for item in fields(DataArguments) if item.name in first}
        context = 2 * frames * codec.n_codebooks + 3  # [bos] noisy [start_clean] clean [eos]
        shared |= {
            "data": str(self.corpus),
            "recipe": str(ROOT / first["recipe"]),
            "codec": str(self.codec),
            "cache": str(self.output / "tokens"),
            "output_dir": str(self.output / stage),
            "model_overrides": f"{first['model_overrides']},max_position_embeddings={context}",
            "window_frames": frames,
        }
        own = {key: value for key, value in self.settings[stage].items() if key not in {*OWN, "model_overrides"}}
        return own | shared


def without_budgets(settings: dict) -> dict:
    """Settings but for those by which a run goes on for longer, or sooner.

    >>> without_budgets({"rank": 4, "training": {"max_seconds": 60, "seed": 0}})
    {'rank': 4, 'training': {'seed': 0}}
    """
    return {
        name: without_budgets(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in ("max_seconds", "max_steps", "cache_processes")
    }


def read_settings(folder: str | Path) -> dict[str, dict]:
    """Settings from `cpu`, `gpu` or a folder of one's own, and how the result is evaluated.

    Raises:
        FileNotFoundError: a file is missing.
    """
    folder = HERE / folder if (HERE / folder).is_dir() else Path(folder)
    settings = {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in FILES}
    for name, fallback in OPTIONAL.items():
        own = folder / f"{name}.yaml"
        path = own if own.exists() else fallback
        settings[name] = yaml.safe_load(path.read_text()) if path else {}
    return settings


def budget(text: str) -> tuple[str, float]:
    """
    >>> budget("codec=600")
    ('codec', 600.0)
    """
    stage, _, seconds = text.partition("=")
    if stage not in BUDGETS:
        raise argparse.ArgumentTypeError(f"{text!r}: give {'=, '.join(BUDGETS)}= and seconds")
    return stage, float(seconds)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a run is."""
    parser.add_argument("--data", type=Path, required=True, help="folder with MANIFEST.tsv")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"), help="it goes on where it was")
    parser.add_argument(
        "--settings", default="gpu" if torch.cuda.is_available() else "cpu", help="cpu, gpu or a folder"
    )
    parser.add_argument(
        "--seconds",
        nargs="+",
        type=budget,
        default=[],
        metavar="STAGE=SECONDS",
        help="wall-clock budgets in place of those of the settings (stage2, adapters: of every part)",
    )


def read_run(args: argparse.Namespace) -> Run:
    """The run that options describe; its folder is there."""
    run = Run(args.data.resolve(), args.output.resolve(), read_settings(args.settings))
    for stage, seconds in args.seconds:
        run = run.with_budget(stage, seconds)
    run.output.mkdir(parents=True, exist_ok=True)
    return run
