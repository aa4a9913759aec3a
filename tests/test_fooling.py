"""Nobody climbs in the table by muting, shifting, scaling or clipping clips, or by giving one clip for another."""

import functools
from dataclasses import asdict

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation_dacse.alignment import align
from evaluation_dacse.metrics import METRICS, load_metric
from evaluation_dacse.statistics import places
from evaluation_dacse.summary import summarize
from tests.test_metrics import CLEAN, RATE

CLIPS = 4
LEVELS = {"light": 0.01, "middle": 0.04, "heavy": 0.12}  # of the noise that a system leaves; least in the first clip
COMPARING = ["pesq", "stoi", "si_sdr", "log_spectral_distance", "mel_distance"]
LISTENING = ["dnsmos", "plcmos"]  # without a reference


@functools.cache
def clip(number: int) -> np.ndarray:
    """A second of speech, with room before and after for delays."""
    return np.pad(CLEAN[number * RATE // 3 :][:RATE], RATE // 8)


@functools.cache
def heard(number: int) -> np.ndarray:
    """The noisy recording."""
    return clip(number) + noise(number, 0.15)


def noise(number: int, level: float) -> np.ndarray:
    noise = np.random.default_rng(number).standard_normal(len(clip(number))).astype(np.float32)
    return level * (1 + number) * clip(number).std() * noise


@functools.cache
def honest(system: str) -> tuple[np.ndarray, ...]:
    return tuple(clip(number) + noise(number, LEVELS[system]) for number in range(CLIPS))


metric = functools.cache(load_metric)


@functools.cache
def scores_of(system: str, names: tuple[str, ...]) -> tuple[dict, ...]:
    return tuple(score(number, output, names) for number, output in enumerate(honest(system)))


def score(number: int, output: np.ndarray, names: tuple[str, ...]) -> dict:
    """The scores of one output, as a run finds them."""
    aligned, _, _ = align(output.astype(np.float32), RATE, heard(number), clip(number), RATE)
    pair = ({"array": np.clip(wave, -1, 1), "sampling_rate": RATE} for wave in (aligned, clip(number)))
    prediction, reference = pair
    return {key: value for name in names for key, value in metric(name).measure(prediction, reference)[0].items()}


def placed(system: str, outputs: dict[int, np.ndarray], names: list[str]) -> dict[str, int]:
    """Places of `system` by every score once some of its outputs are others."""
    rows = []
    for other in LEVELS:
        for number, own in enumerate(scores_of(other, tuple(names))):
            tampered = other == system and number in outputs
            values = score(number, outputs[number], tuple(names)) if tampered else own
            rows.append({"system": other, "clip": str(number), "task": "all", "speaker": str(number), **values})
            rows[-1].update(reasons="{}", seconds=1.0, work_seconds=1.0, peak_memory_mb=1.0)
    scales = {key: scale for name in names for key, scale in METRICS[name].scales.items()}
    summary = summarize(pandas.DataFrame(rows), {key: asdict(scale) for key, scale in scales.items()})
    return {
        key: places({other: summary[other]["overall"][key] for other in LEVELS}, scale.higher_is_better)[system]
        for key, scale in scales.items()
    }


def check(system: str, numbers, tamper, names: list[str]) -> None:
    before = placed(system, {}, names)
    after = placed(system, {number: tamper(number, honest(system)[number]) for number in numbers}, names)
    assert all(after[key] >= before[key] for key in before), (before, after)


some_clips = st.sets(st.integers(0, CLIPS - 1), min_size=1)
systems = st.sampled_from(list(LEVELS))
thorough = settings(max_examples=8, deadline=None, derandomize=True)


def test_the_honest_systems_stand_in_the_order_of_their_noise():
    for place, system in enumerate(LEVELS, start=1):
        assert set(placed(system, {}, COMPARING).values()) == {place}


@thorough
@given(systems, some_clips, st.sampled_from([0.0, 1e-5, 1e-4]))
def test_muting_helps_nobody(system, numbers, gain):
    """Not even where scores without a reference like faint noise better than speech in noise."""
    check(system, numbers, lambda number, output: gain * noise(number, 1.0), COMPARING + LISTENING)


@thorough
@given(systems, some_clips, st.floats(0.05, 20))
def test_scaling_changes_nothing(system, numbers, gain):
    before = placed(system, {}, COMPARING + LISTENING)
    outputs = {number: gain * honest(system)[number] for number in numbers}
    assert placed(system, outputs, COMPARING + LISTENING) == before


@thorough
@given(systems, some_clips, st.integers(-RATE // 3, RATE // 3))
def test_shifting_helps_nobody(system, numbers, delay):
    check(system, numbers, lambda number, output: np.roll(output, delay), COMPARING)


@thorough
@given(systems, some_clips, st.floats(0.01, 1))
def test_clipping_helps_nobody(system, numbers, share):
    def tamper(number, output):
        return np.clip(output, -share * np.abs(output).max(), share * np.abs(output).max())

    check(system, numbers, tamper, COMPARING)


@thorough
@given(systems, some_clips, st.integers(0, CLIPS - 1))
def test_giving_one_clip_for_another_helps_nobody(system, numbers, easy):
    check(system, numbers, lambda number, output: honest(system)[easy], COMPARING)


@pytest.mark.parametrize("system", LEVELS)
def test_a_clip_less_helps_nobody(system):
    """An output that is no sound at all counts as silence: every clip counts for everybody."""
    check(system, [CLIPS - 1], lambda number, output: np.zeros_like(output), COMPARING + LISTENING)
