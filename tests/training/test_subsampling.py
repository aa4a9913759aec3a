"""Tokens that are trained on alone come out as in the whole model, and the trainer learns from them."""

import copy
import math

import pytest
import torch

from modeling_dacse import DacSeForEnhancement
from tests.training.test_requantizing import CODEBOOKS, FRAMES, new_model
from tests.training.test_requantizing import codec as codec  # noqa: PLC0414, a fixture
from tests.training.tiny_recipe import load
from tests.training.tiny_tokens import Rows, logged_losses, tiny_trainer
from training_dacse.tokens.collate import TokenCollator

subsampling = load("subsampling")
draw_few, draw_noisy, run_subsampled = subsampling.draw_few, subsampling.draw_noisy, subsampling.run_subsampled


class Swapped(Rows):
    """Clean codes are others than the noisy ones, always the same for the same."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {**row, "clean": (row["noisy"] + 5) % 16}


def make_subsampling_trainer(folder, model, tokens_per_frame=1, spoiled_frames=0.0, **settings):
    subsampling.keep_lookup(model)
    objective = subsampling.SubsamplingObjective(model.config, None, spoiled_frames, tokens_per_frame)
    rows = Swapped(16, frames=(FRAMES,))
    settings = {"max_steps": 1, "learning_rate": 3e-3} | settings
    return tiny_trainer(folder, rows, model, objective=objective, **settings)


def sequences(model, count):
    rows = Rows(count, frames=(FRAMES,))
    return TokenCollator(model.config)([rows[index] for index in range(count)])["input_ids"]


@torch.no_grad()
def difference_to_the_whole_model(model, ids):
    """Of the hidden states of all tokens, as a share of these."""
    every = torch.arange(CODEBOOKS).expand(len(ids), FRAMES, CODEBOOKS)
    noisy = torch.arange(1 + FRAMES * CODEBOOKS).expand(len(ids), -1)
    hidden, places = run_subsampled(model, ids, every, noisy)
    whole = model.model(ids, use_cache=False).last_hidden_state[:, 1 + FRAMES * CODEBOOKS : -2]
    torch.testing.assert_close(ids.gather(1, places), ids[:, 2 + FRAMES * CODEBOOKS : -1])
    # where a neighbour would lie outside the clip the whole model looks elsewhere
    inner = slice(2 * CODEBOOKS, -2 * CODEBOOKS)
    return (hidden - whole)[:, inner].abs().mean() / whole[:, inner].abs().mean()


def see_the_noisy_half(model):
    """Has the layers behind the first look anywhere, and say much."""
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.k_proj.weight.zero_()
            layer.self_attn.o_proj.weight.normal_(0.0, 0.1)


def test_all_tokens_come_out_as_in_the_whole_model(codec):
    model = new_model(codec, attention_dropout=0.0)
    see_the_noisy_half(model)
    assert difference_to_the_whole_model(model, sequences(model, 3)) < 0.02


def test_drawn_tokens_stand_for_all(codec):
    """Over many draws, what later layers make of a token is on average what they make of it in the whole model."""
    model = new_model(codec, attention_dropout=0.0, num_hidden_layers=2)
    see_the_noisy_half(model)
    ids, tokens = sequences(model, 1), FRAMES * CODEBOOKS
    every = torch.arange(CODEBOOKS).expand(1, FRAMES, CODEBOOKS)
    with torch.no_grad():
        whole = model.model(ids, use_cache=False).last_hidden_state[:, 1 + tokens : -2]
        draws = [run_subsampled(model, ids, every, draw_noisy(1, tokens, ids.device))[0] for _ in range(300)]
        one, mean = draws[0], torch.stack(draws).mean(0)
    inner = slice(2 * CODEBOOKS, -2 * CODEBOOKS)
    error, noise = ((x - whole)[:, inner].abs().mean() for x in (mean, one))
    assert error < 0.3 * noise


def test_it_runs_in_half_precision(codec):
    model = new_model(codec, attention_dropout=0.0)
    ids = sequences(model, 2)
    few = draw_few(2, FRAMES, CODEBOOKS, count=1, device=ids.device), draw_noisy(2, FRAMES * CODEBOOKS, ids.device)
    full = run_subsampled(model, ids, *few)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = run_subsampled(model, ids, *few)[0]
    assert (half.float() - full).abs().mean() < 0.05 * full.abs().mean()


def test_drawn_tokens_are_those_of_all(codec):
    """In one layer nothing depends on which other tokens were drawn."""
    model = new_model(codec, num_hidden_layers=1)
    ids = TokenCollator(model.config)([Rows(1, frames=(FRAMES,))[0]])["input_ids"]
    every = torch.arange(CODEBOOKS).expand(1, FRAMES, CODEBOOKS)
    few = draw_few(1, FRAMES, CODEBOOKS, count=2, device=ids.device)
    assert (few.diff(dim=-1) > 0).all()
    noisy = draw_noisy(1, FRAMES * CODEBOOKS, ids.device)
    everything = run_subsampled(model, ids, every, noisy)[0].unflatten(1, (FRAMES, CODEBOOKS))
    drawn, places = run_subsampled(model, ids, few, noisy)
    expected = everything.gather(2, few[..., None].expand(*few.shape, everything.shape[-1]))
    torch.testing.assert_close(drawn, expected.flatten(1, 2))
    assert ((ids[0, places[0]] - model.config.first_code_id) // model.config.codebook_size == few.flatten()).all()


@pytest.mark.parametrize("spoiled_frames", [0.0, 0.5])
def test_the_trainer_learns_and_holds_out_all_tokens(codec, tmp_path, spoiled_frames):
    model = new_model(codec, attention_dropout=0.0)
    trainer = make_subsampling_trainer(tmp_path, model, max_steps=40, spoiled_frames=spoiled_frames)
    held_out = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = logged_losses(trainer)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    assert trainer.evaluate()["eval_loss"] < 0.6 * held_out
    trainer.objective.check(model, {"input_ids": sequences(model, 1)})  # what was trained is what the whole model does


def test_the_loss_is_a_mean_over_what_is_trained(codec, tmp_path):
    model = new_model(codec, attention_dropout=0.0)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every id is as likely as any other
    one, two = (
        make_subsampling_trainer(
            tmp_path,
            copy.deepcopy(model),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            tokens_per_frame=count,
        )
        for count in (1, 2)
    )
    for trainer in (one, two):
        trainer.train()
        assert logged_losses(trainer)[0] == pytest.approx(math.log(model.config.vocab_size), rel=1e-3)


def test_later_layers_may_see_the_noisy_half(codec, tmp_path):
    model = new_model(codec, attention_dropout=0.0)
    see_the_noisy_half(model)
    make_subsampling_trainer(tmp_path, model).train()


def test_another_model_is_refused(codec, tmp_path):
    model = new_model(codec, attention_dropout=0.0)
    with pytest.raises(ValueError, match="tokens_per_frame is 4, but a frame has 3"):
        make_subsampling_trainer(tmp_path, model, tokens_per_frame=4)
    wider = new_model(codec, hidden_size=176, num_attention_heads=8)
    with pytest.raises(ValueError, match="knows where 7 heads look, but this model has 8"):
        make_subsampling_trainer(tmp_path, wider)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="the first layer of this one is no lookup"):
        make_subsampling_trainer(tmp_path, DacSeForEnhancement(model.config))
