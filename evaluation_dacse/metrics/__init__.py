"""The metrics, each a module `evaluate.load` takes by its path."""

import importlib
from pathlib import Path

METRICS = {
    "dnsmos": "Dnsmos",
    "plcmos": "Plcmos",
    "pesq": "Pesq",
    "stoi": "Stoi",
    "si_sdr": "SiSdr",
    "log_spectral_distance": "LogSpectralDistance",
    "mel_distance": "MelDistance",
    "speech_bert_score": "SpeechBertScore",
    "word_error_rate": "WordErrorRate",
    "speaker_similarity": "SpeakerSimilarity",
}
OFFLINE_METRICS = list(METRICS)[:7]  # what they need comes with their packages
MODEL_METRICS = list(METRICS)[7:]  # each listens with a model of transformers


def metric_path(name: str) -> str:
    """Path of a metric's module, for `evaluate.load`."""
    return str(Path(__file__).parent / f"{name}.py")


def metric_class(spec: str) -> type:
    """The class of a metric, see `load_metric`."""
    name = spec.partition(":")[0]
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"metric {name!r} needs the package {error.name!r}: pip install 'dacse[eval]'") from error
    return getattr(module, METRICS[name])


def load_metric(spec: str, device: str = "cpu"):
    """A metric by name, or by `NAME:MODEL` with the name or path of the model it listens with, on `device`.

    Raises:
        ValueError: unknown name.
        ImportError: a package the metric needs is missing; the message says how to install it.
    """
    name, _, model = spec.partition(":")
    options = {"device": device} if name in MODEL_METRICS else {}
    return metric_class(name)(**options, **({"model": model} if model else {}))
