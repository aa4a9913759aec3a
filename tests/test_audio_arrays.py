"""Arrays as waveforms: types, scales, axes, rates, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from processing_dacse.audio_arrays_dacse import AudioWarning
from processing_dacse.audio_dacse import load_audio

RATE = 8000
STEREO = (np.random.default_rng(0).integers(-(2**15), 2**15, (2, 500)) / 2**15).astype(np.float32)
SPEECH = STEREO[:1]


def read(array) -> np.ndarray:
    return load_audio({"array": array, "sampling_rate": RATE})[0]


@given(arrays(st.sampled_from([np.int8, np.int16, np.uint8, np.uint16]), 5))
def test_narrow_integers_are_divided_by_their_full_scale(array):
    info = np.iinfo(array.dtype)
    middle, half = (info.max + 1 + info.min) // 2, (info.max + 1 - info.min) // 2
    naive = [(int(value) - middle) / half for value in array]
    np.testing.assert_array_equal(read(array)[0], np.array(naive, np.float32))


def as_integers(dtype: str, bits: int) -> np.ndarray:
    return (SPEECH * 2.0 ** (bits - 1)).clip(max=2.0 ** (bits - 1) - 1).astype(dtype)


@pytest.mark.parametrize(
    ("array", "atol"),
    [
        (as_integers("int32", 32), 2**-30),
        (as_integers("int32", 32) >> 8 << 8, 2**-22),  # 24 bits in the upper ones, as libsndfile gives them
        (as_integers("int32", 32) >> 16 << 16, 2**-14),
        (as_integers("int64", 32), 2**-30),
        (as_integers("int64", 64), 2**-30),
        ((as_integers("int64", 32) + 2**31).astype(np.uint32), 2**-23),
    ],
)
def test_wide_integers_that_use_their_range_are_divided_by_it(array, atol, recwarn):
    np.testing.assert_allclose(read(array), SPEECH, rtol=0, atol=atol)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64", "float16"])
def test_samples_of_16_bits_in_a_wider_type_are_read_as_such_which_is_said(dtype):
    array = as_integers("int16", 16).astype(dtype)
    with pytest.warns(AudioWarning, match=f"the audio array holds {dtype} samples of 16 bits, and is read as such"):
        waveform = read(array)
    np.testing.assert_allclose(waveform, SPEECH, rtol=0, atol=2**-10 if dtype == "float16" else 2**-15)


def test_so_are_lists_and_tensors_of_them():
    for array in (as_integers("int16", 16)[0].tolist(), torch.tensor(as_integers("int16", 16).tolist())):
        with pytest.warns(AudioWarning):
            np.testing.assert_allclose(read(array), SPEECH, rtol=0, atol=2**-15)
    np.testing.assert_array_equal(read(SPEECH[0].tolist()), SPEECH)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (as_integers("int32", 24), "is of type int32 and reaches 83.* only, so that its full scale is not known"),
        (as_integers("int64", 24), "is of type int64 and reaches 83.* only, so that its full scale is not known"),
        (
            as_integers("int64", 16).astype("uint32") & 0xFFFF,
            "is of type uint32 and stays in its lower half.*divide it by that",
        ),
        (SPEECH * 20_000, "reaches .* at sample 0, where full scale is 1; divide it by its own full scale"),
        (SPEECH * 1e30, "reaches .* where full scale is 1"),
        (np.full(5, 1e300), "has NaN or infinity, first at sample 0"),
    ],
)
def test_values_that_leave_their_scale_open_are_refused_with_the_remedy(array, message):
    with pytest.raises(ValueError, match=f"the audio array {message}"):
        read(array)


def test_silence_has_no_scale_and_needs_none(recwarn):
    for dtype in ("int32", "int64", "float32", "int16"):
        assert not read(np.zeros(10, dtype)).any()
    assert not recwarn.list


def test_floats_above_full_scale_are_kept(recwarn):
    np.testing.assert_array_equal(read(SPEECH * 3), SPEECH * 3)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16])
def test_tensors_of_every_type_are_read(dtype):
    tensor = torch.tensor([0.0, 0.5, -0.25]) if dtype.is_floating_point else torch.tensor([0, 16384, -8192])
    waveform, _ = load_audio(tensor.to(dtype).requires_grad_(dtype.is_floating_point), RATE)
    np.testing.assert_array_equal(waveform, np.array([[0, 0.5, -0.25]], np.float32))


def test_the_shorter_axis_of_an_array_is_its_channels():
    for array in (STEREO, STEREO.T):
        np.testing.assert_array_equal(load_audio(array, RATE)[0], STEREO)
    np.testing.assert_array_equal(load_audio(STEREO[:, :2], RATE)[0], STEREO[:, :2])
    np.testing.assert_array_equal(load_audio(STEREO[0], RATE)[0], STEREO[:1])


def test_what_is_returned_is_the_callers_to_change():
    array = STEREO.copy()
    waveform, _ = load_audio(array, RATE)
    waveform[:] = 0
    np.testing.assert_array_equal(array, STEREO)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_where_they_stand(value):
    waveform = STEREO.copy()
    waveform[1, 234] = value
    with pytest.raises(ValueError, match="the audio array has NaN or infinity, first at sample 234; repair it first"):
        read(waveform)


def test_a_row_of_a_data_set_is_its_audio():
    cell = {"array": np.linspace(-0.5, 0.5, 9), "sampling_rate": 8000}
    waveform, rate = load_audio({"text": "hello", "audio": cell})
    np.testing.assert_array_equal(waveform, load_audio(cell)[0])
    assert rate == 8000


@pytest.mark.parametrize("rate", [44100, 44100.0, np.int64(44100), np.float32(44100), torch.tensor(44100)])
def test_a_rate_is_any_whole_number(rate):
    assert load_audio(np.zeros(5), rate)[1] == 44100


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.zeros(5), None, "the audio array does not know its sampling rate; pass sampling_rate in Hz beside it"),
        ({"array": np.zeros(5)}, None, "the audio array does not know its sampling rate"),
        (np.zeros(5), 0, "has a sampling rate of 0; give whole Hz from 1000 to 1000000"),
        (np.zeros(5), 16, "has a sampling rate of 16; give whole Hz"),
        (np.zeros(5), 44100.5, "has a sampling rate of 44100.5; give whole Hz"),
        (np.zeros(5), "44100", "has a sampling rate of '44100'; give whole Hz"),
        (np.zeros(5), True, "has a sampling rate of True; give whole Hz"),
        (np.zeros(5), float("nan"), "has a sampling rate of nan; give whole Hz"),
        (np.zeros(0), RATE, r"of shape \(0,\) has no samples; give at least one"),
        (np.zeros((2, 0)), RATE, r"of shape \(2, 0\) has no samples"),
        (np.zeros((1, 2, 3)), RATE, r"has the shape \(1, 2, 3\); give \(sample,\)"),
        (np.zeros(5, complex), RATE, "is of type complex128; give integers or floats"),
        (np.zeros(5, bool), RATE, "is of type bool; give integers or floats"),
        ({"array": [[1, 2], [3]]}, RATE, "has rows of different lengths"),
        ({"array": ["a"]}, RATE, "is of type <U1; give integers or floats"),
    ],
)
def test_what_is_not_audio_is_refused_with_the_remedy(source, rate, message):
    with pytest.raises(ValueError, match=f"the audio array {message}|{message}"):
        load_audio(source, rate)
