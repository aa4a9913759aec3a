"""Which of several answers to a window is the best, by how they sound. Knows waveforms: no model, codec or token."""

import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np

Scorer = Callable[[np.ndarray, int], Sequence[float]]  # waveforms (candidate, sample), Hz -> (candidate,)


def scorer_of(choose: str | Scorer) -> Scorer | None:
    """The function that an option `choose` stands for; None for the model's own confidence.

    Raises:
        ValueError: If it is "dnsmos", and what computes it is not installed.
    """
    if choose == "dnsmos":
        return _load_dnsmos()
    return choose if callable(choose) else None


def best_candidate(scores: Sequence[float], count: int) -> int:
    """The place of the highest score, of equal ones the first; nan is below all others.

    >>> best_candidate([1.0, float("nan"), 3.0, 3.0], 4)
    2

    Raises:
        ValueError: If there are not `count` scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (count,):
        raise ValueError(f"choose gave scores of shape {values.shape}; give a number for each of {count} candidates")
    return int(np.where(np.isnan(values), -np.inf, values).argmax())


class Dnsmos:
    """Overall quality of waveforms by DNSMOS P.835, for any number of threads."""

    def __init__(self, metric):
        self.metric, self.lock = metric, threading.Lock()

    def __call__(self, waveforms: np.ndarray, sampling_rate: int) -> list[float]:
        clips = ({"array": waveform, "sampling_rate": sampling_rate} for waveform in waveforms)
        with self.lock:
            return [self.metric.measure(clip)[0]["dnsmos_ovrl"] for clip in clips]


@functools.cache
def _load_dnsmos() -> Dnsmos:
    try:
        from evaluation_dacse.metrics import load_metric

        return Dnsmos(load_metric("dnsmos"))
    except ImportError as error:
        raise ValueError(
            f"choose is 'dnsmos', for which the package {error.name!r} is missing: pip install 'dacse[eval]'"
        ) from error
