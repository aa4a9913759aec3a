"""Best of several: which answers are drawn follows from the seed alone, and the best of them is kept."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline_dacse import candidates_dacse
from pipeline_dacse.candidates_dacse import best_candidate
from pipeline_dacse.engine_dacse import Enhancer
from tests.tiny import tiny_pipeline

RATE = 8000  # of the tiny codec, 8 samples a frame
CALL = {"sampling_rate": RATE, "seed": 3, "window_seconds": 0.008, "overlap_seconds": 0.002}


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def loudest(waveforms: np.ndarray, sampling_rate: int) -> np.ndarray:
    return np.square(waveforms).mean(1)


def the(place: int):
    """A choice that keeps the candidate of a place."""
    return lambda waveforms, sampling_rate: np.arange(len(waveforms)) == place


@pytest.fixture(scope="module")
def enhance():
    return tiny_pipeline()


def drawn_alone(enhance, waveform: np.ndarray, count: int) -> list[torch.Tensor]:
    """Codes of the candidates of a recording of one window, by the library's loop, one after the other."""
    prompt, rows = enhance.processor.build_prompt(enhance.processor.encode(waveform)), []
    for candidate in range(count):
        place = (3, 0, 0, 0) + ((candidate,) if candidate else ())
        state = np.random.SeedSequence(place).generate_state(1, np.uint64)[0].astype(np.int64)
        rows.append(enhance.model.generate(prompt, do_sample=True, row_seeds=torch.tensor([int(state)]))[0])
    return rows


@pytest.mark.parametrize("choose", ["confidence", loudest])
def test_the_best_is_that_of_a_naive_loop_over_candidates(enhance, choose):
    waveform, processor = noise(64), enhance.processor
    rows = drawn_alone(enhance, waveform, 5)
    waveforms = [processor.decode_codes(processor.clean_codes(row))[0] for row in rows]
    if choose == "confidence":
        scores = [float(enhance.model.token_probabilities(row[None]).log().nanmean()) for row in rows]
    else:
        scores = loudest(np.stack(waveforms), RATE)
    assert len({round(float(score), 6) for score in scores}) == 5
    out = enhance(waveform, candidates=5, choose=choose, **CALL)["audio"]
    np.testing.assert_array_equal(out, waveforms[int(np.argmax(scores))])


def test_the_first_candidate_is_what_one_candidate_gives(enhance):
    waveform = noise(200, channels=2)
    one = enhance(waveform, do_sample=True, **CALL)["audio"]
    np.testing.assert_array_equal(enhance(waveform, candidates=4, choose=the(0), **CALL)["audio"], one)
    np.testing.assert_array_equal(enhance(waveform, candidates=1, choose=the(0), do_sample=True, **CALL)["audio"], one)
    assert not np.array_equal(enhance(waveform, candidates=4, choose=the(1), **CALL)["audio"], one)


def test_what_is_kept_depends_on_no_batch_and_no_memory(enhance, monkeypatch):
    waveform = noise(200, channels=2)
    expected = enhance(waveform, candidates=4, choose=loudest, batch_size=1, **CALL)["audio"]
    np.testing.assert_array_equal(enhance(waveform, candidates=4, choose=loudest, **CALL)["audio"], expected)
    rows = []
    monkeypatch.setattr(Enhancer, "default_batch_size", lambda _: 3)  # rows that fit
    generate = enhance.model.generate
    monkeypatch.setattr(enhance.model, "generate", lambda **given: rows.append(len(out := generate(**given))) or out)
    np.testing.assert_array_equal(enhance(waveform, candidates=4, choose=loudest, **CALL)["audio"], expected)
    assert max(rows) <= 3


def test_threads_keep_what_each_keeps_alone(enhance):
    calls = [{"choose": loudest}, {"choose": "confidence"}, {"choose": the(2)}, {"candidates": 2}]
    calls = [CALL | {"candidates": 3} | call for call in calls]
    alone = [enhance(noise(150), **call)["audio"] for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: enhance(noise(150), **call)["audio"], calls * 3))
    for audio, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(audio, expected)


def test_regions_and_confidence_are_of_the_candidate_that_is_kept(enhance):
    waveform = noise(64)
    given = CALL | {"candidates": 4, "return_confidence": True, "regions": [(0.002, 0.004)]}
    each = [enhance(waveform, **given, choose=the(place)) for place in range(4)]
    free = each[0]["confidence"] < 1
    scores = [np.log(out["confidence"][free]).mean() for out in each]  # means of means: near enough for their order
    kept = enhance(waveform, **given)
    assert [out["audio"].tolist() for out in each].index(kept["audio"].tolist()) == int(np.argmax(scores))
    assert 0 < free.sum() < len(free)


def test_the_best_by_dnsmos_is_what_the_metric_says(enhance, monkeypatch):
    pytest.importorskip("speechmos")
    dnsmos = candidates_dacse._load_dnsmos()
    values = {}

    def measure(clip):
        values[clip["array"].tobytes()] = float(np.abs(clip["array"]).max())
        return {"dnsmos_ovrl": values[clip["array"].tobytes()]}, None

    assert "dnsmos_ovrl" in dnsmos.metric.about.scales
    monkeypatch.setattr(dnsmos.metric, "measure", measure)
    out = enhance(noise(64), candidates=4, choose="dnsmos", **CALL)["audio"]
    assert len(values) == 4 and np.abs(out).max() == max(values.values())


def test_a_choice_that_is_not_installed_or_gives_no_numbers_is_named(enhance, monkeypatch):
    candidates_dacse._load_dnsmos.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("speechmos", "evaluation_dacse.metrics.dnsmos"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "speechmos", None)
    with pytest.raises(ValueError, match=r"choose is 'dnsmos', .* is missing: pip install 'dacse\[eval\]'"):
        enhance(noise(64), candidates=2, choose="dnsmos", **CALL)
    with pytest.raises(ValueError, match=r"scores of shape \(2,\); give a number for each of 3 candidates"):
        enhance(noise(64), candidates=3, choose=lambda *_: [1, 2], **CALL)
    assert best_candidate([np.nan, np.nan], 2) == 0
