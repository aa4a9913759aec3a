"""What a row of the speed table is, and how much of everything it runs. Knows no model, no clock and no table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

import dacse

SPEECH = Path(__file__).parents[1] / "examples/audio/inaugural_1961.wav"
FRAME_RATE = 44100 / 512  # of the released grid


@dataclass(frozen=True)
class Scale:
    """How much of everything: the whole table, or a few minutes' worth of it."""

    least_rounds: int
    most_rounds: int
    file_seconds: float
    grid_seconds: float
    window_frames: int
    window_tokens: int
    windows: int
    large_layers: int
    large_tokens: int
    codec_seconds: float
    clips: int
    clip_seconds: float


FULL = Scale(
    least_rounds=2,
    most_rounds=5,
    file_seconds=60,
    grid_seconds=9,
    window_frames=345,
    window_tokens=200,
    windows=8,
    large_layers=24,
    large_tokens=8,
    codec_seconds=20,
    clips=64,
    clip_seconds=4.0,
)
QUICK = Scale(
    least_rounds=1,
    most_rounds=1,
    file_seconds=2,
    grid_seconds=2,
    window_frames=40,
    window_tokens=40,
    windows=2,
    large_layers=2,
    large_tokens=4,
    codec_seconds=3,
    clips=4,
    clip_seconds=1.0,
)


@dataclass(frozen=True)
class Row:
    """Calls that are timed in turn: the baseline, ours, and other ways to have the same done."""

    what: str
    goal: str
    calls: dict[str, Callable[[], object]]
    baseline_share: float = 1.0  # of the work that the baseline does, for it takes every window alike
    audio_seconds: float | None = None  # for a real-time factor
    count: int = 1  # tokens in a call, for a rate
    bytes_read: int = 0  # by a call at least, for a share of the memory limit
    facts: dict[str, object] = field(default_factory=dict)


def speech(seconds: float, rate: int) -> np.ndarray:
    """The example recording, again and again: float32 (sample,)."""
    waveform, own_rate = soundfile.read(SPEECH, dtype="float32")
    waveform = dacse.DacSeProcessor.resample(waveform.T.reshape(-1, len(waveform))[:1], own_rate, rate)[0]
    return np.resize(waveform, round(seconds * rate))
