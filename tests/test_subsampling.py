"""Tokens that are trained on alone come out as in the whole model, and the trainer learns from them."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from modeling_dacse import DacSeForEnhancement
from tests.test_requantizing import CODEBOOKS, FRAMES, new_model
from tests.test_requantizing import codec as codec  # noqa: PLC0414, a fixture
from tests.test_trainer import Rows, losses
from training_dacse.arguments import DacSeTrainingArguments
from training_dacse.collator import TokenCollator
from training_dacse.requantizing import assign_channels, set_slowest_pair
from training_dacse.runs import make_trainer
from training_dacse.subsampling import TOLERANCE, HideNoisyHalf, draw_codebooks, run_subsampled


class Swapped(Rows):
    """Clean codes are others than the noisy ones, always the same for the same."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {**row, "clean": (row["noisy"] + 5) % 16}


def make_subsampling_trainer(folder, model, **settings):
    settings = {"max_steps": 1, "learning_rate": 3e-3, "logging_steps": 1, "tokens_per_frame": 1} | settings
    args = DacSeTrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    rows = Swapped(16, frames=(FRAMES,))
    return make_trainer(model, args, rows, rows)


def sequences(model, count):
    rows = Rows(count, frames=(FRAMES,))
    return TokenCollator(model.config)([rows[index] for index in range(count)])["input_ids"]


@torch.no_grad()
def difference_to_the_whole_model(model, ids):
    """Of the hidden states of all tokens, as a share of these."""
    every = torch.arange(CODEBOOKS).expand(len(ids), FRAMES, CODEBOOKS)
    hidden, places = run_subsampled(model, ids, every)
    whole = model.model(ids, use_cache=False).last_hidden_state[:, 1 + FRAMES * CODEBOOKS : -2]
    torch.testing.assert_close(ids.gather(1, places), ids[:, 2 + FRAMES * CODEBOOKS : -1])
    # where a neighbour would lie outside the clip the whole model looks elsewhere
    inner = slice(2 * CODEBOOKS, -2 * CODEBOOKS)
    return (hidden - whole)[:, inner].abs().mean() / whole[:, inner].abs().mean()


def test_all_tokens_come_out_as_in_the_whole_model(codec):
    model = new_model(codec, attention_dropout=0.0)
    with torch.no_grad():
        for layer in model.model.layers:  # as after some training
            layer.mlp.down_proj.weight.normal_(0.0, 0.02)
            layer.self_attn.o_proj.weight[-5:].normal_(0.0, 0.1)
    assert difference_to_the_whole_model(model, sequences(model, 3)) < 0.02


def test_what_training_leaves_looks_at_no_noisy_token(codec, tmp_path):
    hidden, seen = new_model(codec, attention_dropout=0.0), new_model(codec, attention_dropout=0.0)
    make_subsampling_trainer(tmp_path, hidden, max_steps=150, logging_steps=50).train()
    trainer = make_subsampling_trainer(tmp_path, seen, max_steps=150, logging_steps=50)
    trainer.pop_callback(HideNoisyHalf)
    trainer.train()
    ids = sequences(hidden, 4)
    assert difference_to_the_whole_model(hidden, ids) < 0.03
    assert difference_to_the_whole_model(seen, ids) > 0.06


def test_no_layer_writes_over_the_mark_of_clean_tokens(codec, tmp_path):
    model = new_model(codec, attention_dropout=0.0)
    make_subsampling_trainer(tmp_path, model, max_steps=40).train()
    with torch.no_grad():
        states = model.model(sequences(model, 2), use_cache=False, output_hidden_states=True).hidden_states
    for hidden in states[1:-1]:  # behind a layer, before the last normalisation
        clean = hidden[:, 1 + FRAMES * CODEBOOKS :, assign_channels(model.config).side]
        torch.testing.assert_close(clean, clean[:1, :1].expand_as(clean), rtol=1e-4, atol=0.0)


def test_what_is_evaluated_after_an_epoch_looks_at_no_noisy_token(codec, tmp_path):
    differences = []

    class Compare(TrainerCallback):
        def on_evaluate(self, args, state, control, model, **kwargs):
            differences.append(difference_to_the_whole_model(model, sequences(model, 4)))

    model = new_model(codec, attention_dropout=0.0)
    trainer = make_subsampling_trainer(tmp_path, model, max_steps=150, logging_steps=50, eval_strategy="epoch")
    trainer.add_callback(Compare())
    trainer.train()
    assert len(differences) == 75 and max(differences) < 0.03


def test_drawn_tokens_are_those_of_all(codec):
    """In one layer nothing depends on which other tokens were drawn."""
    model = new_model(codec, num_hidden_layers=1)
    ids = TokenCollator(model.config)([Rows(1, frames=(FRAMES,))[0]])["input_ids"]
    every = torch.arange(CODEBOOKS).expand(1, FRAMES, CODEBOOKS)
    few = draw_codebooks(1, FRAMES, CODEBOOKS, 2, ids.device)
    assert (few.diff(dim=-1) > 0).all()
    everything = run_subsampled(model, ids, every)[0].unflatten(1, (FRAMES, CODEBOOKS))
    drawn, places = run_subsampled(model, ids, few)
    expected = everything.gather(2, few[..., None].expand(*few.shape, everything.shape[-1]))
    torch.testing.assert_close(drawn, expected.flatten(1, 2))
    assert ((ids[0, places[0]] - model.config.first_code_id) // model.config.codebook_size == few.flatten()).all()


@pytest.mark.parametrize("spoiled_frames", [0.0, 0.5])
def test_the_trainer_learns_and_holds_out_all_tokens(codec, tmp_path, spoiled_frames):
    model = new_model(codec, attention_dropout=0.0)
    trainer = make_subsampling_trainer(tmp_path, model, max_steps=40, spoiled_frames=spoiled_frames)
    held_out = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert losses(trainer)[-1] < 0.6 * losses(trainer)[0]
    assert trainer.evaluate()["eval_loss"] < 0.6 * held_out
    trainer.refuse_what_cannot_work()  # what was trained is still what the whole model does


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
        assert losses(trainer)[0] == pytest.approx(torch.tensor(float(model.config.vocab_size)).log().item(), rel=1e-3)


def test_later_layers_may_have_come_to_see_the_noisy_half(codec, tmp_path):
    """As a training on a few tokens leaves them: it can be gone on with."""
    model = new_model(codec, attention_dropout=0.0)
    nothing = torch.zeros(model.config.hidden_size)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            set_slowest_pair(layer.self_attn, nothing, nothing)
            layer.self_attn.o_proj.weight.normal_(0.0, 0.5)
    assert difference_to_the_whole_model(model, sequences(model, 2)) > TOLERANCE
    make_subsampling_trainer(tmp_path, model, max_steps=1).train()


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
