"""Windows cover every frame once, whatever the length; weights keep the outside untouched."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_dacse.windows_dacse import (
    Span,
    frames_in_regions,
    overlap_frames,
    span_weights,
    split_windows,
    window_frames,
)


def spans(num_frames: int, window: int, overlap: int, whole: bool = False) -> list[Span]:
    """Windows over audio of so many frames."""
    return list(split_windows(lambda stop: min(stop, num_frames), window, overlap, whole))


@given(num_frames=st.integers(1, 400), window=st.integers(1, 60), data=st.data())
def test_every_frame_is_owned_by_exactly_one_window(num_frames, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    windows = spans(num_frames, window, overlap)
    owned = [frame for span in windows for frame in range(span.first, span.last)]
    assert owned == list(range(num_frames))
    for span in windows:
        assert 0 <= span.start <= span.first < span.last <= span.stop <= num_frames


@given(num_frames=st.integers(61, 400), window=st.integers(1, 60), data=st.data())
def test_windows_of_long_audio_have_one_length_and_share_at_least_the_overlap(num_frames, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    windows = spans(num_frames, window, overlap)
    assert {span.stop - span.start for span in windows} == {window}
    shared = [left.stop - right.start for left, right in zip(windows, windows[1:], strict=False)]
    assert all(frames == overlap for frames in shared[:-1])
    assert shared[-1] >= overlap


@given(num_frames=st.integers(1, 400), window=st.integers(1, 60), data=st.data())
def test_no_window_waits_for_more_than_two_windows_of_audio(num_frames, window, data):
    overlap, reached = data.draw(st.integers(0, window - 1)), [0]

    def reach(stop):
        reached.append(stop)
        return min(stop, num_frames)

    for span in split_windows(reach, window, overlap):
        assert max(reached) <= span.start + 2 * window


def test_default_window_is_capped_by_the_context_and_a_chosen_one_raises_with_both_values():
    assert window_frames(None, 86.1328125, 454) == 345
    assert window_frames(None, 86.1328125, 100) == 100
    with pytest.raises(ValueError, match=r"window_seconds is 6\.0 \(517 frames\).*5\.27093 s.*454 frames"):
        window_frames(6.0, 86.1328125, 454)
    with pytest.raises(ValueError, match="window_seconds is 0.001"):
        window_frames(0.001, 86.1328125, 454)


@pytest.mark.parametrize("overlap_seconds", [-0.1, 4.0, 5.0])
def test_an_overlap_that_leaves_no_frame_of_its_own_raises(overlap_seconds):
    with pytest.raises(ValueError, match=f"overlap_seconds is {overlap_seconds}"):
        overlap_frames(overlap_seconds, 100.0, 400)


def test_frames_touched_by_a_region_are_those_whose_samples_it_contains():
    frame_rate, regions = 8.0, [(0.3, 0.5), (1.0, 1.01)]
    touched = frames_in_regions(regions, 0, 16, frame_rate)
    samples = np.arange(0, 2, 1 / 1000)
    inside = np.logical_or.reduce([(samples >= start) & (samples < stop) for start, stop in regions])
    expected = [inside[(samples * frame_rate).astype(int) == frame].any() for frame in range(16)]
    np.testing.assert_array_equal(touched, expected)


@given(positions=st.lists(st.floats(0, 10), min_size=1), cut=st.integers(0, 20))
def test_weights_of_a_stretch_do_not_depend_on_how_it_is_cut(positions, cut):
    positions = np.sort(np.array(positions))
    spans = [(0.0, 2.0), (3.0, 3.1), (9.0, 10.0)]
    whole = span_weights(spans, 0.2, 10.0, positions)
    pieces = [span_weights(spans, 0.2, 10.0, part) for part in (positions[:cut], positions[cut:])]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    outside = np.logical_and.reduce([(positions <= start) | (positions >= stop) for start, stop in spans[1:2]])
    assert (whole[outside & (positions > 2) & (positions < 9)] == 0).all()


def test_a_span_that_touches_the_end_of_the_audio_has_no_fade_there():
    weights = span_weights([(0.0, 1.0)], 0.1, 1.0, np.linspace(0, 1, 11))
    np.testing.assert_array_equal(weights, np.ones(11))
