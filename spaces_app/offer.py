"""What the Space offers and what it refuses: settings, models, adapters, recordings. Knows no page.

Settings come from environment variables, which is what a Space has ("Settings", "Variables").
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from huggingface_hub import snapshot_download
from transformers import pipeline

SILENCE = 2**-15  # a peak below one step of 16 bits
MAX_CHANNELS = 2  # what a browser plays without mixing
BASE_MODEL = "none"  # the choice of no adapter
READABLE = "WAV, FLAC, OGG, Opus or MP3"


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
    adapter: str
    strength: float
    do_sample: bool
    temperature: float
    seed: int

    def parameters(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        parameters = {"strength": self.strength, "adapter": None if self.adapter == BASE_MODEL else self.adapter}
        sampling = {"do_sample": True, "temperature": self.temperature, "seed": int(self.seed)}
        return parameters | sampling if self.do_sample else parameters


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


def check_recording(path: str | None, settings: Settings) -> None:
    """Raises ValueError, in words for whoever uploaded it, where a file is none, no audio, too long or too large."""
    if path is None:
        raise ValueError("There is no recording yet. Upload one, record one, or pick an example.")
    name, size = Path(path).name, Path(path).stat().st_size
    if size > settings.max_megabytes * 1e6:
        raise ValueError(f"{name} has {size / 1e6:.0f} MB; this demo takes up to {settings.max_megabytes:g} MB.")
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:
        raise ValueError(f"{name} is not audio this demo can read. Save it as {READABLE} and try again.") from None
    if info.frames == 0:
        raise ValueError(f"{name} holds no audio: 0 samples.")
    if info.duration > settings.max_minutes * 60:
        raise ValueError(
            f"{name} lasts {info.duration / 60:.1f} minutes; this demo takes up to {settings.max_minutes:g}. "
            "Cut it, or run `dacse enhance` on your own machine, which takes any length."
        )
    if info.channels > MAX_CHANNELS:
        raise ValueError(f"{name} has {info.channels} channels; this demo takes mono and stereo.")


def read_recording(path: str) -> tuple[np.ndarray, int]:
    """A file as float32 (channel, sample) and its rate in Hz.

    Raises:
        ValueError: it breaks off, holds values that are no numbers, or is silent.
    """
    name = Path(path).name
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise ValueError(f"{name} is damaged. Save it again as {READABLE} and try again.") from None
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds values that are no numbers (NaN or infinite). Save it again and try again.")
    if np.abs(samples).max(initial=0) < SILENCE:
        raise ValueError(f"{name} is silent. Check the microphone, then record again.")
    return samples.T, rate
