"""How often do intervals of 95 % hold the mean? Clips of few speakers, and a listening test, simulated.

    python benchmarks/interval_coverage.py

Rows are ways to make an interval, columns what is drawn: scores of clips, half of whose variance is the speaker's.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap, norm
from scipy.stats import t as student
from tabulate import tabulate

from evaluation_dacse.statistics import interval

EVEN, UNEVEN = [5] * 8, [47, 43, 34, 18, 18, 16, 9, 9, 8, 7, 4, 3, 3, 2, 1, 1]  # clips of each speaker
SYSTEMS = 7


def normal(rng: np.random.Generator, sizes: list[int]) -> np.ndarray:
    """Scores (clip,) with mean 0."""
    return np.repeat(rng.normal(size=len(sizes)), sizes) + rng.normal(size=sum(sizes))


def bounded(rng: np.random.Generator, sizes: list[int]) -> np.ndarray:
    """Scores (clip,) below 1 and skewed, as STOI is, less their mean."""
    speakers = np.repeat(rng.beta(8, 2, len(sizes)), sizes)
    return rng.beta(20 * speakers, 20 * (1 - speakers)) - 0.8


CASES = {
    "8 speakers x 5": (normal, EVEN),
    "8 x 5, skewed": (bounded, EVEN),
    "16 speakers, uneven": (normal, UNEVEN),
    "16, uneven, skewed": (bounded, UNEVEN),
    "10 independent clips": (normal, [1] * 10),
    "40 independent clips": (normal, [1] * 40),
}


def resampled(method: str, clustered: bool = True, expanded: bool = False) -> Callable:
    """An interval by scipy's bootstrap; `expanded` makes it as wide as Student's (Hesterberg 2015)."""

    def ends(values: np.ndarray, speakers: np.ndarray, level: float = 0.95) -> tuple[float, float]:
        labels = speakers if clustered else np.arange(len(values))
        sums, counts = np.bincount(labels, values), np.bincount(labels)
        number = len(counts)
        if expanded:
            width = np.sqrt(number / (number - 1)) * student.ppf((1 + level) / 2, number - 1)
            level = 1 - 2 * norm.sf(width)

        def mean(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
            return sums[drawn].sum(axis) / counts[drawn].sum(axis)

        options = {"n_resamples": 2000, "method": method, "confidence_level": level, "vectorized": True, "rng": 0}
        found = bootstrap((np.arange(number),), mean, **options).confidence_interval
        return found.low, found.high

    return ends


def ours(values: np.ndarray, speakers: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """`evaluation_dacse.statistics.interval`."""
    found = interval(values, speakers, level=level)
    return found["low"], found["high"]


WAYS = {
    "percentile bootstrap over clips": resampled("percentile", clustered=False),
    "percentile bootstrap over speakers": resampled("percentile"),
    "BCa bootstrap over speakers": resampled("BCa"),
    "BCa over speakers, expanded": resampled("BCa", expanded=True),
    "jackknife over speakers, Student's t (ours)": ours,
}


def covered(way: Callable, draw: Callable, sizes: list[int], draws: int) -> float:
    """Share of draws whose interval holds 0."""
    rng, speakers = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    ends = [way(draw(rng, sizes), speakers) for _ in range(draws)]
    return float(np.mean([low <= 0 <= high for low, high in ends]))


def covered_together(way: Callable, draws: int) -> float:
    """Share of draws in which the intervals of all systems hold 0, each at Bonferroni's level."""
    rng, speakers = np.random.default_rng(0), np.repeat(np.arange(len(EVEN)), EVEN)
    level = 1 - 0.05 / SYSTEMS
    hits = [all(low <= 0 <= high for low, high in (way(normal(rng, EVEN), speakers, level) for _ in range(SYSTEMS)))
            for _ in range(draws)]  # fmt: skip
    return float(np.mean(hits))


def rated(rng: np.random.Generator, assessors: int, trials: int, both: bool) -> bool:
    """Whether the interval of a MUSHRA score holds the mean: assessors, trials and ratings vary by 8 points each."""
    errors = rng.normal(0, 8, assessors)[:, None] + rng.normal(0, 8, trials) + rng.normal(0, 8, (assessors, trials))
    labels = [np.repeat(np.arange(assessors), trials), np.tile(np.arange(trials), assessors)]
    found = interval(errors.ravel(), *(labels if both else []))
    return found["low"] <= 0 <= found["high"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    rows = [
        [name, *(covered(way, *case, draws) for case in CASES.values()), covered_together(way, draws // 4)]
        for name, way in WAYS.items()
    ]
    header = ["interval of 95 %", *CASES, f"8 x 5, {SYSTEMS} systems together"]
    print(tabulate(rows, header, tablefmt="github", floatfmt=".3f"))
    for factors, both in (("ratings pooled", False), ("assessors and trials as factors", True)):
        share = np.mean([rated(np.random.default_rng(seed), 10, 12, both) for seed in range(draws)])
        print(f"\n10 assessors x 12 trials, {factors}: {share:.3f}")
