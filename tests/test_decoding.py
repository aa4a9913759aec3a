import itertools
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modeling_dacse.fast import decoding, layers
from modeling_dacse.fast.decoding import decode_grid
from tests.tiny import tiny_code_vectors, tiny_model, tiny_prompts


@pytest.fixture(scope="module")
def model():
    return tiny_model()


class Uncaptured:
    """Decodes frames as a CUDA graph would, by the same function of tensors, and remembers how far each looked."""

    stops: list[int] = []

    def __init__(self, device):
        self.stops.clear()

    def run(self, decode_frame, stop):
        self.stops.append(stop)
        decode_frame(stop)


def by_frames(patch, part=8, processors=128):
    """Has everything decoded frame by frame, looking at whole parts where rows times heads reach `processors`."""
    patch.setattr(decoding.GridDecoder, "_can_capture", lambda _: True)
    patch.setattr(decoding, "FrameGraph", Uncaptured)
    patch.setattr(decoding, "PART", part)
    patch.setattr(layers, "PART", part)
    patch.setattr(layers, "PROCESSORS", processors)


def decode(model, **arguments):
    return model.generate(**arguments, custom_generate=decode_grid)


def count_passes(model, call):
    """The result of a call, and how many times it ran the layers."""
    passes = []
    hook = model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    result = call()
    hook.remove()
    return result, len(passes)


def begin(prompts, degrees, config):
    """Appends random clean ids to each row, `degrees` many, padded on the left."""
    rows = []
    for ids, mask, degree in zip(prompts["input_ids"], prompts["attention_mask"], degrees, strict=True):
        first = config.first_code_id + torch.arange(degree) % config.num_codebooks * config.codebook_size
        rows.append(torch.cat([ids[mask.bool()], first + torch.randint(config.codebook_size, (degree,))]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, config.pad_token_id, padding_side="left")
    return {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 999))
def test_ids_are_those_of_the_librarys_loop(model, data, seed):
    config = model.config
    frames = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(seed)
        degrees = [data.draw(st.integers(0, count * config.num_codebooks)) for count in frames]
        arguments = begin(tiny_prompts(frames, config, seed), degrees, config)
        if data.draw(st.booleans()):
            width = max(frames) * config.num_codebooks
            first = config.first_code_id + torch.arange(width) % config.num_codebooks * config.codebook_size
            forced = first + torch.randint(config.codebook_size, (len(frames), width))
            arguments["forced_ids"] = forced.masked_fill(torch.rand(forced.shape) < data.draw(st.floats(0, 1)), -1)
        choice = data.draw(st.sampled_from(["likeliest", "least risk", "drawn"]))
        if choice == "least risk":
            arguments["logits_processor"] = [model.risk_processor(tiny_code_vectors(config, seed))]
        elif choice == "drawn":
            arguments |= {"do_sample": True, "row_seeds": torch.randint(2**62, (len(frames),))}
            arguments |= data.draw(st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.8, "temperature": 1.5}]))
        arguments["max_new_tokens"] = data.draw(st.sampled_from([None, 1, 7, 40]))
        processors = data.draw(st.sampled_from([None, 0, 128]))
        if processors is not None:
            by_frames(patch, processors=processors)
        assert torch.equal(decode(model, **arguments), model.generate(**arguments))


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_key_value_heads": 2},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"num_codebooks": 9, "codebook_size": 1024, "max_position_embeddings": 256},
        {"num_codebooks": 1, "codebook_size": 1},
        {"head_dim": 16},
    ],
    ids=str,
)
def test_every_shape_of_llama_is_decoded(overrides, monkeypatch):
    model = tiny_model(**overrides)
    prompts = tiny_prompts([3, 2], model.config)
    expected = model.generate(**prompts)
    assert torch.equal(decode(model, **prompts), expected)
    for processors in (0, 128):
        by_frames(monkeypatch, processors=processors)
        assert torch.equal(decode(model, **prompts), expected)


def test_frames_look_no_further_than_they_must(model, monkeypatch):
    prompts = tiny_prompts([8, 5], model.config)
    by_frames(monkeypatch, part=16, processors=0)
    decode(model, **prompts)
    assert Uncaptured.stops == sorted(Uncaptured.stops) and set(Uncaptured.stops) == {32, 48, 64}
    by_frames(monkeypatch, part=16)
    decode(model, **prompts)
    assert Uncaptured.stops == [64] * 8  # a small batch: all of the buffers, every time


@pytest.mark.parametrize("processors", [0, 128])
def test_frames_draw_the_same_ids(model, monkeypatch, processors):
    prompts, arguments = tiny_prompts([8, 8], model.config), {"do_sample": True, "top_k": 9, "top_p": 0.9}
    torch.manual_seed(0)
    expected = decode(model, **prompts, **arguments)
    by_frames(monkeypatch, processors=processors)
    torch.manual_seed(0)
    assert torch.equal(decode(model, **prompts, **arguments), expected)


@pytest.mark.parametrize("frames", [False, True], ids=["by token", "by frame"])
def test_adapters_are_heard(frames, monkeypatch):
    model = tiny_model()
    prompts = tiny_prompts([3, 2], model.config)
    if frames:
        by_frames(monkeypatch)
    plain = decode(model, **prompts)
    targets = ["q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"]
    model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, lora_alpha=64))
    model.eval()
    adapted = decode(model, **prompts)
    assert not torch.equal(adapted, plain)
    assert torch.equal(adapted, model.generate(**prompts))
    model.disable_adapters()
    assert torch.equal(decode(model, **prompts), plain)


@torch.no_grad()
@pytest.mark.parametrize(
    ("warping", "warpers"),
    [
        ({"top_k": 0}, []),
        ({"top_k": 2, "temperature": 1.5}, [TemperatureLogitsWarper(1.5), TopKLogitsWarper(2)]),
        ({"top_k": 0, "top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    ],
    ids=["plain", "top-k", "top-p"],
)
@pytest.mark.parametrize("seeded", [False, True], ids=["global generator", "streams of rows"])
@pytest.mark.parametrize("fast", [False, True], ids=["library", "fast"])
def test_ids_are_drawn_with_the_probabilities_of_the_model(warping, warpers, seeded, fast):
    model, count = tiny_model(num_codebooks=2, codebook_size=3), 20_000
    config, prompts = model.config, tiny_prompts([2], model.config)
    clean = torch.tensor(list(itertools.product(range(5, 8), range(8, 11), range(5, 8), range(8, 11))))
    logits = model(torch.cat([prompts["input_ids"].expand(len(clean), -1), clean], dim=1)).logits[:, -5:-1]
    scores = torch.stack([logits[:, 0, 5:8], logits[:, 1, 8:11], logits[:, 2, 5:8], logits[:, 3, 8:11]], dim=1)
    for warper in warpers:
        scores = torch.stack([warper(None, scores[:, token]) for token in range(4)], dim=1)
    code = (clean - config.first_code_id) % config.codebook_size
    expected = scores.softmax(-1).gather(2, code[..., None]).prod(1)[:, 0]
    torch.testing.assert_close(expected.sum(), torch.tensor(1.0))
    torch.manual_seed(0)
    mode = {"row_seeds": torch.arange(count)} if seeded else {}
    mode |= {"custom_generate": decode_grid} if fast else {}
    drawn = model.generate(**prompts, do_sample=True, num_return_sequences=count, **mode, **warping)[:, -5:-1]
    seen = (drawn[:, None] == clean).all(-1).sum(0)
    assert int(seen.sum()) == count and not seen[expected == 0].any()
    likely = expected * count > 5
    squares = ((seen - expected * count) ** 2 / (expected * count))[likely]
    # chi-squared with `likely` many degrees of freedom: mean n, variance 2n; five standard deviations
    assert squares.sum() < likely.sum() + 5 * (2 * likely.sum()) ** 0.5


def test_forced_ids_take_no_pass_of_their_own(model):
    prompts = tiny_prompts([8], model.config)
    forced = prompts["input_ids"][:, 1:-1].clone()
    forced[:, 9:12] = -1
    ids, passes = count_passes(model, lambda: decode(model, **prompts, forced_ids=forced))
    assert passes == 3
    assert torch.equal(ids, model.generate(**prompts, forced_ids=forced))


def test_rows_that_have_all_their_ids_are_no_longer_run(model):
    prompts = tiny_prompts([3, 3, 3, 3], model.config)
    forced = prompts["input_ids"][:, 1:-1].clone()
    for row, tokens in enumerate((4, 9, 4, 7)):
        forced[row, :tokens] = -1
    rows = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, ids, __: rows.append(len(ids[0])))
    ids = decode(model, **prompts, forced_ids=forced)
    hook.remove()
    assert rows == [4] * 4 + [3] * 3 + [1] * 2
    assert torch.equal(ids, model.generate(**prompts, forced_ids=forced))


@pytest.mark.parametrize("frame_by_frame", [False, True])
def test_several_answers_to_a_prompt_are_the_librarys_and_run_it_once(model, monkeypatch, frame_by_frame):
    prompts, seeds = tiny_prompts([3, 5, 2], model.config), torch.randint(2**62, (12,))
    arguments = prompts | {"do_sample": True, "num_return_sequences": 4, "row_seeds": seeds}
    expected = model.generate(**arguments)
    if frame_by_frame:
        by_frames(monkeypatch)
    rows = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, ids, __: rows.append(len(ids[0])))
    ids = decode(model, **arguments)
    hook.remove()
    assert rows[0] == 3 and rows[1] == 12
    assert torch.equal(ids, expected) and len(set(map(tuple, ids.tolist()))) == 12
    forced = prompts["input_ids"][1:2, 1:-1].masked_fill(torch.arange(15) % 5 > 1, -1)
    one = {name: value[1:2] for name, value in arguments.items() if name in prompts}
    one |= {"do_sample": True, "num_return_sequences": 3, "row_seeds": seeds[:3], "forced_ids": forced}
    assert torch.equal(decode(model, **one), model.generate(**one))


@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": True, "min_p": 0.1, "typical_p": 0.9, "renormalize_logits": True},
        {"do_sample": True, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "num_return_sequences": 2},
        {"max_new_tokens": 3},
        {"use_cache": False},
    ],
    ids=str,
)
def test_what_only_narrows_the_choice_is_done(model, arguments):
    prompts = tiny_prompts([2], model.config)
    ids = decode(model, **prompts, **arguments)
    assert ids.shape[1] == prompts["input_ids"].shape[1] + arguments.get("max_new_tokens", 7)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"num_beams": 2}, "beams"),
        ({"return_dict_in_generate": True}, "returned scores"),
        ({"max_time": 100.0}, "other stopping criteria"),
        ({"repetition_penalty": 2.0}, "does not know RepetitionPenaltyLogitsProcessor"),
        ({"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(2.0)])}, "TemperatureLogitsWarper"),
        ({"past_key_values": DynamicCache()}, "a cache of the caller's"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,  # the same in every process
)
def test_what_only_the_librarys_loop_does_is_refused(model, arguments, reason):
    with pytest.raises(ValueError, match=f"{reason}: leave custom_generate out"):
        decode(model, **tiny_prompts([2], model.config), **arguments)


def test_models_and_masks_that_only_the_librarys_loop_knows_are_refused():
    prompts = tiny_prompts([2, 2], tiny_model().config)
    with pytest.raises(ValueError, match="the delayed pattern"):
        model = tiny_model(pattern="delayed")
        decode(model, **tiny_prompts([2], model.config))
    with pytest.raises(ValueError, match="training"):
        decode(tiny_model().train(), **prompts)
    prompts["attention_mask"][0, :3] = 0
    with pytest.raises(ValueError, match="a mask that hides more than padding"):
        decode(tiny_model(), **prompts)


def test_a_model_offers_its_fast_decoder_where_nobody_listens_to_its_layers():
    model = tiny_model()
    assert model.fast_decoder is decode_grid
    hook = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert model.fast_decoder is None
    hook.remove()
    model.forward = model.forward
    assert model.fast_decoder is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(model, dtype):
    prompts = tiny_prompts([3, 2], model.config)
    with torch.autocast("cpu", dtype):
        ids = decode(model, **prompts)
    assert torch.equal(ids, decode(model, **prompts))


def test_a_kernel_without_large_pages_decodes_too(model, monkeypatch):
    class WithoutAdvice(mmap.mmap):
        def madvise(self, *args):
            raise OSError(22, "Invalid argument")

    prompts = tiny_prompts([2], model.config)
    expected = decode(model, **prompts)
    monkeypatch.setattr(mmap, "mmap", WithoutAdvice)
    assert torch.equal(decode(model, **prompts), expected)
