"""Intervals are what scipy's bootstrap says."""

import numpy as np
import pytest
import scipy.stats

from evaluation_dacse.statistics import interval


def test_interval_is_the_percentile_bootstrap():
    values = np.random.default_rng(0).normal(3, 1, size=50)
    found = interval(values)
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=0)
    assert found["mean"] == pytest.approx(values.mean())
    # two random draws of resamples; the ends of the interval vary by a few hundredths of its width of 0.5
    assert found["low"] == pytest.approx(reference.confidence_interval.low, abs=0.03)
    assert found["high"] == pytest.approx(reference.confidence_interval.high, abs=0.03)
    assert interval(values[::-1]) == found
    assert interval(np.array([np.nan]))["mean"] is None
