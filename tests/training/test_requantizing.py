"""A model started as the codec's quantizer looks where it should and answers as the quantizer would."""

import pytest
import torch

from modeling_dacse import DacSeForEnhancement
from tests.tiny import tiny_codec, tiny_config, tiny_prompts
from tests.training.tiny_recipe import load
from training_dacse.codec.codebooks import fit_codebooks

requantizing = load("requantizing")

FRAMES, CODEBOOKS = 10, 3
SHAPE = {
    "hidden_size": 168,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "initializer_range": 0.02,
}


@pytest.fixture(scope="module")
def codec():
    """A tiny codec whose codebooks fit latents of three directions, which all of them share."""
    codec, generator = tiny_codec(), torch.Generator().manual_seed(1)
    directions = torch.randn(3, codec.config.hidden_size, generator=generator)
    latents = torch.randn(400, 3, generator=generator) @ directions
    fit_codebooks(codec, latents, torch.Generator().manual_seed(0))
    return codec


def new_model(codec, **overrides):
    torch.manual_seed(0)
    model = DacSeForEnhancement(tiny_config(**SHAPE | overrides)).eval()
    requantizing.start_as_quantizer(model, codec, FRAMES)
    return model


def test_heads_look_at_whole_frames_and_at_the_noisy_code(codec):
    model = new_model(codec, attn_implementation="eager")
    prompt = tiny_prompts([FRAMES], model.config)["input_ids"]
    ids = torch.cat([prompt, prompt[:, 1 : 1 + FRAMES * CODEBOOKS]], dim=1)
    for attention in model.model(ids, output_attentions=True).attentions[:1]:
        for frame in range(2, FRAMES - 2):
            noisy, clean = 1 + frame * CODEBOOKS, 2 + (FRAMES + frame) * CODEBOOKS
            for codebook in range(CODEBOOKS):
                heads = attention[0, :, clean + codebook - 1]  # from where the code is predicted
                for head, start in (
                    (0, noisy),
                    (3, noisy + CODEBOOKS),
                    (4, noisy - CODEBOOKS),
                    (5, noisy + 2 * CODEBOOKS),
                ):
                    share = heads[head, start : start + CODEBOOKS]
                    assert share.sum() > 0.9, (frame, codebook, head)
                    torch.testing.assert_close(share, share.mean().expand(CODEBOOKS), rtol=0.02, atol=0.0)
                so_far = heads[1, clean : clean + codebook]
                torch.testing.assert_close(so_far, torch.full_like(so_far, 1 / CODEBOOKS), rtol=0.05, atol=0.0)
                assert heads[2, noisy + codebook] > 0.9
                assert heads[6, 1 + FRAMES * CODEBOOKS] > 0.999  # [start_clean]


def test_layers_after_the_first_see_all_clean_tokens_and_no_noisy_one(codec):
    model = new_model(codec, attn_implementation="eager")
    prompt = tiny_prompts([FRAMES], model.config)["input_ids"]
    ids = torch.cat([prompt, prompt[:, 1 : 1 + FRAMES * CODEBOOKS]], dim=1)
    behind = 1 + FRAMES * CODEBOOKS  # from [start_clean] on
    for attention in model.model(ids, output_attentions=True).attentions[1:]:
        shares = attention[0, :, behind:, behind:]
        assert shares.sum(-1).min() > 0.999
        assert shares[:, -1].max() < 5 / shares.shape[-1]


def test_it_answers_with_the_codes_that_the_quantizer_gives_the_noisy_frames(codec, monkeypatch):
    monkeypatch.setattr(requantizing, "TRUST", 0.0)  # not even a hint of what the noisy codes are
    model = new_model(codec)
    prompts = tiny_prompts([FRAMES] * 8, model.config)
    codes = lambda ids: (ids.unflatten(1, (-1, CODEBOOKS)) - 5) % model.config.codebook_size  # noqa: E731
    noisy = codes(prompts["input_ids"][:, 1:-1]).transpose(1, 2)
    wanted = codec.quantizer(codec.quantizer.from_codes(noisy)[0])[1]
    answer = codes(model.generate(**prompts)[:, 32:62]).transpose(1, 2)
    assert (noisy == wanted).float().mean() < 0.9  # random codes are not their own quantization
    agreement = (answer == wanted).float().mean((0, 2))
    assert agreement[0] > 0.85 and agreement.mean() > 0.7, agreement


def test_the_noisy_code_is_trusted(codec):
    model = new_model(codec)
    prompts = tiny_prompts([FRAMES] * 4, model.config)
    answer = model.generate(**prompts)[:, 32:62]
    assert (answer == prompts["input_ids"][:, 1:-1]).float().mean() > 0.5


@pytest.mark.parametrize(
    "overrides",
    [{"num_attention_heads": 6}, {"hidden_size": 140}, {"tie_word_embeddings": True}],
)
def test_a_shape_that_does_not_allow_it_is_refused(codec, overrides):
    with pytest.raises(ValueError, match="cannot start as the codec's quantizer"):
        new_model(codec, **overrides)
