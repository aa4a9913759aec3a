"""Means with intervals that hold where clips share their speakers, paired differences, places. Knows no audio.

Clips of one speaker are alike, as are the ratings of one assessor: what counts is the number of speakers. Intervals
come from leaving out one cluster at a time (the jackknife) and from Student's t. `benchmarks/interval_coverage.py`
lays them beside bootstraps: with few clusters those hold the mean less often than they promise.
"""

from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95


def interval(
    values: np.ndarray, *factors: np.ndarray, level: float = LEVEL, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> dict:
    """Mean of `values` (clip,) and its confidence interval; NaN values are left out.

    Args:
        values: one for each clip.
        factors: labels (clip,) of what clips have in common. None: clips are independent. One: those of a label are
            alike. Two: both at once, such as the assessor and the trial of a rating.
        level: probability with which the interval is to hold the mean of the population.
        bounds: ends of the scale, beyond which no mean can lie.

    Returns:
        `{"mean", "low", "high", "count"}`; None for what cannot be told: all without clips, the interval where a
        factor has fewer than two labels, or one label nearly all clips.

    >>> interval(np.array([1.0, 3.0, np.nan]))["mean"], interval(np.array([2.0]))
    (2.0, {'mean': 2.0, 'low': None, 'high': None, 'count': 1})
    """
    values, factors = finite(values, factors)
    if not len(values):
        return {"mean": None, "low": None, "high": None, "count": 0}
    mean, (variance, freedom) = float(values.mean()), spread(values, factors)
    if freedom < 1:
        return {"mean": mean, "low": None, "high": None, "count": len(values)}
    reach = float(student.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    low, high = max(mean - reach, bounds[0]), min(mean + reach, bounds[1])
    return {"mean": mean, "low": low, "high": high, "count": len(values)}


def compare(differences: Mapping[str, np.ndarray], *factors: np.ndarray) -> dict[str, dict]:
    """Intervals of the paired differences (clip,) of several systems from another, corrected for their number.

    Returns:
        for each system what `interval` returns and `"p"`. The intervals hold for all systems together (Bonferroni);
        `p` is the probability of so large a mean difference by chance, adjusted by Holm (1979), None where it cannot
        be told.
    """
    level = 1 - (1 - LEVEL) / max(1, len(differences))
    found = {system: interval(values, *factors, level=level) for system, values in differences.items()}
    known = [system for system, item in found.items() if item["low"] is not None]
    adjusted = holm({system: chance_of(differences[system], factors) for system in known})
    return {system: {**item, "p": adjusted.get(system)} for system, item in found.items()}


def places(scores: Mapping[str, dict], higher_is_better: bool) -> dict[str, int]:
    """Place of each system by the mean of its `interval`, the best first; equal means share one.

    Systems that have values for fewer clips than another are not placed: they may have left out the hard ones.

    >>> scores = {"a": {"mean": 0.8, "count": 4}, "b": {"mean": 0.7, "count": 4}, "c": {"mean": 0.9, "count": 2}}
    >>> places(scores, higher_is_better=True)
    {'a': 1, 'b': 2}
    """
    most = max((score["count"] for score in scores.values()), default=0)
    sign = 1 if higher_is_better else -1
    means = {system: sign * score["mean"] for system, score in scores.items() if score["count"] == most > 0}
    return {system: 1 + sum(other > mean for other in means.values()) for system, mean in means.items()}


def finite(values: np.ndarray, factors: tuple) -> tuple[np.ndarray, list[np.ndarray]]:
    """The values that are numbers, in ascending order (the order of the clips changes nothing), and their labels."""
    values = np.asarray(values, dtype=float)
    kept = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]  # NaN is sorted last
    return values[kept], [np.unique(np.asarray(factor)[kept], return_inverse=True)[1] for factor in factors]


def spread(values: np.ndarray, factors: list[np.ndarray]) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom.

    Of two factors the variances add up, less that of their cells, which both contain (Cameron, Gelbach and Miller
    2011); the degrees of freedom are Satterthwaite's.
    """
    if len(factors) < 2:
        return jackknife(values, *(factors or [np.arange(len(values))]))
    first, second = factors
    parts = [jackknife(values, factor) for factor in factors]
    if min(freedom for _, freedom in parts) < 1:
        return 0.0, 0.0
    cells = jackknife(values, first * (second.max() + 1) + second)
    variance = max(sum(part for part, _ in parts) - cells[0], *(part for part, _ in parts))
    if variance == 0:
        return 0.0, min(freedom for _, freedom in parts)
    return variance, variance**2 / sum(part**2 / freedom for part, freedom in parts)


def jackknife(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Variance of the mean from leaving out one cluster at a time, and its degrees of freedom.

    Those are one less than the clusters, counted by their weight (Carter, Schnepel and Steigerwald 2017): one speaker
    with most of the clips and ten with one each tell about as much as two.
    """
    _, cluster, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return 0.0, 0.0
    sums = np.bincount(cluster, values)
    without = (sums.sum() - sums) / (len(values) - counts)
    variance = (len(counts) - 1) / len(counts) * ((without - values.mean()) ** 2).sum()
    return float(variance), float(len(values) ** 2 / (counts**2).sum() - 1)


def chance_of(values: np.ndarray, factors: tuple) -> float:
    """Probability of a mean as far from 0 as that of `values`, if it were 0 (two-sided)."""
    values, labels = finite(values, factors)
    variance, freedom = spread(values, labels)
    if variance == 0:
        return float(values.mean() == 0)
    return float(2 * student.sf(abs(values.mean()) / np.sqrt(variance), freedom))


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """Probabilities adjusted for their number, step by step from the smallest (Holm 1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, largest = {}, 0.0
    for step, (name, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        largest = min(1.0, max(largest, (len(chances) - step) * chance))
        adjusted[name] = largest
    return adjusted
