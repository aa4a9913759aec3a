"""Options of a call: what is plain is accepted, what is not is named with its value and a remedy."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from pipeline_dacse.options_dacse import EnhanceOptions, Own, check_regions


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"strength": None}, ("strength", 1.0)),
        ({"strength": "0.5"}, ("strength", 0.5)),
        ({"strength": np.float32(0.25)}, ("strength", 0.25)),
        ({"strength": np.int64(1)}, ("strength", 1.0)),
        ({"output_sampling_rate": np.int64(16000)}, ("output_sampling_rate", 16000)),
        ({"output_sampling_rate": "16000"}, ("output_sampling_rate", 16000)),
        ({"output_sampling_rate": 16000.0}, ("output_sampling_rate", 16000)),
        ({"output_sampling_rate": "input"}, ("output_sampling_rate", "input")),
        ({"sampling_rate": "44100"}, ("sampling_rate", 44100)),
        ({"window_seconds": np.array(2.0)}, ("window_seconds", 2.0)),
        ({"seed": -1}, ("seed", -1)),
        ({"seed": 2**64 - 1}, ("seed", 2**64 - 1)),
        ({"seed": np.uint64(2**63)}, ("seed", 2**63)),
        ({"batch_size": np.int32(3)}, ("batch_size", 3)),
        ({"keep_recording": np.True_}, ("keep_recording", True)),
        ({"return_confidence": None}, ("return_confidence", False)),
        ({"minimum_risk": 0}, ("minimum_risk", False)),
        ({"regions": np.array([[1.0, 2.0]])}, ("regions", [(1.0, 2.0)])),
        ({"regions": []}, ("regions", [])),
        ({"adapter": Path("mine")}, ("adapter", Path("mine"))),
        ({"candidates": np.int64(8)}, ("candidates", 8)),
        ({"candidates": None}, ("candidates", 1)),
        ({"choose": max}, ("choose", max)),
        ({}, ("adapter", Own.ADAPTERS)),
    ],
    ids=str,
)
def test_what_is_plain_is_accepted(given, expected):
    assert getattr(EnhanceOptions(**given), expected[0]) == expected[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": 80}, r"strength is 80; give a number from 0 \(the input\) to 1"),
        ({"strength": True}, "strength is True; give a number"),
        ({"strength": "loud"}, "strength is 'loud'; give a number"),
        ({"strength": float("nan")}, "strength is nan; give a number"),
        ({"strength": [0.5, 0.6]}, "strength is .*; give a number"),
        ({"window_seconds": -1}, "window_seconds is -1; give a number of seconds"),
        ({"window_seconds": float("inf")}, "window_seconds is inf; give a number of seconds"),
        ({"overlap_seconds": "a bit"}, "overlap_seconds is 'a bit'; give a number of seconds"),
        ({"output_sampling_rate": True}, "output_sampling_rate is True; give a whole number of Hz, 'input' or None"),
        ({"output_sampling_rate": 44.1}, "output_sampling_rate is 44.1; give a whole number of Hz"),
        ({"output_sampling_rate": 10**9}, "output_sampling_rate is 1000000000; give a whole number of Hz"),
        ({"output_sampling_rate": "output"}, "output_sampling_rate is 'output'"),
        ({"sampling_rate": 0}, "sampling_rate is 0; give a whole number of Hz"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number of windows, at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"seed": 2**64}, "seed is 18446744073709551616; give any number of 64 bits"),
        ({"seed": "dice"}, "seed is 'dice'"),
        ({"keep_recording": "no"}, "keep_recording is 'no'; give True or False"),
        ({"return_confidence": 2}, "return_confidence is 2; give True or False"),
        ({"regions": (1.0, 2.0)}, "region 1.0 is no pair; give .start, stop. in seconds"),
        ({"regions": "1-2"}, "regions is '1-2'; give .start, stop. in seconds"),
        ({"regions": [(2.0, 1.0)]}, r"region \(2.0, 1.0\) does not end after its start"),
        ({"regions": [(-1.0, 1.0)]}, r"a border of region \(-1.0, 1.0\) is -1.0; give .start, stop. in seconds"),
        ({"regions": [(1.0, float("nan"))]}, "is nan; give"),
        ({"adapter": 3}, "adapter is 3; give a name, a directory, a Hub id or None"),
        ({"progress": 3}, "progress is 3; give a function"),
        ({"generate": {"temperature": "hot", "do_sample": True}}, "temperature is 'hot'; give a number above 0"),
        ({"generate": {"top_k": 2.5}}, "top_k is 2.5; give a whole number of ids"),
        ({"generate": {"top_p": 2}}, "top_p is 2; give a number from 0 to 1"),
        ({"generate": {"do_sample": "yes"}}, "do_sample is 'yes'; give True or False"),
        ({"generate": {"use_cache": "no"}}, "use_cache is 'no'; give True or False"),
        ({"generate": {"prompt_lookup_num_tokens": 1.5}}, "prompt_lookup_num_tokens is 1.5; give a whole number"),
        ({"generate": {"num_beams": 0}}, "num_beams is 0; give a whole number of beams, at least 1"),
        ({"candidates": 0}, "candidates is 0; give a whole number of answers to a window, at least 1"),
        ({"generate": {"generation_config": {"do_sample": True}}}, "generation_config is .*; give a GenerationConfig"),
        ({"generate": {"logits_processor": 3}}, "logits_processor is 3; give a list"),
        ({"generate": {"stopping_criteria": max}}, "stopping_criteria is .*; give a list"),
        ({"generate": {"assistant_model": "tiny"}}, "assistant_model is 'tiny'; give a model"),
        ({"generate": {"prefix_allowed_tokens_fn": [5]}}, r"prefix_allowed_tokens_fn is \[5\]; give a function"),
        ({"choose": np.array([1, 2])}, r"choose is array\(\[1, 2\]\); give"),
        ({"output_sampling_rate": np.array([8000, 1])}, "output_sampling_rate is array.*; give a whole number of Hz"),
        ({"choose": "taste"}, "choose is 'taste'; give 'confidence', 'dnsmos' or a function"),
        ({"candidates": 2, "generate": {"do_sample": False}}, "they are drawn: leave it out, or do_sample=False"),
        ({"candidates": 2, "generate": {"num_beams": 3}}, "they are drawn: leave it out, or num_beams"),
        ({"candidates": 2, "generate": {"prompt_lookup_num_tokens": 3}}, "leave it out, or an assistant"),
        ({"generate": {"do_sample": True, "num_beams": 3}}, "do_sample draws one id a token for each window"),
    ],
    ids=str,
)
def test_what_is_not_is_named_with_its_value_and_a_remedy(given, message):
    with pytest.raises(ValueError, match=message) as error:
        EnhanceOptions(**given)
    assert "\n" not in str(error.value)


def test_parameters_of_a_call_are_told_apart():
    options = EnhanceOptions.from_parameters(
        {"strength": 0.5, "top_k": 3, "generate_kwargs": {"do_sample": True}, "generation_config": GenerationConfig()}
    )
    assert options.strength == 0.5 and options.draws
    assert options.generate.keys() == {"do_sample", "top_k", "generation_config"}
    assert EnhanceOptions(generate={"generation_config": GenerationConfig(do_sample=True)}).draws
    assert not EnhanceOptions().draws and EnhanceOptions(candidates=2).draws
    with pytest.raises(ValueError, match="'strenght' is neither an option nor .*; did you mean 'strength'"):
        EnhanceOptions.from_parameters({"strenght": 0.5})
    with pytest.raises(ValueError, match="'strength' is no argument of generate: give it to the call"):
        EnhanceOptions.from_parameters({"generate_kwargs": {"strength": 0.5}})
    with pytest.raises(ValueError, match="generate_kwargs is 3; give a dict"):
        EnhanceOptions.from_parameters({"generate_kwargs": 3})
    assert EnhanceOptions.from_parameters({"num_beams": None, "do_sample": None, "top_k": None}).generate == {}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=6))
def test_regions_are_sorted_and_cover_the_same_seconds(pairs):
    regions = [(start, start + length) for start, length in pairs]
    merged = check_regions(regions)
    assert merged == sorted(merged)
    assert all(left[1] < right[0] for left, right in zip(merged, merged[1:], strict=False))
    covered = {second for start, stop in regions for second in range(start, stop)}
    assert covered == {second for start, stop in merged for second in range(int(start), int(stop))}
