"""The trainer of small codecs: a signal survives initialisation, codes come back to life, a run goes on."""

import numpy as np
import soundfile
import torch
from transformers import DacConfig, DacModel

from training_dacse.codec import (
    CodebookWatch,
    CodecTrainer,
    CodecTrainingArguments,
    MultiScaleMelLoss,
    initialize_codec,
)
from training_dacse.segments import CodecSegments
from training_dacse.sources import find_clips

CONFIG = DacConfig(
    encoder_hidden_size=4,
    decoder_hidden_size=16,
    downsampling_ratios=(4, 4),
    n_codebooks=2,
    codebook_size=16,
    codebook_dim=4,
    sampling_rate=8000,
)


def tones(batch_size, samples, seed):
    """Endless batches of sine waves of random pitch, (batch, sample)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / CONFIG.sampling_rate
    while True:
        pitch = 100 + 400 * torch.rand(batch_size, 1, generator=generator)
        yield 0.5 * torch.sin(2 * torch.pi * pitch * time)


def arguments(path, **overrides):
    given = {"max_steps": 150, "batch_size": 4, "segment_seconds": 0.25, "warmup_steps": 5, "restart_every": 5}
    return CodecTrainingArguments(str(path), **{**given, **overrides})


def test_initialisation_keeps_the_variance_of_a_signal():
    codec = DacModel(CONFIG)
    initialize_codec(codec, torch.Generator().manual_seed(0))
    latents = codec.encoder(torch.randn(2, 1, 1600))
    assert 0.3 < latents.std() < 3
    assert 0.3 < codec.decoder.conv1(latents).std() < 3


def test_mel_loss_is_zero_on_itself_and_grows_with_the_distance():
    loss = MultiScaleMelLoss(8000)
    waveform = next(tones(2, 4096, 0))
    distances = [loss(waveform * gain, waveform) for gain in (1.0, 0.5, 0.1)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]


def test_unused_codes_move_onto_latents_of_the_batch():
    codec = DacModel(CONFIG)
    watch = CodebookWatch(codec)
    watch.observe(torch.zeros(1, 2, 3, dtype=torch.long))
    assert watch.used() == [1, 1]
    kept = codec.quantizer.quantizers[0].codebook.weight[0].clone()
    watch.restart(torch.full((1, 8, 3), 7.0), torch.Generator().manual_seed(0))
    weights = codec.quantizer.quantizers[0].codebook.weight
    assert torch.equal(weights[0], kept)
    assert torch.all(weights[1:] == 7)


def test_training_lowers_the_mel_loss_and_goes_on_from_its_checkpoint(tmp_path):
    trainer = CodecTrainer(CONFIG, arguments(tmp_path))
    before = trainer.mel_loss(trainer.model(next(tones(4, 2000, 1))[:, None]).audio_values, next(tones(4, 2000, 1)))
    codec = trainer.train(tones)
    after = trainer.mel_loss(codec(next(tones(4, 2000, 1))[:, None]).audio_values, next(tones(4, 2000, 1)))
    assert after < 0.7 * before
    resumed = CodecTrainer(CONFIG, arguments(tmp_path, max_steps=160))
    assert resumed.step == trainer.step
    assert resumed.spent == trainer.spent
    assert torch.equal(resumed.model.decoder.conv1.weight, codec.decoder.conv1.weight)
    assert DacModel.from_pretrained(tmp_path / "codec").config.n_codebooks == 2


def test_segments_are_reproducible_within_full_scale_and_partly_noisy(tmp_path):
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 8000
    for name, waveform in {"speech": 0.5 * np.sin(2 * np.pi * 200 * time), "noise": rng.normal(size=8000) / 4}.items():
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", waveform, 8000)
    segments = CodecSegments(find_clips(tmp_path / "speech"), find_clips(tmp_path / "noise"), 8000)
    batch = next(segments(32, 400, seed=1))
    assert batch.shape == (32, 400) and batch.dtype == torch.float32 and batch.abs().max() <= 1
    assert torch.equal(batch, next(segments(32, 400, seed=1)))
    spectrum = torch.fft.rfft(batch).abs()
    noisy = spectrum[:, 100:].mean(1) > 0.01 * spectrum.amax(1)  # above 2 kHz a 200 Hz tone has nothing
    assert 3 <= noisy.sum() <= 17  # 30 % of 32
