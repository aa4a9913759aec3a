"""A run of the recipe: where it reads and writes, and the settings of its stages. Knows no stage."""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from transformers import DacConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("codec", "tokens", "stage1", "adapters")  # of a folder of settings
# files it may have, and what is read where it has none
OPTIONAL = {"decoder": None, "subsampled": None, "stage2": None, "evaluate": HERE / "evaluate.yaml"}
SHARED = ("model", "model_overrides", "start_as_quantizer", "window_shards", "fresh_shards")  # of a new model's stages
BUDGETS = ("codec", "decoder", "subsampled", "stage1", "stage2", "adapters")
OWN = ("policy", "adapters")  # settings that are no options of the training scripts


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
        if stage != "subsampled":
            return settings
        return settings | {"stage1": {name: first[name] for name in SHARED if name in first}}

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

    @property
    def window_frames(self) -> int:
        """Frames of every clip."""
        codec = DacConfig.from_pretrained(self.codec)
        return int(self.settings["tokens"]["max_seconds"] * codec.sampling_rate / codec.hop_length)

    def token_settings(self) -> dict:
        """What tokens are made from: `TokenizeArguments`."""
        settings = self.settings["tokens"]
        places = {"corpus": str(self.corpus), "output": str(self.output / "tokens"), "codec": str(self.codec)}
        return settings | places | {"recipe": str(ROOT / settings["recipe"]), "whole": True, "device": self.device}

    def options(self, stage: str) -> dict:
        """Options of the training scripts for a stage of the language model; all share stage 1's shape and tokens."""
        first = self.settings["stage1"]
        codebooks = DacConfig.from_pretrained(self.codec).n_codebooks
        context = 2 * self.window_frames * codebooks + 3  # [bos] noisy [start_clean] clean [eos]
        options = {"tokens": str(self.output / "tokens"), "output_dir": str(self.output / stage)}
        if stage in ("subsampled", "stage1"):
            options |= {name: first[name] for name in SHARED if name in first}
            options["model_overrides"] = f"{first['model_overrides']},max_position_embeddings={context}"
        own = {name: value for name, value in self.settings[stage].items() if name not in {*OWN, *SHARED}}
        return own | options


def without_budgets(settings: dict) -> dict:
    """Settings but for those by which a run goes on for longer, or sooner.

    >>> without_budgets({"rank": 4, "training": {"max_seconds": 60, "seed": 0}})
    {'rank': 4, 'training': {'seed': 0}}
    """
    return {
        name: without_budgets(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in ("max_seconds", "max_steps", "processes")
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
