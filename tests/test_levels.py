"""A recording at the levels of generated audio: kept, lowered where the model lowered it, filled where it is empty.

And the other way round: audio at the level of a quiet recording.
"""

import numpy as np
import pytest

from pipeline_dacse.levels_dacse import hold_quiet, keep_recording

RATE = 44100


def cut(sounds: np.ndarray, size: int) -> list[np.ndarray]:
    return [sounds[..., first : first + size] for first in range(0, sounds.shape[-1], size)]


def kept(recording: np.ndarray, generated: np.ndarray, coded: np.ndarray, size: int = 5000) -> np.ndarray:
    return np.concatenate(list(keep_recording(cut(np.stack([recording, generated, coded]), size), RATE)), axis=1)


def tone(frequency: float, seconds: float = 1.0) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE, dtype=np.float32)[None]


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def decibels(waveform: np.ndarray) -> float:
    return 10 * np.log10(np.square(waveform).mean())


@pytest.mark.parametrize("samples", [1, 127, 128, 513, 30000])
@pytest.mark.parametrize("size", [1, 100, 40000])
def test_a_model_that_changes_nothing_gives_the_recording_back(samples, size):
    samples = min(samples, 600) if size == 1 else samples
    recording, coded = noise(samples, 2), noise(samples, 2, seed=1)
    out = kept(recording, coded, coded, size)
    assert out.shape == recording.shape and out.dtype == np.float32
    np.testing.assert_allclose(out, recording, rtol=0, atol=1e-6)


def test_blocks_of_any_length_give_the_same():
    sounds = [noise(30000, seed=seed) for seed in range(3)]
    np.testing.assert_allclose(kept(*sounds, size=999), kept(*sounds, size=30000), rtol=0, atol=1e-6)


def test_what_the_model_takes_away_goes_and_what_it_keeps_stays_to_the_sample():
    voice, hum = tone(1000), tone(6000)
    # of a codec that gets the phase wrong, as codecs of few bits do
    wrong = -voice
    out = kept(voice + hum, wrong, wrong - hum)[:, 2000:-2000]
    assert decibels(out - voice[:, 2000:-2000]) < decibels(voice) - 40


def test_a_gain_is_the_part_of_the_power_that_is_left():
    sound = noise(RATE)
    out = kept(sound, sound / 2, sound)
    np.testing.assert_allclose(out, sound / 4, rtol=0, atol=1e-6)


def test_what_a_recording_lacks_is_generated_and_nothing_else():
    voice, made = tone(1000), tone(1000) + 0.1 * tone(12000)
    voice[:, 20000:24410] = 0  # a packet of 100 ms
    out = kept(voice, made, voice)
    lost = slice(20512, 23898)
    np.testing.assert_allclose(out[:, lost], made[:, lost], rtol=0, atol=0.003)
    elsewhere = out[:, 1000:19000] - voice[:, 1000:19000]
    np.testing.assert_allclose(elsewhere, 0.1 * tone(12000)[:, 1000:19000], rtol=0, atol=0.001)


def test_what_the_model_raises_stays_as_it_is():
    sound = noise(RATE)
    np.testing.assert_allclose(kept(sound, 3 * sound, sound), sound, rtol=0, atol=1e-6)


def test_no_blocks_give_none():
    assert list(keep_recording([], RATE)) == []


@pytest.mark.parametrize("level", [1e-5, 2e-5, 3e-5])  # -100 to -90 dBFS
@pytest.mark.parametrize(
    "sound", [noise(3 * RATE) / 0.1, tone(98.5, 3) / 0.1, tone(1000, 3) / 0.1], ids=["noise", "hum", "tone"]
)
def test_what_is_made_of_a_quiet_recording_is_at_most_6_db_louder(sound, level):
    recording, made = level * sound.astype(np.float32), noise(sound.shape[1], seed=1)
    out = np.concatenate(list(hold_quiet(cut(np.stack([recording, made]), 5000), RATE)), axis=1)
    assert decibels(out) < decibels(recording) + 6
