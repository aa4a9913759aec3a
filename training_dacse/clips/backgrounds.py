"""Sounds behind the speech, drawn from recordings. Knows crops and levels, no degradation."""

import math

import numpy as np
from numpy.random import Generator

from .degradations import fit_length, rms
from .digests import Digests
from .sources import CROP_ATTEMPTS, Clips


class BackgroundClips:
    """Draws background sounds of any length: silent crops are drawn again, short recordings repeated.

    Args:
        clips: the recordings.
        floor: lowest RMS of a crop; the released recipe rejects noise at 0.01 and below.
    """

    def __init__(self, clips: Clips, floor: float = 0.01):
        self.clips, self.floor = clips, floor

    def describe(self, digests: Digests) -> str:
        """Changes with the recordings and the floor."""
        return f"{digests.fingerprint(self.clips)} above {self.floor}"

    def __call__(self, num_samples: int, sampling_rate: int, rng: Generator) -> tuple[np.ndarray, str]:
        """Returns a sound (1, sample) and the name of its recording."""
        for _ in range(CROP_ATTEMPTS):
            index = int(rng.integers(len(self.clips)))
            sound = self.clips.crop(index, num_samples / sampling_rate, sampling_rate, rng)
            if rms(sound) > self.floor:
                repeats = math.ceil(num_samples / sound.shape[-1])
                return fit_length(np.tile(sound, repeats), num_samples), self.clips.short_name(index)
        raise ValueError(
            f"{self.clips.name(index)} and {CROP_ATTEMPTS - 1} draws before it are silent (RMS up to {self.floor}); "
            "remove silent recordings or raise their level"
        )
