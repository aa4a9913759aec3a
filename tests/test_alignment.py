"""Aligned heads look at the noisy frame of the same time from the first step."""

import pytest
import torch

from tests.tiny import tiny_model, tiny_prompts
from training_dacse.alignment import align_attention


def test_heads_of_a_new_model_look_at_the_aligned_frame():
    frames, tokens = 10, 30
    model = tiny_model(
        hidden_size=256, initializer_range=0.02, max_position_embeddings=128, attn_implementation="eager"
    )
    align_attention(model, frames)
    prompt = tiny_prompts([frames], model.config)["input_ids"]
    ids = torch.cat([prompt, prompt[:, 1 : 1 + tokens]], dim=1)
    attention = model.model(ids, output_attentions=True).attentions[0][0]
    clean = torch.arange(8) + tokens + 6  # positions from which clean tokens are predicted, away from the ends
    for head, distance in enumerate((tokens, tokens - 3, tokens + 3)):
        assert attention[head, clean, clean - distance].mean() > 0.8


def test_an_aligned_model_starts_by_copying():
    model = tiny_model(hidden_size=256, initializer_range=0.02, max_position_embeddings=128, num_hidden_layers=1)
    prompts = tiny_prompts([10, 10], model.config)
    torch.manual_seed(0)
    align_attention(model, 10)
    clean = model.generate(**prompts)[:, 32:62]
    noisy = prompts["input_ids"][:, 1:31]
    assert (clean == noisy).float().mean() > 0.9


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_a_model_without_three_heads_of_its_own_keys_is_refused(heads):
    model = tiny_model(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    with pytest.raises(ValueError, match="leave out window_frames"):
        align_attention(model, 10)
