"""Means with bootstrap confidence intervals, and paired differences. Knows no audio."""

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def interval(values: np.ndarray) -> dict:
    """Mean of `values` (clip,) and its 95 % percentile bootstrap interval over clips; NaN values are left out.

    Returns:
        `{"mean", "low", "high", "count"}`; None for what cannot be told: all without clips, the interval with one.

    >>> interval(np.array([1.0, 3.0, np.nan]))["mean"], interval(np.array([2.0]))
    (2.0, {'mean': 2.0, 'low': None, 'high': None, 'count': 1})
    """
    values = np.sort(values[np.isfinite(values)])  # sorted: the order of the clips changes nothing
    count = len(values)
    if count < 2:
        return {"mean": float(values[0]) if count else None, "low": None, "high": None, "count": count}
    # how often each clip is drawn in a resample
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.quantile(weights @ values / count, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "count": count}
