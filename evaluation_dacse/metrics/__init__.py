"""The metrics, each a module `evaluate.load` takes by its path."""

import importlib
from pathlib import Path

from .table import METRICS


def metric_path(name: str) -> str:
    """Path of a metric's module, for `evaluate.load`."""
    return str(Path(__file__).parent / f"{name}.py")


def split_metric(spec: str) -> tuple[str, str | None]:
    """Name of a metric, and the model it is to listen with, if one is named.

    >>> split_metric("word_error_rate:openai/whisper-tiny"), split_metric("pesq")
    (('word_error_rate', 'openai/whisper-tiny'), ('pesq', None))

    Raises:
        ValueError: unknown name, or a model for a metric that needs none.
    """
    name, _, model = spec.partition(":")
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    if model and not METRICS[name].model:
        raise ValueError(f"metric {spec!r}: {name} listens with no model; give {name} alone")
    return name, model or None


def load_metric(spec: str, device: str = "cpu"):
    """A metric by name, or by `NAME:MODEL` with the name or path of the model it listens with, on `device`.

    Raises:
        ValueError: unknown name.
        ImportError: a package the metric needs is missing; the message says how to install it.
    """
    name, model = split_metric(spec)
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"metric {name!r} needs the package {error.name!r}: pip install 'dacse[eval]'") from error
    options = {"device": device} if METRICS[name].model else {}
    return getattr(module, METRICS[name].class_name)(**options, **({"model": model} if model else {}))


def is_at_hand(name: str) -> bool:
    """Whether a metric needs no model, or its model lies in this machine's cache of the Hub."""
    from huggingface_hub import try_to_load_from_cache

    metric = METRICS[name]
    return metric.model is None or isinstance(try_to_load_from_cache(metric.model, metric.model_file), str)


def metrics_at_hand() -> list[str]:
    """The metrics that this machine can compute as it is."""
    return [name for name in METRICS if is_at_hand(name)]
