"""Writes the repository of an adapter: LoRA weights, the name of the model they belong to, a card.

Knows no Hub beyond loading the base model from it.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers.utils import cached_file

from modeling_dacse import DacSeForEnhancement

from .card import adapter_card
from .evaluation import stage_evaluations
from .facts import Facts

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PRIOR_NAME = "log_prior.safetensors"  # beside weights that were trained with a logit adjustment; training reads it
POLICY = ("window_frames", "minimum_risk", "keep_recording")  # of a processor


def stage_adapter(source: Path, folder: Path, name: str, base_model: str | None = None) -> None:
    """Fills `folder` with what the repository of an adapter needs, once the adapter has proved to fit its base.

    Args:
        source: a directory that PEFT has saved; `card.yaml` in it states the task and other facts of the card.
        folder: an existing, empty folder.
        name: the adapter's id on the Hub.
        base_model: id on the Hub of the model it was trained on; by default what the adapter says itself.

    Raises:
        ValueError: `source` is no adapter, does not fit its base, or names a directory as its base.
    """
    if not (source / CONFIG_NAME).is_file() or not (source / WEIGHTS_NAME).is_file():
        raise ValueError(f"{source} is no adapter: {CONFIG_NAME} and {WEIGHTS_NAME} must both be in it")
    config = json.loads((source / CONFIG_NAME).read_text())
    trained_on = config["base_model_name_or_path"]
    check_fit(source, trained_on)
    base_model = base_model or trained_on
    if Path(base_model).is_dir():
        raise ValueError(
            f"{source} was trained on the directory {base_model}, which nobody else has; "
            "publish that model and name it with --base-model ORGANISATION/NAME"
        )
    copy_adapter(source, folder, base_model)
    if not copy_prior(str(source), folder):
        copy_prior(trained_on, folder)
    facts = stage_evaluations(source, folder, replace(Facts.read(source), base_model=base_model))
    facts.write(folder)
    num_bytes = (source / WEIGHTS_NAME).stat().st_size
    (folder / "README.md").write_text(adapter_card(name, config["r"], num_bytes, policy_of(trained_on), facts, folder))


def copy_adapter(source: Path, folder: Path, base_model: str) -> None:
    """Copies what PEFT loads, and nothing a trainer left behind; the base goes by the name `base_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / CONFIG_NAME).read_text()) | {"base_model_name_or_path": base_model}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(source / WEIGHTS_NAME, folder)


def copy_prior(source: str, folder: Path) -> bool:
    """Copies the logit adjustment that weights were trained with, so that whoever trains on goes on with it.

    Args:
        source: directory or Hub id of the weights.
        folder: where it goes.

    Returns:
        whether they were trained with one.
    """
    found = cached_file(source, PRIOR_NAME, _raise_exceptions_for_missing_entries=False)
    if found:
        shutil.copyfile(found, folder / PRIOR_NAME)
    return found is not None


def policy_of(base_model: str) -> dict[str, int | bool]:
    """What the processor of an adapter's base asks of every call; empty where it asks for nothing, or is not there."""
    found = cached_file(base_model, "processor_config.json", _raise_exceptions_for_missing_entries=False)
    config = json.loads(Path(found).read_text()) if found else {}
    return {name: config[name] for name in POLICY if config.get(name)}


def check_fit(source: Path, base_model: str) -> None:
    """Raises ValueError if a tensor of the adapter has no place in `base_model`, or a place has no tensor."""
    base = DacSeForEnhancement.from_pretrained(base_model, dtype="auto")
    try:
        adapted = PeftModel.from_pretrained(base, source)
    except (RuntimeError, ValueError) as error:  # sizes differ; none of the modules is there
        raise ValueError(f"{source} does not fit {base_model}: {str(error).splitlines()[-1].strip()}") from error
    stray = get_peft_model_state_dict(adapted).keys() ^ load_file(source / WEIGHTS_NAME).keys()
    if stray:
        raise ValueError(f"{source} does not fit {base_model}: {len(stray)} tensors without counterpart: {min(stray)}")
