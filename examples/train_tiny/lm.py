"""The language model's stages: tokens, stage 1, stage 2 and adapters; each goes on where it stopped. Know a `Run`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from settings import HERE, ROOT, Run
from transformers import set_seed

from hub_upload.adapter import copy_adapter
from training_dacse.lm.adapters import adapter_losses, add_adapter, save_adapter
from training_dacse.lm.arguments import (
    AdapterArguments,
    DacSeTrainingArguments,
    DataArguments,
    as_options,
    parse_arguments,
)
from training_dacse.lm.runs import last_checkpoint, make_data, make_model, make_objective, make_trainer
from training_dacse.tokens.tokenize import TokenizeArguments, tokenize

NAME = "dacse/tiny"  # what users load the model by
MAX_BYTES = 40e6  # of the package: it travels with every installation


def build_tokens(run: Run) -> None:
    """Degraded clips -> `tokens`, for all stages of the language model."""
    tokenize(TokenizeArguments(**run.token_settings()))


@contextmanager
def new_tokens(run: Run) -> Iterator[None]:
    """Where the settings say so, makes new clips beside a training that reads them, at the lowest priority."""
    settings = run.token_settings()
    if not run.settings["tokens"].get("ahead"):
        yield
        return
    given = {name.replace("_", "-"): value for name, value in settings.items() if name not in ("corpus", "whole")}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    command = ["nice", "-n", "19", sys.executable, "-m", "dacse", "tokenize", settings["corpus"], *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    follower = subprocess.Popen([*command, "--whole", "--follow"], cwd=ROOT, env=environment)
    try:
        yield
    finally:
        follower.terminate()
        follower.wait()


def train_subsampled(run: Run) -> None:
    """Tokens -> `subsampled`, where the settings say so: a new model on some tokens of every frame."""
    if run.settings["subsampled"]:
        train(run, HERE / "train_lm.py", run.options("subsampled"))


def train_stage1(run: Run) -> None:
    """Tokens -> `stage1`: one model on the mixture of all tasks."""
    options = run.options("stage1")
    if run.settings["subsampled"]:
        shape = ("model_overrides", "start_as_quantizer")  # of a new model
        options = {name: value for name, value in options.items() if name not in shape}
        options["model"] = str(run.output / "subsampled")
    train(run, HERE / "train_lm.py", options)


def train_stage2(run: Run) -> None:
    """`stage1` -> `stage2`, where the settings say so: task by task; what is forgotten is measured."""
    if run.settings["stage2"]:
        options = run.options("stage2") | {"model": str(run.output / "stage1")}
        train(run, ROOT / "examples" / "train_stage2.py", options)


def train(run: Run, script: Path, options: dict) -> None:
    """Runs a training script, with new clips beside it where it reads a window of shards."""
    command = [sys.executable, script, *as_options(options)]
    if options.get("window_shards"):
        with new_tokens(run):
            subprocess.run(command, check=True, cwd=ROOT)
    else:
        subprocess.run(command, check=True, cwd=ROOT)


def train_adapters(run: Run) -> None:
    """`package` -> `package/adapters`: a LoRA adapter for each kind of damage, on its part of stage 1's clips."""
    for name, tasks in run.settings["adapters"]["adapters"].items():
        if not (run.package / "adapters" / name).exists():
            train_adapter(run, name, tasks)
    size = sum(path.stat().st_size for path in run.package.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(
            f"{run.package} takes {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}; lower hidden_size or rank"
        )


def train_adapter(run: Run, name: str, tasks: list[str]) -> None:
    """Trains one adapter; its held-out losses, without and with it, are in `adapters/NAME/card.yaml`."""
    options = run.options("adapters") | {
        "model": str(run.package),
        "purpose": ", ".join(tasks),
        "output_dir": str(run.output / "adapters" / name),
    }
    types = DataArguments, AdapterArguments, DacSeTrainingArguments
    data, adapter, args = parse_arguments(*types, argv=as_options(options))
    set_seed(args.seed)
    model = make_model(data)
    rows, valid = make_data(data, model.config)
    objective = make_objective(args, model.config, rows, data.model)
    trainer = make_trainer(add_adapter(model, adapter), args, rows.only(*tasks), valid, objective=objective)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))
    save_adapter(trainer.model, args.output_dir, adapter.purpose, *adapter_losses(trainer))
    copy_adapter(Path(args.output_dir), run.package / "adapters" / name, NAME)
