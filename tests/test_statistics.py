"""Intervals hold the mean as often as they say, also with few speakers; differences are corrected for their number."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from evaluation_dacse.statistics import compare, interval, places

DRAWS = 1500
SPEAKERS = {"even": [5] * 8, "uneven": [20, 18, 14, 8, 8, 7, 4, 4, 3, 3, 2, 2, 1, 1]}


def clips_of_speakers(seed: int, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of mean 0, half of whose variance is the speaker's, and the speakers."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=len(sizes))[speakers] + rng.normal(size=len(speakers)), speakers


def share(hits) -> float:
    return float(np.mean(list(hits)))


def holds(found: dict, mean: float = 0.0) -> bool:
    return found["low"] <= mean <= found["high"]


@pytest.mark.parametrize("sizes", SPEAKERS)
def test_intervals_hold_the_mean_of_clips_of_few_speakers(sizes):
    draws = [clips_of_speakers(seed, SPEAKERS[sizes]) for seed in range(DRAWS)]
    assert 0.93 < share(holds(interval(*draw)) for draw in draws) < 0.97
    assert share(holds(interval(values)) for values, _ in draws) < 0.8  # as if clips of a speaker were independent


@pytest.mark.parametrize("clips", [5, 10, 40])
def test_intervals_hold_the_mean_of_independent_clips(clips):
    rng = np.random.default_rng(0)
    assert 0.93 < share(holds(interval(rng.normal(size=clips))) for _ in range(DRAWS)) < 0.97


def test_intervals_hold_the_mean_of_a_listening_test():
    """10 assessors x 12 trials: both vary, and so do the ratings."""
    rng, hits = np.random.default_rng(0), []
    assessors, trials = np.repeat(np.arange(10), 12), np.tile(np.arange(12), 10)
    for _ in range(DRAWS):
        ratings = 60 + rng.normal(0, 8, 10)[assessors] + rng.normal(0, 8, 12)[trials] + rng.normal(0, 8, 120)
        hits.append(holds(interval(ratings, assessors, trials), 60))
    assert 0.93 < share(hits) < 0.97


def test_differences_of_seven_systems_hold_together():
    hits = []
    for seed in range(600):
        drawn = [clips_of_speakers(7 * seed + system, SPEAKERS["even"]) for system in range(7)]
        found = compare({str(number): values for number, (values, _) in enumerate(drawn)}, drawn[0][1])
        hits.append(all(holds(item) for item in found.values()))
        # Holm's test rejects what the wider intervals of Bonferroni exclude, and perhaps more
        assert all(item["p"] < 0.05 for item in found.values() if not holds(item))
    assert 0.93 < share(hits) < 0.98


def test_independent_clips_are_students_t():
    values = np.random.default_rng(0).normal(3, 1, size=50)
    found = interval(values)
    low, high = scipy.stats.t.interval(0.95, 49, values.mean(), scipy.stats.sem(values))
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((values.mean(), low, high))
    test = scipy.stats.ttest_1samp(values - 2.8, 0)
    assert compare({"ours": values - 2.8})["ours"]["p"] == pytest.approx(test.pvalue)


def test_even_clusters_are_their_means():
    values, speakers = clips_of_speakers(0, [5] * 8)
    found, means = interval(values, speakers), interval(values.reshape(8, 5).mean(1))
    assert (found["low"], found["high"]) == pytest.approx((means["low"], means["high"]))


def test_what_cannot_be_told_is_none():
    assert interval(np.array([np.nan]))["mean"] is None
    for values, speakers in (([1.0, 2.0], ["a", "a"]), ([1.0] * 30 + [2.0], ["a"] * 30 + ["b"])):
        found = interval(np.array(values), np.array(speakers))
        assert found["mean"] is not None and found["low"] is None
        assert compare({"ours": np.array(values)}, np.array(speakers))["ours"]["p"] is None
    same = interval(np.array([2.0, 2.0, 2.0]))
    assert same["low"] == same["high"] == 2.0 and compare({"ours": np.full(3, 2.0)})["ours"]["p"] == 0.0


@given(st.lists(st.tuples(st.floats(-9, 9), st.sampled_from("abcd")), min_size=2, max_size=30), st.randoms())
def test_the_order_of_the_clips_changes_nothing(clips, random):
    def found():
        values, speakers = zip(*clips, strict=True)
        return interval(np.array(values), np.array(speakers))

    before = found()
    random.shuffle(clips)
    assert found() == pytest.approx(before, nan_ok=True)


def test_more_systems_need_larger_differences():
    values = np.random.default_rng(0).normal(0.5, 1, 20)
    alone, among = compare({"a": values})["a"], compare({"a": values, "b": values[::-1] - 0.5, "c": -values})["a"]
    assert among["mean"] == alone["mean"] and among["low"] < alone["low"] and among["p"] > alone["p"]


def test_who_left_out_clips_is_not_placed():
    scores = {
        "honest": {"mean": 0.79, "count": 4},
        "mutes": {"mean": 0.99, "count": 2},
        "other": {"mean": 0.79, "count": 4},
    }
    assert places(scores, higher_is_better=True) == places(scores, False) == {"honest": 1, "other": 1}
    assert places({"a": {"mean": None, "count": 0}}, True) == {}
