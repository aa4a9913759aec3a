"""Arithmetic of windows: where they lie, which frames each one owns, how dry and enhanced samples are weighed.

Knows frames, samples and seconds; knows no audio, codec or model.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

DEFAULT_WINDOW_SECONDS = 4.0  # the released inference (arXiv 2510.02187)
DEFAULT_OVERLAP_SECONDS = 0.2


class Span(NamedTuple):
    """Frames `start..stop` enhanced in one prompt, of which `first..last` are kept."""

    start: int
    stop: int
    first: int
    last: int


def window_frames(
    window_seconds: float | None, frame_rate: float, max_frames: int, only_frames: int | None = None
) -> int:
    """Frames in a window; the default window is capped at what the context holds, a chosen one is not.

    Args:
        window_seconds: length in seconds, or None for the default of 4 s.
        frame_rate: codec frames per second.
        max_frames: frames that fit the model's context.
        only_frames: the one length the model was trained on, if there is but one.

    Raises:
        ValueError: the chosen window is no number, below a frame, beyond the context, or not the only length.

    >>> window_frames(None, 100.0, 250), window_frames(None, 100.0, 1000), window_frames(1.5, 100.0, 250)
    (250, 400, 150)
    >>> window_frames(None, 100.0, 250, only_frames=200)
    200
    """
    if window_seconds is None:
        return only_frames or max(1, min(max_frames, round(DEFAULT_WINDOW_SECONDS * frame_rate)))
    frames = _nearest_frames("window_seconds", window_seconds, frame_rate)
    if not 1 <= frames <= max_frames:
        raise ValueError(
            f"window_seconds is {window_seconds} ({frames} frames), but this model takes windows of"
            f" {1 / frame_rate:.3g} to {max_frames / frame_rate:.6g} s (1 to {max_frames} frames)"
        )
    if only_frames not in (None, frames):
        raise ValueError(
            f"window_seconds is {window_seconds} ({frames} frames), but this model was trained on windows of"
            f" {only_frames / frame_rate:.6g} s ({only_frames} frames) alone; leave window_seconds out"
        )
    return frames


def overlap_frames(overlap_seconds: float | None, frame_rate: float, window: int) -> int:
    """Frames that neighbouring windows share; the default of 0.2 s is capped at a quarter of the window.

    Raises:
        ValueError: the chosen overlap is no number, negative, or leaves a window no frame of its own.

    >>> overlap_frames(None, 100.0, 400), overlap_frames(None, 100.0, 40), overlap_frames(0.1, 100.0, 40)
    (20, 10, 10)
    """
    if overlap_seconds is None:
        return min(window // 4, round(DEFAULT_OVERLAP_SECONDS * frame_rate))
    frames = _nearest_frames("overlap_seconds", overlap_seconds, frame_rate)
    if not 0 <= frames < window:
        raise ValueError(
            f"overlap_seconds is {overlap_seconds} ({frames} frames); it must be at least 0 and shorter than the"
            f" window of {window / frame_rate:.6g} s ({window} frames)"
        )
    return frames


def split_windows(num_frames: int, window: int, overlap: int, whole: bool = False) -> Iterator[Span]:
    """Yields windows over `num_frames`, all of one length: the last is shifted back to end with the audio.

    Neighbours meet in the middle of what they share, so every frame is owned once. Audio shorter than a window makes a
    shorter window, or with `whole` one that goes on behind the end of the audio.

    >>> for span in split_windows(9, 4, 1):
    ...     print(span)
    Span(start=0, stop=4, first=0, last=3)
    Span(start=3, stop=7, first=3, last=6)
    Span(start=5, stop=9, first=6, last=9)
    >>> list(split_windows(3, 4, 1)), list(split_windows(3, 4, 1, whole=True))
    ([Span(start=0, stop=3, first=0, last=3)], [Span(start=0, stop=4, first=0, last=3)])
    """
    if num_frames <= window:
        yield Span(0, window if whole else num_frames, 0, num_frames)
        return
    start = first = 0
    while start + window < num_frames:
        following = min(start + window - overlap, num_frames - window)
        last = (start + window + following) // 2
        yield Span(start, start + window, first, last)
        start, first = following, last
    yield Span(start, num_frames, first, num_frames)


def check_regions(regions: Sequence[tuple[float, float]] | None) -> list[tuple[float, float]] | None:
    """Regions in seconds, sorted, touching ones merged.

    Raises:
        ValueError: a region is not a pair of seconds with 0 <= start < stop.

    >>> check_regions([(3.0, 4.0), (1.0, 2.0), (1.5, 2.5)])
    [(1.0, 2.5), (3.0, 4.0)]
    """
    if regions is None:
        return None
    merged: list[tuple[float, float]] = []
    for region in sorted(tuple(region) for region in regions):
        if len(region) != 2 or not 0 <= region[0] < region[1]:
            raise ValueError(f"region {region} is not a (start, stop) in seconds with 0 <= start < stop")
        if merged and region[0] <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], region[1]))
        else:
            merged.append(region)
    return merged


def frames_in_regions(regions: Sequence[tuple[float, float]], start: int, stop: int, frame_rate: float) -> np.ndarray:
    """Which of the frames `start..stop` touch a region: bool `(frame,)`.

    >>> frames_in_regions([(0.25, 0.5)], 1, 7, 10.0).tolist()
    [False, True, True, True, False, False]
    """
    frames = np.arange(start, stop)
    touched = np.zeros(len(frames), dtype=bool)
    for begin, end in regions:
        touched |= (frames + 1 > begin * frame_rate) & (frames < end * frame_rate)
    return touched


def span_weights(spans: Sequence[tuple[float, float]], fade: float, total: float, positions: np.ndarray) -> np.ndarray:
    """Weight of the enhanced signal: 1 inside the spans, 0 outside, a linear fade just inside each border.

    A border at the very start or end of the audio gets no fade: nothing lies beyond it. All arguments in one unit.

    Args:
        spans: disjoint (start, stop), ascending.
        fade: length of a fade.
        total: length of the audio.
        positions: where to evaluate, `(sample,)`.

    Returns:
        float32 `(sample,)`.

    >>> span_weights([(2, 6)], 1, 10, np.arange(8) + 0.5).tolist()
    [0.0, 0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    knots, weights = [], []
    for start, stop in spans:
        start = start if start > 0 else -fade
        stop = stop if stop < total else total + fade
        ramp = min(fade, (stop - start) / 2)
        knots += [start, start + ramp, stop - ramp, stop]
        weights += [0.0, 1.0, 1.0, 0.0]
    if not knots:
        return np.zeros(len(positions), dtype=np.float32)
    return np.interp(positions, knots, weights, left=0.0, right=0.0).astype(np.float32)


def _nearest_frames(name: str, seconds: float, frame_rate: float) -> int:
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {seconds}; give a finite number of seconds")
    return round(seconds * frame_rate)
