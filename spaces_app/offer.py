"""What the Space offers: its settings, models and adapters, and what a visitor can choose. Knows no page, no audio.

Settings come from environment variables, which is what a Space has ("Settings", "Variables").
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from transformers import pipeline

BASE_MODEL = "none"  # the choice of no adapter
MOST_CANDIDATES = 8  # answers to a window, which take about as many times the work
KEEP_RECORDING = {"default": None, "yes": True, "no": False}  # choices, and what a call of the pipeline is given


@dataclass(frozen=True)
class Settings:
    """The settings of a Space.

    Args:
        models: Hub ids or directories; the first is chosen at the start. None: the one inside the `dacse` package.
        adapters: Hub ids or directories of adapters, offered beside those in each model's own `adapters/`.
        trust_remote_code: run the code of the models' repositories. Needed where `dacse` is not installed.
        max_minutes: longest recording taken.
        max_megabytes: largest file taken.
    """

    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    trust_remote_code: bool = False
    max_minutes: float = 10
    max_megabytes: float = 200

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads `DACSE_MODELS` and `DACSE_ADAPTERS` (with commas between), `DACSE_TRUST_REMOTE_CODE` (1 or 0),
        `DACSE_MAX_MINUTES` and `DACSE_MAX_MEGABYTES`.

        >>> Settings.from_environment({"DACSE_MODELS": "org/a, org/b", "DACSE_MAX_MINUTES": "2"}).models
        ('org/a', 'org/b')
        """
        trust = environment.get("DACSE_TRUST_REMOTE_CODE", "0")
        if trust not in ("0", "1"):
            raise ValueError(f"DACSE_TRUST_REMOTE_CODE is {trust!r}; give 1 or 0")
        return cls(
            models=_names(environment.get("DACSE_MODELS", "")),
            adapters=_names(environment.get("DACSE_ADAPTERS", "")),
            trust_remote_code=trust == "1",
            max_minutes=_number(environment, "DACSE_MAX_MINUTES", cls.max_minutes),
            max_megabytes=_number(environment, "DACSE_MAX_MEGABYTES", cls.max_megabytes),
        )


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    given = environment.get(name, default)
    try:
        number = float(given)
    except ValueError:
        number = 0
    if not number > 0:
        raise ValueError(f"{name} is {given!r}; give a number above 0")
    return number


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


class Choices(NamedTuple):
    """What a visitor chooses, in the order of the page."""

    model: str
    adapter: str = BASE_MODEL
    strength: float = 1.0
    do_sample: bool = False
    temperature: float | None = 1.0  # None where the visitor emptied the field: the model's own
    seed: int | None = 0  # None where the visitor emptied the field: drawn anew each time
    keep_recording: str = "default"
    candidates: int | None = 1  # None where the visitor emptied the field: one

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn by chance: where that was asked for, and for several candidates always."""
        return self.do_sample or (self.candidates or 1) > 1

    def parameters(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        parameters = {
            "strength": self.strength,
            "adapter": None if self.adapter == BASE_MODEL else self.adapter,
            "keep_recording": KEEP_RECORDING[self.keep_recording],
        }
        if not self.draws:
            return parameters
        if (candidates := self.candidates or 1) > 1:
            parameters["candidates"] = candidates
        drawn = {"do_sample": True, "temperature": self.temperature, "seed": self.seed}
        return parameters | {name: value for name, value in drawn.items() if value is not None}

    def label(self) -> str:
        """What was chosen, in words; what stands at its default is left out.

        >>> Choices("one").label(), Choices("one", "dereverb", 0.5, keep_recording="no").label()
        ('default settings', 'dereverb, strength 0.5, all generated')
        >>> Choices("one", candidates=4).label()
        'best of 4, sampled at 1 with seed 0'
        """
        words = [self.adapter] if self.adapter != BASE_MODEL else []
        if self.strength not in (None, 1):
            words.append(f"strength {self.strength:g}")
        words += {"yes": ["recording kept"], "no": ["all generated"]}.get(self.keep_recording, [])
        if self.draws:
            seed = "no seed" if self.seed is None else f"seed {self.seed}"
            best = f"best of {self.candidates}, " if (self.candidates or 1) > 1 else ""
            words.append(f"{best}sampled at {self.temperature or 1:g} with {seed}")
        return ", ".join(words) or "default settings"


def load_pipelines(settings: Settings) -> dict[str, Any]:
    """The pipeline of every model, by its name on the page."""
    if importlib.util.find_spec("dacse"):
        importlib.import_module("dacse")  # registers the task; without it the repository's own code has to be trusted
    elif not settings.models:
        raise ValueError(
            "no model is given; set DACSE_MODELS to the Hub id of one and DACSE_TRUST_REMOTE_CODE to 1, "
            "or name dacse, which has one inside, in requirements.txt"
        )
    if not settings.models:
        return {"built-in": pipeline("audio-enhancement")}
    options = {"trust_remote_code": settings.trust_remote_code}
    return {model: pipeline("audio-enhancement", model=model, **options) for model in settings.models}


def adapters_beside(model: str) -> list[str]:
    """Names of the adapters in the `adapters/` of a model's directory or Hub repository."""
    marker = "adapters/*/adapter_config.json"
    folder = model if Path(model).is_dir() else snapshot_download(model, allow_patterns=marker)
    return sorted(path.parent.name for path in Path(folder).glob(marker))
