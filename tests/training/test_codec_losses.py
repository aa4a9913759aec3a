"""Distances of waveforms by their spectrograms."""

import pytest
import torch
from scipy.signal import ShortTimeFFT

from tests.training.tiny_codec import tones
from training_dacse.codec.losses import FLOOR, SpectralDistances

WAVEFORM = next(tones(2, 4096, 0))


def test_distances_are_zero_on_itself_and_grow():
    distances = SpectralDistances(8000)
    found = [distances(WAVEFORM * gain, WAVEFORM) for gain in (1.0, 0.5, 0.1)]
    for name in ("mel", "spectrum", "long_term"):
        first, second, third = (float(distance[name]) for distance in found)
        assert 0 == first < second < third


def test_complex_distance_hears_a_phase_that_the_mel_distance_does_not():
    distances = SpectralDistances(8000)
    turned, silent = distances(-WAVEFORM, WAVEFORM), distances(0 * WAVEFORM, WAVEFORM)
    assert turned["mel"] == 0
    assert turned["spectrum"] > 1.5 * silent["spectrum"]


def test_phases_above_the_highest_frequency_do_not_count():
    high = torch.sin(2 * torch.pi * 3000 * torch.arange(4096) / 8000)[None]
    distances = SpectralDistances(8000, power=1.0, highest=1500.0)
    assert distances(-high, high)["spectrum"] < 0.05 * distances(-WAVEFORM, WAVEFORM)["spectrum"]


def test_long_term_distance_hears_faint_tones_and_no_other_noise_of_the_same_spectrum():
    generator, time = torch.Generator().manual_seed(0), torch.arange(16384) / 8000
    one, other = (0.1 * torch.randn(8, 16384, generator=generator) for _ in range(2))
    tones = 0.01 * sum(torch.sin(2 * torch.pi * frequency * time) for frequency in range(100, 4000, 100))
    distances = SpectralDistances(8000)
    plain, whistling = distances(other, one), distances(other + tones, one)
    assert plain["long_term"] < 0.3 * plain["mel"]
    assert whistling["long_term"] > 1.5 * plain["long_term"]
    assert whistling["mel"] < 1.1 * plain["mel"]


def test_a_full_scale_tone_has_the_magnitude_one_at_every_window_length():
    distances, tone = SpectralDistances(8000), torch.sin(2 * torch.pi * 1000 * torch.arange(8192) / 8000)[None]
    for length in distances.window_lengths:
        power = distances.spectrogram(tone, length)[1]
        assert power[0, 4:-4].amax(1).sqrt().mean() == pytest.approx(1, rel=1e-3)


def test_power_is_that_of_another_implementation():
    length = 256
    window = torch.hann_window(length).numpy()
    transform = ShortTimeFFT(window, hop=length // 4, fs=1, scale_to=None)
    inner = slice(4, -4)  # ends are padded in other ways
    expected = abs(transform.stft(WAVEFORM[0].numpy(), p0=0, p1=4096 // 64 + 1)).T * 2 / window.sum()
    power = SpectralDistances(8000).spectrogram(WAVEFORM, length)[1][0]
    torch.testing.assert_close(
        (power[inner] - FLOOR**2).clamp(min=0).sqrt(), torch.from_numpy(expected[inner]).float(), atol=1e-4, rtol=1e-3
    )
