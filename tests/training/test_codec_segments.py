"""Stretches of speech for training a codec: reproducible, partly noisy, seldom silent."""

import itertools

import numpy as np
import pytest
import soundfile
import torch

from training_dacse.clips.sources import find_clips
from training_dacse.codec.segments import CodecSegments


def write_recordings(folder, **waveforms):
    """Recordings in folders of their own, as `Clips` by name."""
    for name, waveform in waveforms.items():
        (folder / name).mkdir()
        soundfile.write(folder / name / "a.wav", waveform, 8000)
    return {name: find_clips(folder / name) for name in waveforms}


@pytest.fixture
def recordings(tmp_path):
    time = np.arange(8000) / 8000
    noise = np.random.default_rng(0).normal(size=8000) / 4
    return write_recordings(tmp_path, speech=0.5 * np.sin(2 * np.pi * 200 * time), noise=noise)


def test_segments_are_reproducible_within_full_scale_and_partly_noisy(recordings):
    segments = CodecSegments(**recordings, sampling_rate=8000)
    batch = next(segments(64, 400, seed=1))
    assert batch.shape == (64, 400) and batch.dtype == torch.float32 and batch.abs().max() <= 1
    assert torch.equal(batch, next(segments(64, 400, seed=1)))
    assert not torch.equal(batch, next(segments(64, 400, seed=2)))
    spectrum = torch.fft.rfft(batch).abs()
    noisy = spectrum[:, 100:].mean(1) > 0.01 * spectrum.amax(1)  # above 2 kHz a 200 Hz tone has nothing
    assert 10 <= noisy.sum() <= 30  # 30 % of 64


def test_segments_go_on_from_any_batch_of_their_sequence(recordings):
    segments = CodecSegments(**recordings, sampling_rate=8000)
    third = next(itertools.islice(segments(4, 400, seed=1), 2, None))
    assert torch.equal(next(segments(4, 400, seed=1, first=2)), third)


def test_noise_stands_below_the_speech_by_the_ratio_that_was_drawn(recordings):
    segments = CodecSegments(
        **recordings, sampling_rate=8000, noise_probability=1.0, snr_db=(10.0, 10.0), level_db=(0.0, 0.0)
    )
    power = torch.fft.rfft(next(segments(64, 4000, seed=0))).abs().square()
    speech = power[:, 95:106].sum(1)  # 200 Hz lies on bin 100
    ratio = 10 * torch.log10(speech / (power.sum(1) - speech))
    assert ratio.mean() == pytest.approx(10, abs=0.3)


def test_pauses_are_seldom_drawn(tmp_path):
    tone = 0.5 * np.sin(np.arange(4000))
    clips = write_recordings(tmp_path, speech=np.concatenate([tone, np.zeros(12000)]), noise=tone)
    segments = CodecSegments(**clips, sampling_rate=8000, noise_probability=0.0)
    silent = (next(segments(256, 100, seed=0)) == 0).all(1).float().mean()
    assert 0.05 < silent < 0.35  # three quarters of the recording: 0.75 ** 8 and one in twenty of each draw
