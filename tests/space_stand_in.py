"""A stand-in for the pipeline behind the Space, and the Space on a port of this machine. Knows no model.

The enhanced side is a tone of its own, so that a test can hear which side is playing.
"""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch

from processing_dacse.audio_dacse import load_audio, stream_audio

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "spaces_app"))  # a Space's files import one another flat

RATE = 44100
BEFORE_HZ, AFTER_HZ = 440, 1760
KEPT_HZ = 2640  # enhanced with the recording kept


def tone(seconds: float, frequency: float, rate: int = RATE) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def write_tone(folder: Path, seconds: float, name: str = "noisy.wav") -> str:
    soundfile.write(folder / name, tone(seconds, BEFORE_HZ), RATE)
    return str(folder / name)


class StandIn:
    """Streams one piece a second, as fast as `gate` lets it, and counts how many recordings it has in hand."""

    device = torch.device("cpu")
    processor = SimpleNamespace(sampling_rate=RATE, frame_rate=100.0, stream_audio=stream_audio)

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.error = None
        self.calls = []
        self.pieces = 0
        self.running = self.most_running = 0

    def stream(self, path, batch_size, return_confidence, **parameters):
        self.calls.append(parameters)
        assert return_confidence
        waveform, rate = load_audio(path)
        samples = round(waveform.shape[1] / rate * RATE)
        enhanced = tone(samples / RATE, KEPT_HZ if parameters["keep_recording"] else AFTER_HZ) / 2
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            for start in range(0, samples, RATE):
                self.gate.wait(1)  # a window takes a moment, however much of a hurry anyone is in
                if self.error:
                    raise self.error
                self.pieces += 1
                piece = enhanced[None, start : start + RATE]
                yield {"audio": piece, "confidence": np.full((1, -(-100 * piece.shape[1] // RATE)), 0.75, np.float32)}
        finally:
            self.running -= 1


@contextmanager
def served_space(pipelines: dict, adapters: dict, results: Path, **limits):
    """The address of a Space over these pipelines, while it runs."""
    from app import Space, launch_options
    from offer import Settings

    settings = Settings(**limits)
    space = Space(pipelines, adapters, settings, results)
    space.prepare_examples()
    for pipe in pipelines.values():
        pipe.calls.clear()
    page = space.blocks()
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options(settings, results))
    try:
        yield address
    finally:
        page.close()
