"""The trainer of small codecs: losses fall, judges join, a run that is stopped or prolonged goes on."""

import itertools
import json

import pytest
import torch
from transformers import DacModel

from tests.training.tiny_codec import CONFIG, arguments, shape_with, tones
from training_dacse.codec.arguments import CodecTrainingArguments
from training_dacse.codec.trainer import CodecTrainer

ADVERSARIAL = {"adversarial_from": 0.5, "discriminator_width": 2, "batch_size": 2}


@pytest.mark.parametrize("skip_full_rate", [False, True])
def test_training_lowers_the_mel_loss_and_leaves_a_codec(tmp_path, skip_full_rate):
    trainer = CodecTrainer(CONFIG, arguments(tmp_path, skip_full_rate=skip_full_rate))
    codec = trainer.train(tones)
    first, *_, last = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert last["mel"] < 0.6 * first["mel"] and last["step"] == 150
    held_out = next(tones(4, 2000, 7))
    loaded = DacModel.from_pretrained(tmp_path / "codec")
    assert trainer.distances(loaded(held_out[:, None]).audio_values, held_out)["mel"] < 0.6 * first["mel"]
    assert all(torch.equal(weight, codec.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_a_run_that_skips_the_full_rate_leaves_it_to_the_waveform(tmp_path):
    trainer = CodecTrainer(CONFIG, arguments(tmp_path, skip_full_rate=True, max_steps=20))
    codec, waveform = trainer.train(tones), next(tones(2, 1600, 3))[:, None]
    with torch.no_grad():
        latents = codec.encoder(waveform)
        torch.testing.assert_close(trainer.encode(waveform), trainer.model.encoder(waveform), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(trainer.decode(latents), trainer.model.decoder(latents), rtol=1e-5, atol=1e-5)


def test_training_the_decoder_alone_leaves_the_codes(tmp_path):
    first = CodecTrainer(CONFIG, arguments(tmp_path / "first", max_steps=5)).train(tones)
    given = {"max_steps": 5, "decoder_only": True, "start_from": str(tmp_path / "first/codec")}
    second = CodecTrainer(CONFIG, arguments(tmp_path / "second", **given)).train(tones)
    before, after = first.state_dict(), second.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


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


def run_in_pieces(path, config, given, stops):
    """A run that is stopped at each of these steps and goes on; returns the last trainer."""
    for before, stop in itertools.pairwise([0, *stops]):

        def some(batch_size, samples, seed, first, left=stop - before):
            yield from itertools.islice(tones(batch_size, samples, seed, first), left)

        trainer = CodecTrainer(config, arguments(path, **given))
        assert trainer.step == before
        trainer.train(some)
    return trainer


def assert_same_state(expected, found):
    for name, part in expected._parts().items():
        if name != "optimizer" and "optimizer" not in name:
            other = found._parts()[name].state_dict()
            assert all(torch.equal(value, other[key]) for key, value in part.state_dict().items()), name


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    config = shape_with(quantizer_dropout=0.5)
    given = ADVERSARIAL | {"restart_every": 2, "max_steps": 12, "decay": 0.3}
    whole = CodecTrainer(config, arguments(tmp_path / "whole", **given))
    whole.train(tones)
    parts = run_in_pieces(tmp_path / "parts", config, given, (5, 10, 12))
    assert parts.step == 12
    assert_same_state(whole, parts)


def test_a_run_that_ended_goes_on_from_before_its_learning_rate_fell(tmp_path):
    given = {"decay": 0.5, "restart_every": 2}
    whole = CodecTrainer(CONFIG, arguments(tmp_path / "whole", max_steps=16, **given))
    whole.train(tones)
    CodecTrainer(CONFIG, arguments(tmp_path / "parts", max_steps=8, **given)).train(tones)
    prolonged = CodecTrainer(CONFIG, arguments(tmp_path / "parts", max_steps=16, **given))
    assert prolonged.step == 4
    prolonged.train(tones)
    assert_same_state(whole, prolonged)


def test_a_run_may_end_sooner_than_was_planned(tmp_path):
    given = {"decay": 0.1, "restart_every": 2, "restart_until": 1.0}
    whole = CodecTrainer(CONFIG, arguments(tmp_path / "whole", max_steps=10, **given))
    whole.train(tones)
    run_in_pieces(tmp_path / "parts", CONFIG, given | {"max_steps": 1000}, (9,))
    ended = CodecTrainer(CONFIG, arguments(tmp_path / "parts", max_steps=10, **given))
    ended.train(tones)
    assert_same_state(whole, ended)


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


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"max_steps": None}, "max_seconds and max_steps"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"decay": 1.5}, "decay is 1.5"),
    ],
)
def test_wrong_settings_are_named_with_their_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        CodecTrainingArguments(**{"output_dir": "runs/codec", "max_steps": 10} | wrong)


@pytest.mark.gpu
def test_a_compiled_run_in_bf16_on_a_gpu_lowers_the_mel_loss(tmp_path):
    given = {"compile": True, "bf16": True, "adversarial_from": 0.5, "discriminator_width": 4, "skip_full_rate": True}

    def segments(*wanted):
        return (batch.cuda() for batch in tones(*wanted))

    CodecTrainer(CONFIG, arguments(tmp_path, **given), "cuda").train(segments)
    first, *_, last = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert last["mel"] < 0.8 * first["mel"] and "adversarial" in last
    resumed = CodecTrainer(CONFIG, arguments(tmp_path, **given, max_steps=160), "cuda")
    assert resumed.step == 120
    resumed.train(segments)
