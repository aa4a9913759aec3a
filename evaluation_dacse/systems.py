"""The systems that are compared, all behind one protocol: `(waveform, sampling_rate) -> (waveform, sampling_rate)`.

Waveforms are float32 (channel, sample). A system hears the noisy recording, but for those that show a bound of the
method: they say `hears = "clean"`. What this room knows of models, processors and pipelines stands here alone.
"""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .audio import load_audio, resample_channels
from .rivals import RIVALS, load_rival

BOUNDS = "noisy", "clean"  # what comes in comes out
CHECKPOINTS = "dacse", "generated", "codec"  # systems that a model's repository gives


class System(Protocol):
    """An enhancer."""

    hears: str  # "noisy" or "clean"

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        """Enhances a waveform (channel, sample); the rate that comes out is the system's own."""


def load_system(spec: str, device: str = "cpu") -> System:
    """A system by its name.

    Args:
        spec: `noisy`, `clean` or a name in `RIVALS`; `dacse:MODEL`, `generated:MODEL` and `codec:MODEL` take a path or
            Hub id (the embedded model when left out), `dacse:MODEL+ADAPTER` and `dacse+ADAPTER` an adapter too.
            `generated` is the model's own voice also where its configuration keeps the recording's. `folder:DIR` holds
            what a system wrote elsewhere, in files named as the noisy ones.
        device: where networks of torch run.

    Raises:
        ValueError: unknown name.
        ImportError: the system's package is not installed; the message says how to get it.
        OSError: its weights cannot be had.
    """
    name, model, adapter = split_spec(spec)
    if name == "folder":
        return Recordings(model)
    if name in CHECKPOINTS:
        return Codec(model, device) if name == "codec" else DacSe(model, adapter or None, device, name == "generated")
    if name in BOUNDS:
        return Untouched(name)
    if name not in RIVALS:
        known = ", ".join((*BOUNDS, *CHECKPOINTS, "folder:DIR", *RIVALS))
        raise ValueError(f"unknown system {name!r}; known are {known}")
    return load_rival(name, device)


def split_spec(spec: str) -> tuple[str, str, str]:
    """A system's name, what follows its colon (of a checkpoint the embedded one, if nothing does), and its adapter.

    >>> split_spec("dacse:org/dac-se1+dereverb"), split_spec("folder:a+b")
    (('dacse', 'org/dac-se1', 'dereverb'), ('folder', 'a+b', ''))
    """
    head, _, adapter = spec.partition("+") if spec.startswith(CHECKPOINTS) else (spec, "", "")
    name, _, model = head.partition(":")
    if name in CHECKPOINTS and not model:
        model = str(importlib.resources.files("dacse") / "tiny")
    return name, model, adapter


class Untouched:
    """What comes in comes out: the floor (noisy) and the ceiling (clean) of every table."""

    def __init__(self, hears: str):
        self.hears = hears

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        return waveform, sampling_rate


class DacSe:
    """A DAC-SE1 checkpoint, with or without an adapter; `generated_alone` takes nothing from the recording."""

    hears = "noisy"

    def __init__(self, model: str, adapter: str | None, device: str, generated_alone: bool = False):
        from transformers import AutoProcessor

        from modeling_dacse import DacSeConfig, DacSeForEnhancement
        from pipeline_dacse import AudioEnhancementPipeline
        from processing_dacse import DacSeProcessor

        # the pipeline finds the processor by its model
        AutoProcessor.register(DacSeConfig, DacSeProcessor, exist_ok=True)
        self.chosen = {"adapter": adapter} if adapter else {}  # else the one that the model may come with
        if generated_alone:
            self.chosen["keep_recording"] = False
        self.enhance = AudioEnhancementPipeline(model=DacSeForEnhancement.from_pretrained(model), device=device)

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        return self.enhance_many([(waveform, sampling_rate)])[0]

    def enhance_many(self, recordings: Sequence[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
        """Enhances (waveform, sampling_rate) recordings, their windows in one batch: the same outputs, sooner."""
        inputs = [{"array": waveform, "sampling_rate": rate} for waveform, rate in recordings]
        outputs = self.enhance(inputs, batch_size=len(inputs), **self.chosen)
        return [(np.atleast_2d(output["audio"]), output["sampling_rate"]) for output in outputs]


class Codec:
    """The codec of a checkpoint on the clean recording: what no system that answers in its codes can pass."""

    hears = "clean"

    def __init__(self, model: str, device: str):
        from processing_dacse import DacSeProcessor

        self.processor = DacSeProcessor.from_pretrained(model)
        self.processor.audio_tokenizer.to(device)

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        rate = self.processor.sampling_rate
        waveform = resample_channels(waveform, sampling_rate, rate)
        return self.processor.decode_codes(self.processor.encode(waveform))[:, : waveform.shape[1]], rate


class Recordings:
    """What a system wrote elsewhere: files named as the noisy recordings. It is asked for by name."""

    hears = "noisy"

    def __init__(self, folder: str):
        self.files = {path.stem: path for path in Path(folder).iterdir()}

    def read(self, name: str) -> tuple[np.ndarray, int]:
        """The recording (channel, sample) of a clip and its rate."""
        if name not in self.files:
            raise FileNotFoundError(f"no recording named {name!r} among the {len(self.files)} of this system")
        return load_audio(self.files[name])
