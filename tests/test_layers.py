import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from modeling_dacse.fast import layers as fast_layers
from modeling_dacse.fast.layers import (
    FEW_TOKENS,
    CachedLayers,
    join_projections,
    normalize,
    sum_up,
    zeros_to_stream,
)
from tests.tiny import tiny_model, tiny_prompts


@torch.no_grad()
@pytest.mark.parametrize("limit", [2**21, 0], ids=["joint", "apart"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, FEW_TOKENS, FEW_TOKENS + 1])
def test_joined_projections_are_the_projections(limit, bias, is_alone, tokens):
    projections, hidden = [nn.Linear(8, 4, bias), nn.Linear(8, 6, bias)], torch.randn(tokens, 8)
    expected = torch.cat([projection(hidden) for projection in projections], dim=-1)
    torch.testing.assert_close(join_projections(projections, limit, is_alone)(hidden), expected)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sum_is_written_over_hidden_states(bias, tokens, dtype):
    linear, hidden = nn.Linear(6, 8, bias, dtype=dtype), torch.randn(tokens, 8, dtype=dtype)
    inputs = torch.randn(6, tokens, dtype=dtype).t()  # as a product of few tokens leaves them
    expected = hidden + linear(inputs)
    out = sum_up(linear)(hidden, inputs)
    assert out.data_ptr() == hidden.data_ptr()
    # bfloat16 has 8 bits; the stock sum rounds twice, a fused one once
    torch.testing.assert_close(out, expected, atol=1e-6 if dtype == torch.float32 else 4e-2, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_are_the_librarys(dtype):
    norm = LlamaRMSNorm(16, eps=1e-2).to(dtype)
    nn.init.normal_(norm.weight)
    hidden = torch.randn(5, 16, dtype=dtype) * torch.logspace(-4, 2, 5, dtype=dtype)[:, None]
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(normalize(norm)(hidden), norm(hidden), atol=tolerance, rtol=tolerance)


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
    hidden = [layers.feed(ids[:, :prompt], positions[:, :prompt], (slice(None), slice(0, prompt)), None)]
    for column in range(prompt, ids.shape[1]):
        place = slice(None), slice(column, column + 1)
        hidden.append(layers.feed(ids[place], positions[place], place, None))
    expected = model(ids, use_cache=False).last_hidden_state
    # float32: other kernels add in another order. bfloat16 has 8 bits, and half of them are lost over two layers.
    tolerance = 3e-5 if dtype == torch.float32 else 5e-2
    expected = expected[:, prompt - 1 :]
    torch.testing.assert_close(model.norm(torch.cat(hidden, dim=1)), expected, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_masked_columns_are_not_seen():
    model = tiny_model().model
    ids = tiny_prompts([4, 4], model.config)["input_ids"]
    positions, place = torch.arange(ids.shape[1]).expand_as(ids), (slice(None), slice(0, ids.shape[1]))
    mask = torch.ones(2, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask[1, ..., :3] = torch.eye(ids.shape[1], 3, dtype=torch.bool)
    hidden = CachedLayers(model, *ids.shape).feed(ids, positions, place, mask)
    attention_mask = torch.ones_like(ids)
    attention_mask[1, :3] = 0
    expected = model(ids, attention_mask=attention_mask, position_ids=positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(model.norm(hidden), expected[:, -1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("processors", [0, 128])
@pytest.mark.parametrize("key_value_heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_what_feeding_a_column_is(monkeypatch, processors, key_value_heads, dtype):
    monkeypatch.setattr(fast_layers, "PART", 16)
    monkeypatch.setattr(fast_layers, "PROCESSORS", processors)
    model = tiny_model(num_key_value_heads=key_value_heads).model.to(dtype)
    ids = tiny_prompts([10, 10], model.config)["input_ids"]
    positions, hidden = torch.arange(ids.shape[1]).expand_as(ids), []
    feeding, stepping = CachedLayers(model, len(ids), 48), CachedLayers(model, len(ids), 48)
    for column in range(ids.shape[1]):
        place = slice(None), slice(column, column + 1)
        expected = feeding.feed(ids[place], positions[place], place, None)[:, 0]
        stop = stepping.reach(column + 1)
        bias = torch.zeros(1, 1, stop, dtype=dtype)
        bias[..., column + 1 :] = -torch.inf
        hidden.append((stepping.step(ids[place], positions[place], torch.tensor([column]), bias), expected))
    assert stop == (32 if processors == 0 else 48)
    # As above; in bfloat16 each of the two may be off by that much.
    tolerance = 3e-5 if dtype == torch.float32 else 1e-1
    stepped, expected = (model.norm(torch.stack(part)) for part in zip(*hidden, strict=True))
    torch.testing.assert_close(stepped, expected, atol=tolerance, rtol=tolerance)
