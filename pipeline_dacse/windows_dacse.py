"""Arithmetic of windows: where they lie, which frames each one owns, how dry and enhanced samples are weighed.

Knows frames, samples and seconds; knows no audio, codec or model.
"""

from collections.abc import Callable, Iterator, Sequence
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
        ValueError: the chosen window is below a frame, beyond the context, or not the only length.

    >>> window_frames(None, 100.0, 250), window_frames(None, 100.0, 1000), window_frames(1.5, 100.0, 250)
    (250, 400, 150)
    >>> window_frames(None, 100.0, 250, only_frames=200)
    200
    """
    if window_seconds is None:
        return only_frames or max(1, min(max_frames, round(DEFAULT_WINDOW_SECONDS * frame_rate)))
    frames = round(window_seconds * frame_rate)
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
        ValueError: the chosen overlap leaves a window no frame of its own.

    >>> overlap_frames(None, 100.0, 400), overlap_frames(None, 100.0, 40), overlap_frames(0.1, 100.0, 40)
    (20, 10, 10)
    """
    if overlap_seconds is None:
        return min(window // 4, round(DEFAULT_OVERLAP_SECONDS * frame_rate))
    frames = round(overlap_seconds * frame_rate)
    if not 0 <= frames < window:
        raise ValueError(
            f"overlap_seconds is {overlap_seconds} ({frames} frames); it must be at least 0 and shorter than the"
            f" window of {window / frame_rate:.6g} s ({window} frames)"
        )
    return frames


def split_windows(reach: Callable[[int], int], window: int, overlap: int, whole: bool = False) -> Iterator[Span]:
    """Yields windows over audio, all of one length: the last is shifted back to end with the audio.

    Neighbours meet in the middle of what they share, so every frame is owned once. Audio shorter than a window makes a
    shorter window, or with `whole` one that goes on past the end of the audio.

    Args:
        reach: `reach(stop)` is `stop`, or the number of frames of the audio where those are fewer: of audio that is
            being read it reads that far, which is at most two windows ahead.
        window: Frames of a window.
        overlap: Frames that neighbours share.
        whole: Whether a window is never shorter.

    >>> for span in split_windows(lambda stop: min(stop, 9), 4, 1):
    ...     print(span)
    Span(start=0, stop=4, first=0, last=3)
    Span(start=3, stop=7, first=3, last=6)
    Span(start=5, stop=9, first=6, last=9)
    >>> short = lambda stop: min(stop, 3)
    >>> list(split_windows(short, 4, 1)), list(split_windows(short, 4, 1, whole=True))
    ([Span(start=0, stop=3, first=0, last=3)], [Span(start=0, stop=4, first=0, last=3)])
    """
    start = first = 0
    while reach(start + window + 1) > start + window:
        following = reach(start + 2 * window - overlap) - window
        last = (start + window + following) // 2
        yield Span(start, start + window, first, last)
        start, first = following, last
    num_frames = reach(start + window)
    yield Span(start, start + window if whole else num_frames, first, num_frames)


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
