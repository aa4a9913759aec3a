"""The trainer of small codecs: a signal survives its start, codes come back to life, judges join, a run goes on."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import DacConfig, DacModel

from training_dacse.clips.sources import find_clips
from training_dacse.codec.codebooks import CodebookWatch, fit_codebooks
from training_dacse.codec.discriminators import Discriminators, discriminator_loss, generator_losses
from training_dacse.codec.losses import ComplexSpectrumLoss, MultiScaleMelLoss
from training_dacse.codec.segments import CodecSegments
from training_dacse.codec.start import initialize_codec
from training_dacse.codec.trainer import CodecTrainer, CodecTrainingArguments

CONFIG = DacConfig(
    encoder_hidden_size=4,
    decoder_hidden_size=16,
    downsampling_ratios=(4, 4),
    n_codebooks=2,
    codebook_size=16,
    codebook_dim=4,
    sampling_rate=8000,
)


def tones(batch_size, samples, seed, first=0):
    """Endless batches of sine waves of random pitch, (batch, sample)."""
    time = torch.arange(samples) / CONFIG.sampling_rate
    for number in itertools.count(first):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        pitch = 100 + 400 * torch.rand(batch_size, 1, generator=generator)
        yield 0.5 * torch.sin(2 * torch.pi * pitch * time)


def arguments(path, **overrides):
    given = {"max_steps": 150, "batch_size": 4, "segment_seconds": 0.25, "warmup_steps": 5, "restart_every": 5}
    return CodecTrainingArguments(str(path), **{**given, **overrides})


def signal_to_noise(estimate, target):
    """In dB, away from the ends."""
    inner = slice(200, -200)
    return 10 * torch.log10(target[:, inner].square().mean() / (estimate - target)[:, inner].square().mean())


@torch.no_grad()
def test_a_new_codec_without_its_codebooks_reconstructs_a_waveform():
    codec, waveform = DacModel(CONFIG), 0.2 * next(tones(4, 1600, 0))
    initialize_codec(codec, torch.Generator().manual_seed(0))
    assert signal_to_noise(codec.decoder(codec.encoder(waveform[:, None]))[:, 0], waveform) > 20


@torch.no_grad()
def test_fitted_codebooks_find_the_nearest_codes_and_leave_less_with_each():
    codec, generator = DacModel(shape_with(n_codebooks=3)), torch.Generator().manual_seed(0)
    latents = torch.randn(800, 3, generator=generator) @ torch.randn(3, codec.config.hidden_size, generator=generator)
    fit_codebooks(codec, latents, generator)
    left, energies = latents, [latents.square().mean()]
    for quantizer in codec.quantizer.quantizers:
        added = quantizer.out_proj(quantizer.codebook.weight.T[None])[0].T
        codes = quantizer(left.T[None])[3][0]
        assert (codes == torch.cdist(left, added).argmin(1)).float().mean() > 0.9
        left = left - added[codes]
        energies.append(left.square().mean())
    assert all(after < 0.5 * before for before, after in itertools.pairwise(energies))


def test_complex_loss_hears_a_phase_that_the_mel_loss_does_not():
    waveform = next(tones(2, 4096, 0))
    complex_loss, mel_loss = ComplexSpectrumLoss(8000), MultiScaleMelLoss(8000)
    assert complex_loss(waveform, waveform) == 0
    assert complex_loss(-waveform, waveform) > 1.5 * complex_loss(0 * waveform, waveform)
    assert mel_loss(-waveform, waveform) == 0


def test_training_the_decoder_alone_leaves_the_codes(tmp_path):
    first = CodecTrainer(CONFIG, arguments(tmp_path / "first", max_steps=5)).train(tones)
    given = {"max_steps": 5, "decoder_only": True, "start_from": str(tmp_path / "first/codec")}
    second = CodecTrainer(CONFIG, arguments(tmp_path / "second", **given)).train(tones)
    before, after = first.state_dict(), second.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


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


def shape_with(**overrides):
    return DacConfig(**(CONFIG.to_dict() | overrides))


def decoder_inputs(trainer, batch):
    """What the decoder is given in one training step, and what all codebooks together say."""
    given = []
    trainer.model.decoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    _, codes, _, _ = trainer._reconstruct(batch)
    return given[0], trainer.model.quantizer.from_codes(codes)[0], codes


def test_quantizer_dropout_decodes_a_part_of_the_batch_from_the_first_codebooks(tmp_path):
    batch = next(tones(64, 2048, 0))
    given, whole, codes = decoder_inputs(CodecTrainer(CONFIG, arguments(tmp_path)), batch)
    torch.testing.assert_close(given, whole)  # without dropout: all codebooks
    trainer = CodecTrainer(shape_with(quantizer_dropout=0.5), arguments(tmp_path))
    given, whole, codes = decoder_inputs(trainer, batch)
    first = trainer.model.quantizer.from_codes(codes[:, :1])[0]
    dropped = (given - whole).abs().amax((1, 2)) > 1e-4
    assert 4 <= dropped[:32].sum() <= 28 and not dropped[32:].any()
    torch.testing.assert_close(given[dropped], first[dropped])  # of two codebooks one is left


ADVERSARIAL = {"adversarial_from": 0.5, "discriminator_width": 2, "segment_seconds": 0.3, "batch_size": 2}


def test_discriminators_learn_to_tell_noise_from_tones():
    torch.manual_seed(0)
    judges = Discriminators(width=2)
    optimizer = torch.optim.Adam(judges.parameters(), 2e-3)
    real, fake = next(tones(4, 2400, 0)), 0.3 * torch.randn(4, 2400)
    before = discriminator_loss(judges(real), judges(fake))
    for _ in range(30):
        optimizer.zero_grad()
        discriminator_loss(judges(real), judges(fake)).backward()
        optimizer.step()
    after = discriminator_loss(judges(real), judges(fake))
    assert after < 0.5 * before
    adversarial, matching = generator_losses(judges(real), judges(real))
    assert matching == 0 and adversarial < generator_losses(judges(real), judges(fake))[0]


def test_verdicts_do_not_depend_on_level_or_offset():
    judges, waveform = Discriminators(width=2), next(tones(2, 2400, 0))
    for here, there in zip(judges(waveform), judges(0.1 * waveform + 0.2), strict=True):
        torch.testing.assert_close(here[-1], there[-1], rtol=1e-3, atol=1e-4)  # float32 after the offset is taken out


def test_discriminators_join_at_their_part_of_the_budget_and_move_the_codec(tmp_path):
    given = ADVERSARIAL | {"max_steps": 6, "restart_every": 1}
    trainer = CodecTrainer(CONFIG, arguments(tmp_path / "judged", **given))
    judges = [parameter.clone() for parameter in trainer.discriminators.parameters()]
    judged = trainer.train(tones)
    lines = [json.loads(line) for line in (tmp_path / "judged/log.jsonl").read_text().splitlines()]
    assert ["adversarial" in line for line in lines] == [False] * 3 + [True] * 3
    assert not any(torch.equal(*pair) for pair in zip(judges, trainer.discriminators.parameters(), strict=True))
    alone = CodecTrainer(CONFIG, arguments(tmp_path / "alone", **given | {"adversarial_from": 1.0})).train(tones)
    assert not torch.equal(judged.decoder.conv2.weight, alone.decoder.conv2.weight)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    config = shape_with(quantizer_dropout=0.5)
    given = ADVERSARIAL | {"restart_every": 2, "max_steps": 12}
    whole = CodecTrainer(config, arguments(tmp_path / "whole", **given))
    whole.train(tones)

    def five_at_a_time(batch_size, samples, seed, first):
        yield from itertools.islice(tones(batch_size, samples, seed, first), 5)

    for steps in (5, 10, 12):
        parts = CodecTrainer(config, arguments(tmp_path / "parts", **given))
        parts.train(five_at_a_time)
        assert parts.step == steps
    for name in ("model", "discriminators"):
        expected, found = (getattr(trainer, name).state_dict() for trainer in (whole, parts))
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_run_may_start_from_a_trained_codec(tmp_path):
    given = {"max_steps": 3}
    first = CodecTrainer(CONFIG, arguments(tmp_path / "first", **given)).train(tones)
    second = CodecTrainer(CONFIG, arguments(tmp_path / "second", **given, start_from=str(tmp_path / "first/codec")))
    assert torch.equal(second.model.encoder.conv1.weight, first.encoder.conv1.weight) and second.step == 0


def test_autocast_reaches_the_convolutions_but_not_the_codebooks(tmp_path):
    trainer = CodecTrainer(CONFIG, arguments(tmp_path, **ADVERSARIAL, bf16=True, max_steps=2))
    dtypes = {}

    def watch(name, module):
        module.register_forward_hook(lambda module, inputs, output: dtypes.__setitem__(name, output.dtype))

    watch("convolution", trainer.model.decoder.conv2)
    watch("projection", trainer.model.quantizer.quantizers[0].in_proj)
    watch("judge", trainer.discriminators.parts[0].verdict)
    trainer.train(tones)
    assert dtypes == {"convolution": torch.bfloat16, "projection": torch.float32, "judge": torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_a_broken_loss_ends_the_run_before_anything_is_saved(tmp_path):
    trainer = CodecTrainer(CONFIG, arguments(tmp_path, max_steps=3, restart_every=100))
    with torch.no_grad():
        trainer.model.decoder.conv2.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="mel.*learning rate"):
        trainer.train(tones)
    assert not trainer.checkpoint_path.exists()


@pytest.mark.gpu
def test_a_compiled_run_in_bf16_on_a_gpu_lowers_the_mel_loss(tmp_path, recordings):
    segments = CodecSegments(**recordings, sampling_rate=8000, device="cuda")
    given = {"compile": True, "bf16": True, "adversarial_from": 0.5, "discriminator_width": 4, "restart_every": 25}
    trainer = CodecTrainer(CONFIG, arguments(tmp_path, **given, segment_seconds=0.3), "cuda")
    trainer.train(segments)
    first, *_, last = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert last["mel"] < 0.8 * first["mel"] and "adversarial" in last
    resumed = CodecTrainer(CONFIG, arguments(tmp_path, **given, max_steps=160), "cuda")
    assert resumed.step == trainer.step
    resumed.train(segments)


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
