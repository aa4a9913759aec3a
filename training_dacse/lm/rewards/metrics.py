"""Metrics as rewards, in processes of their own. Knows no metric: how they are loaded is handed in."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

import numpy as np

Clip = dict[str, Any]  # "array": float32 (sample,), "sampling_rate": Hz


class Metric(Protocol):
    """What is asked of a metric: those of `evaluation_dacse.metrics` are such."""

    about: Any  # with `scales`: by the name of a score, with `higher_is_better`

    def measure(self, prediction: Clip, reference: Clip | None) -> tuple[dict[str, float], str | None]:
        """Scores by name, and why there are none."""


class MetricRewards:
    """A `Reward` made of metrics; what is better when lower is negated. Close it, or use it in a `with`.

    Args:
        load: a metric by its name; a function of a module, so that processes can be sent it.
        metrics: names for `load`.
        processes: that share the clips; 0 scores them in this one.
    """

    def __init__(self, load: Callable[[str], Metric], metrics: Sequence[str], processes: int = 0):
        self.measure = functools.partial(measure_clip, load, tuple(metrics))
        self.pool = None
        if processes:
            self.pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), use_one_core)

    def __call__(
        self, waveforms: list[np.ndarray], references: list[np.ndarray] | None, sampling_rate: int
    ) -> dict[str, np.ndarray]:
        clips = [{"array": waveform, "sampling_rate": sampling_rate} for waveform in waveforms]
        targets = [None] * len(clips)
        if references is not None:
            targets = [{"array": reference, "sampling_rate": sampling_rate} for reference in references]
        rows = list((self.pool.map if self.pool else map)(self.measure, clips, targets))
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def close(self) -> None:
        """Ends the processes."""
        if self.pool:
            self.pool.shutdown()

    def __enter__(self) -> "MetricRewards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def use_one_core() -> None:
    """For a new process, before it loads a metric: processes share the work, threads would fight over the cores."""
    os.environ["OMP_NUM_THREADS"] = "1"


load_once = functools.cache(lambda load, name: load(name))


def measure_clip(load: Callable[[str], Metric], names: Sequence[str], clip: Clip, reference: Clip | None) -> dict:
    """Scores of a clip by some metrics, the higher the better."""
    scores = {}
    for name in names:
        metric = load_once(load, name)
        for score, value in metric.measure(clip, reference)[0].items():
            scores[score] = value if metric.about.scales[score].higher_is_better else -value
    return scores
