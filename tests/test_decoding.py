import itertools
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

from modeling_dacse import decoding_dacse, generation_dacse, layers_dacse
from modeling_dacse.decoding_dacse import GridDecoder
from tests.tiny import tiny_code_vectors, tiny_model, tiny_prompts

ALWAYS, NEVER = -1.0, 2.0  # shares of agreement from which drafts begin


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(params=[NEVER, ALWAYS], ids=["no drafts", "drafts"])
def drafts(request, monkeypatch):
    """Decodes without drafts, or from drafts however many of their ids are refused."""
    monkeypatch.setattr(decoding_dacse, "DRAFT_SHARE", request.param)
    monkeypatch.setattr(decoding_dacse, "SHRINK_SHARE", 0.0)
    return request.param == ALWAYS


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
    patch.setattr(decoding_dacse, "can_capture", lambda *_: True)
    patch.setattr(decoding_dacse, "FrameGraph", Uncaptured)
    patch.setattr(decoding_dacse, "PART", part)
    patch.setattr(layers_dacse, "PART", part)
    patch.setattr(layers_dacse, "PROCESSORS", processors)


def stock_generate(model, **arguments):
    """What the library's own loop makes of the same call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_dacse, "can_decode", lambda *_: False)
        return model.generate(**arguments)


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
@given(data=st.data(), seed=st.integers(0, 999), always=st.booleans())
def test_greedy_ids_are_those_of_the_stock_loop(model, data, seed, always):
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
        if data.draw(st.booleans()):
            arguments["code_vectors"] = tiny_code_vectors(config, seed)
        arguments["max_new_tokens"] = data.draw(st.sampled_from([None, 1, 7, 40]))
        patch.setattr(decoding_dacse, "DRAFT_SHARE", ALWAYS if always else NEVER)
        patch.setattr(decoding_dacse, "SHRINK_SHARE", 0.0)
        processors = data.draw(st.sampled_from([None, 0, 128]))
        if processors is not None:
            by_frames(patch, processors=processors)
        assert torch.equal(model.generate(**arguments), stock_generate(model, **arguments))


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
def test_every_shape_of_llama_is_decoded(overrides, drafts, monkeypatch):
    model = tiny_model(**overrides)
    prompts = tiny_prompts([3, 2], model.config)
    expected = stock_generate(model, **prompts)
    assert torch.equal(model.generate(**prompts), expected)
    for processors in (0, 128):
        by_frames(monkeypatch, processors=processors)
        assert torch.equal(model.generate(**prompts), expected)


def test_frames_look_no_further_than_they_must(model, monkeypatch):
    prompts = tiny_prompts([8, 5], model.config)
    by_frames(monkeypatch, part=16, processors=0)
    model.generate(**prompts)
    assert Uncaptured.stops == sorted(Uncaptured.stops) and set(Uncaptured.stops) == {32, 48, 64}
    by_frames(monkeypatch, part=16)
    model.generate(**prompts)
    assert Uncaptured.stops == [64] * 8  # a small batch: all of the buffers, every time


@pytest.mark.parametrize("processors", [0, 128])
def test_frames_draw_the_same_ids(model, monkeypatch, processors):
    prompts, arguments = tiny_prompts([8, 8], model.config), {"do_sample": True, "top_k": 9, "top_p": 0.9}
    torch.manual_seed(0)
    expected = model.generate(**prompts, **arguments)
    by_frames(monkeypatch, processors=processors)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**prompts, **arguments), expected)


@pytest.mark.parametrize("frames", [False, True], ids=["by token", "by frame"])
def test_adapters_are_heard(drafts, frames, monkeypatch):
    model = tiny_model()
    prompts = tiny_prompts([3, 2], model.config)
    if frames:
        by_frames(monkeypatch)
    plain = model.generate(**prompts)
    targets = ["q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"]
    model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, lora_alpha=64))
    model.eval()
    adapted = model.generate(**prompts)
    assert not torch.equal(adapted, plain)
    assert torch.equal(adapted, stock_generate(model, **prompts))
    model.disable_adapters()
    assert torch.equal(model.generate(**prompts), plain)


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
def test_ids_are_drawn_with_the_probabilities_of_the_model(warping, warpers, drafts):
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
    drawn = model.generate(**prompts, do_sample=True, num_return_sequences=count, **warping)[:, -5:-1]
    seen = (drawn[:, None] == clean).all(-1).sum(0)
    assert int(seen.sum()) == count and not seen[expected == 0].any()
    likely = expected * count > 5
    squares = ((seen - expected * count) ** 2 / (expected * count))[likely]
    # chi-squared with `likely` many degrees of freedom: mean n, variance 2n; five standard deviations
    assert squares.sum() < likely.sum() + 5 * (2 * likely.sum()) ** 0.5


def silent_model(**overrides):
    """A model that finds code 0 the likeliest, whatever it hears."""
    model = tiny_model(tie_word_embeddings=False, max_position_embeddings=1024, **overrides)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.config.first_code_id :: model.config.codebook_size] = 1.0
    return model


def test_where_the_noisy_ids_are_right_they_take_few_passes():
    model = silent_model()
    config = model.config
    codes = torch.zeros(3, 80, config.num_codebooks, dtype=torch.long)
    codes[0, 20:26] = 7  # lost packets: what comes in there does not come out
    codes[1, 50:53] = 7
    offsets = config.first_code_id + config.codebook_size * torch.arange(config.num_codebooks)
    ends = torch.tensor([[config.bos_token_id, config.start_clean_token_id]]).expand(len(codes), -1)
    ids = torch.cat([ends[:, :1], (codes + offsets).flatten(1), ends[:, 1:]], dim=1)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    drafted, passes = count_passes(model, lambda: model.generate(**arguments))
    expected, stock_passes = count_passes(model, lambda: stock_generate(model, **arguments))
    assert torch.equal(drafted, expected)
    assert stock_passes == 80 * config.num_codebooks + 1 and passes < stock_passes / 4  # rows wait for the last one


def test_where_the_noisy_ids_are_wrong_no_pass_is_wasted():
    model = silent_model()
    config = model.config
    first = config.first_code_id + config.codebook_size * torch.arange(config.num_codebooks)
    ids = torch.tensor([[config.bos_token_id, *(first + 1).repeat(20).tolist(), config.start_clean_token_id]])
    _, passes = count_passes(model, lambda: model.generate(ids))
    assert passes == 20 * config.num_codebooks


def test_forced_ids_take_no_pass_of_their_own(model):
    prompts = tiny_prompts([8], model.config)
    forced = prompts["input_ids"][:, 1:-1].clone()
    forced[:, 9:12] = -1
    ids, passes = count_passes(model, lambda: model.generate(**prompts, forced_ids=forced))
    assert passes == 3
    assert torch.equal(ids, stock_generate(model, **prompts, forced_ids=forced))


def test_rows_that_have_all_their_ids_are_no_longer_run(model, monkeypatch):
    monkeypatch.setattr(decoding_dacse, "DRAFT_SHARE", NEVER)
    prompts = tiny_prompts([3, 3, 3, 3], model.config)
    forced = prompts["input_ids"][:, 1:-1].clone()
    for row, tokens in enumerate((4, 9, 4, 7)):
        forced[row, :tokens] = -1
    rows = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, ids, __: rows.append(len(ids[0])))
    ids = model.generate(**prompts, forced_ids=forced)
    hook.remove()
    assert rows == [4] * 4 + [3] * 3 + [1] * 2
    assert torch.equal(ids, stock_generate(model, **prompts, forced_ids=forced))


class Ignore(BaseStreamer):
    def put(self, value):
        pass

    def end(self):
        pass


@pytest.mark.parametrize(
    ("arguments", "decoded"),
    [
        ({}, True),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7, "num_return_sequences": 2}, True),
        ({"do_sample": True, "min_p": 0.1, "typical_p": 0.9, "renormalize_logits": True}, True),
        ({"max_new_tokens": 3}, True),
        ({"num_beams": 2}, False),
        ({"use_cache": False}, False),
        ({"cache_implementation": "static"}, False),
        ({"repetition_penalty": 2.0}, False),
        ({"max_time": 100.0}, False),
        ({"return_dict_in_generate": True, "output_scores": True}, False),
        ({"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(2.0)])}, False),
        ({"streamer": Ignore()}, False),
        ({"prompt_lookup_num_tokens": 3}, False),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,  # the same in every process
)
def test_what_is_asked_for_beyond_ids_is_left_to_the_stock_loop(model, monkeypatch, arguments, decoded):
    runs = []
    run = GridDecoder.run
    monkeypatch.setattr(GridDecoder, "run", lambda self: (runs.append(1), run(self))[1])
    model.generate(**tiny_prompts([2], model.config), **arguments)
    assert len(runs) == decoded


def test_a_mask_that_hides_more_than_padding_is_left_to_the_stock_loop(model):
    prompts = tiny_prompts([2, 2], model.config)
    prompts["attention_mask"][0, :3] = 0
    assert torch.equal(model.generate(**prompts), stock_generate(model, **prompts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_ids_are_those_of_the_stock_loop(model, dtype):
    prompts = tiny_prompts([3, 2], model.config)
    with torch.autocast("cpu", dtype):
        ids = model.generate(**prompts)
        stock = model.generate(**prompts, return_dict_in_generate=True).sequences
    assert torch.equal(ids, stock)


def test_a_kernel_without_large_pages_decodes_too(model, monkeypatch):
    class WithoutAdvice(mmap.mmap):
        def madvise(self, *args):
            raise OSError(22, "Invalid argument")

    prompts = tiny_prompts([2], model.config)
    expected = model.generate(**prompts)
    monkeypatch.setattr(mmap, "mmap", WithoutAdvice)
    assert torch.equal(model.generate(**prompts), expected)
