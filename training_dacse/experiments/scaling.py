"""How a loss falls with size: a learning rate for each size, and a power law. Knows numbers only."""

from collections.abc import Iterable, Mapping

import numpy as np


def best_rate(losses: Mapping[float, float]) -> float:
    """The learning rate of the lowest loss.

    >>> best_rate({1e-3: 2.0, 2e-3: 1.5, 4e-3: 1.8})
    0.002
    """
    return min(losses, key=losses.__getitem__)


def fit_power_law(parameters: Iterable[float], losses: Iterable[float]) -> tuple[float, float]:
    """`scale` and `exponent` of `loss = scale * parameters ** -exponent`, by least squares of the logarithms.

    The form without an irreducible loss (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1): three sizes cannot tell more.

    >>> scale, exponent = fit_power_law([1e3, 1e4, 1e5], [8.0, 4.0, 2.0])
    >>> round(scale), round(exponent, 3)
    (64, 0.301)
    """
    slope, intercept = np.polyfit(np.log(list(parameters)), np.log(list(losses)), 1)
    return float(np.exp(intercept)), float(-slope)
