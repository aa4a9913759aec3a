"""Room impulse responses: small rooms simulated once, or measured ones from recordings. Knows no speech."""

import numpy as np
import pyroomacoustics
import soundfile
from numpy.random import Generator

from processing_dacse.audio_dacse import resample

from .digests import Digests
from .sources import Clips, readable

SIMULATION_RATE = 44100  # Hz; responses are resampled when another rate is asked for
RT60 = (0.15, 0.6)  # seconds, of furnished rooms


def simulate_room(rng: Generator) -> np.ndarray:
    """A response of a random shoebox room with a talker and a microphone in it (image sources), float32 (sample,).

    Rooms are 2-7 m by 2-6 m by 2.2-3.2 m, with a reverberation time drawn from `RT60` and raised to what Sabine's
    formula allows for the room.
    """
    size = rng.uniform((2.0, 2.0, 2.2), (7.0, 6.0, 3.2))
    volume, surface = size.prod(), 2 * (size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    shortest = 0.161 * volume / surface  # Sabine with full absorption
    absorption, max_order = pyroomacoustics.inverse_sabine(max(rng.uniform(*RT60), 1.2 * shortest), size)
    room = pyroomacoustics.ShoeBox(
        size, fs=SIMULATION_RATE, materials=pyroomacoustics.Material(absorption), max_order=min(max_order, 15)
    )
    room.add_source(rng.uniform(0.3, size - 0.3))
    room.add_microphone(rng.uniform(0.3, size - 0.3))
    pyroomacoustics.constants.set("num_threads", 1)  # its sums round by threads: one, however many cores there are
    room.compute_rir()
    response = np.asarray(room.rir[0][0], dtype=np.float32)
    return response / np.abs(response).max()


class SimulatedRooms:
    """A bank of simulated rooms, each computed when it is first drawn, the same for the same seed.

    Args:
        count: of rooms.
        seed: of the bank; splits have different ones, so that held-out rooms are none of those trained on.
    """

    def __init__(self, count: int = 64, seed: int = 0):
        self.count, self.seed, self.bank = count, seed, {}

    def describe(self, digests: Digests) -> str:
        """Changes with the rooms of the bank."""
        return f"{self.count} simulated rooms, seed {self.seed}"

    def __call__(self, sampling_rate: int, rng: Generator) -> tuple[np.ndarray, str]:
        """Draws a response (sample,) and its name."""
        index = int(rng.integers(self.count))
        if (index, sampling_rate) not in self.bank:
            response = simulate_room(np.random.default_rng((self.seed, index)))
            self.bank[index, sampling_rate] = resample(response[None], SIMULATION_RATE, sampling_rate)[0]
        return self.bank[index, sampling_rate], f"simulated {self.seed}/{index}"


class MeasuredRooms:
    """Recorded responses, one per file, kept in memory once read."""

    def __init__(self, clips: Clips):
        self.clips, self.bank = clips, {}

    def describe(self, digests: Digests) -> str:
        """Changes with the recordings."""
        return digests.fingerprint(self.clips)

    def __call__(self, sampling_rate: int, rng: Generator) -> tuple[np.ndarray, str]:
        """Draws a response (sample,) and the name of its file."""
        index = int(rng.integers(len(self.clips)))
        if (index, sampling_rate) not in self.bank:
            with readable(self.clips.name(index)):
                waveform, rate = soundfile.read(self.clips.open(index), dtype="float32", always_2d=True)
            response = resample(np.ascontiguousarray(waveform.T[:1]), rate, sampling_rate)[0]
            if not np.abs(response).max() > 0:
                raise ValueError(f"{self.clips.name(index)}: a silent room response; remove it from the rooms")
            self.bank[index, sampling_rate] = response
        return self.bank[index, sampling_rate], self.clips.short_name(index)
