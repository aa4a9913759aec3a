"""Estimates of what training costs agree with what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import tiny_model
from training_dacse.experiments.costs import training_flops_per_token, training_memory


def test_flops_are_those_torch_counts():
    model = tiny_model(max_position_embeddings=64, attn_implementation="eager", attention_dropout=0.0)
    ids = torch.randint(5, 53, (1, 64))
    with FlopCounterMode(display=False) as counter:
        model(ids, logits_to_keep=32).logits.sum().backward()
    # torch leaves out what is not a matrix product; the gradient of the embedding's input is not needed
    assert training_flops_per_token(model.config) * 64 == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_state_is_weights_gradients_and_moments():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randint(5, 53, (1, 16))).logits.sum().backward()
    optimizer.step()
    held = sum(weight.numel() * 8 for weight in model.parameters())
    held += sum(state[key].numel() * 4 for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    assert training_memory(model.config, model.num_parameters(), 64)["state"] == held


def test_checkpointing_saves_activations():
    memory = training_memory(tiny_model(num_hidden_layers=8).config, 1000, 64)
    assert memory["activations_checkpointed"] < memory["activations"]
