import pytest
import torch
from torch import nn

from modeling_dacse import layers_dacse
from modeling_dacse.layers_dacse import CachedLayers, join_projections, zeros_to_stream
from tests.tiny import tiny_model, tiny_prompts


@torch.no_grad()
@pytest.mark.parametrize("limit", [2**21, 0], ids=["joint", "apart"])
@pytest.mark.parametrize("bias", [True, False])
def test_joined_projections_are_the_projections(limit, bias):
    projections, hidden = [nn.Linear(8, 4, bias), nn.Linear(8, 6, bias)], torch.randn(2, 3, 8)
    expected = torch.cat([projection(hidden) for projection in projections], dim=-1)
    torch.testing.assert_close(join_projections(projections, limit)(hidden), expected)


def test_zeros_to_stream_are_zeros_that_can_be_written():
    zeros = zeros_to_stream((3, 5, 1000), torch.bfloat16, torch.device("cpu"))
    assert zeros.shape == (3, 5, 1000) and zeros.dtype == torch.bfloat16 and not zeros.any()
    zeros[1] = 1
    assert zeros.float().sum() == 5000


@torch.no_grad()
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_are_those_of_the_library(key_value_heads, dtype):
    model = tiny_model(num_key_value_heads=key_value_heads).model.to(dtype)
    ids = tiny_prompts([4, 4], model.config)["input_ids"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    layers, prompt = CachedLayers(model, *ids.shape), ids.shape[1] - 2
    hidden = [layers.feed(ids[:, :prompt], positions[:, :prompt], (slice(None), slice(0, prompt)), prompt, None)]
    for column in range(prompt, ids.shape[1]):
        place = slice(None), slice(column, column + 1)
        hidden.append(layers.feed(ids[place], positions[place], place, column + 1, None))
    expected = model(ids, use_cache=False).last_hidden_state
    # float32: other kernels add in another order. bfloat16 has 8 bits, and half of them are lost over two layers.
    tolerance = 3e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(model.norm(torch.cat(hidden, dim=1)), expected, atol=tolerance, rtol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("processors", [0, 128])
@pytest.mark.parametrize("key_value_heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_what_feeding_a_column_is(monkeypatch, processors, key_value_heads, dtype):
    monkeypatch.setattr(layers_dacse, "PART", 16)
    monkeypatch.setattr(layers_dacse, "PROCESSORS", processors)
    model = tiny_model(num_key_value_heads=key_value_heads).model.to(dtype)
    ids = tiny_prompts([10, 10], model.config)["input_ids"]
    positions, hidden = torch.arange(ids.shape[1]).expand_as(ids), []
    feeding, stepping = CachedLayers(model, len(ids), 48), CachedLayers(model, len(ids), 48)
    for column in range(ids.shape[1]):
        place = slice(None), slice(column, column + 1)
        expected = feeding.feed(ids[place], positions[place], place, column + 1, None)[:, 0]
        stop = stepping.reach(column + 1)
        bias = torch.zeros(1, 1, stop, dtype=dtype)
        bias[..., column + 1 :] = -torch.inf
        hidden.append((stepping.step(ids[place], positions[place], torch.tensor([column]), bias), expected))
    assert stop == (32 if processors == 0 else 48)
    # As above; in bfloat16 each of the two may be off by that much.
    tolerance = 3e-5 if dtype == torch.float32 else 1e-1
    stepped, expected = (model.norm(torch.stack(part)) for part in zip(*hidden, strict=True))
    torch.testing.assert_close(stepped, expected, atol=tolerance, rtol=tolerance)
