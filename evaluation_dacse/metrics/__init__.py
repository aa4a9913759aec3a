"""The metrics: a file of this folder each, named after the metric, that `evaluate.load` takes by its path.

Of the file `signal_level.py` the class is `SignalLevel`, a `WaveformMetric`. There is no other list of them.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..waveform_metric import Metric, WaveformMetric


class MetricTable(Mapping):
    """What every metric says of itself, by name: scales, rate, whether it needs a reference or a model.

    The names are those of the files; a file is imported when its row is looked up.
    """

    def __init__(self):
        self.names = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> "Metric":
        if name not in self:
            raise KeyError(name)
        return metric_class(name).about


METRICS = MetricTable()


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


def metric_class(name: str) -> "type[WaveformMetric]":
    """The class in the file of a metric.

    Raises:
        ImportError: a package the metric needs is missing; the message says how to install it.
    """
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"metric {name!r} needs the package {error.name!r}: pip install 'dacse[eval]'") from error
    return getattr(module, "".join(map(str.capitalize, name.split("_"))))


def load_metric(spec: str, device: str = "cpu") -> "WaveformMetric":
    """A metric by name, or by `NAME:MODEL` with the name or path of the model it listens with, on `device`.

    Raises:
        ValueError: unknown name.
        ImportError: a package the metric needs is missing; the message says how to install it.
    """
    name, model = split_metric(spec)
    options = {"device": device} if METRICS[name].model else {}
    return metric_class(name)(**options, **({"model": model} if model else {}))


def is_at_hand(name: str) -> bool:
    """Whether a metric needs no model, or its model lies in this machine's cache of the Hub."""
    from huggingface_hub import try_to_load_from_cache

    metric = METRICS[name]
    return metric.model is None or isinstance(try_to_load_from_cache(metric.model, metric.model_file), str)


def metrics_at_hand() -> list[str]:
    """The metrics that this machine can compute as it is."""
    return [name for name in METRICS if is_at_hand(name)]
