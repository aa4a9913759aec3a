"""Decoding by CUDA graphs: what is in them is tested on the CPU in test_decoding.py; here, that capturing keeps it."""

import gc

import pytest
import torch
from peft import LoraConfig

from modeling_dacse import decoding_dacse, layers_dacse
from modeling_dacse.int8_dacse import quantize_layers
from tests.tiny import tiny_code_vectors, tiny_model, tiny_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
torch.backends.cuda.matmul.allow_tf32 = False  # ids are to be those of the CPU
FRAMES = [40, 25, 40]
NEVER = 2.0  # share of agreement from which drafts begin


@pytest.fixture(params=[0, 128], ids=["fused attention", "in parts"])
def captured(request, monkeypatch):
    """Small buckets, either attention, and the number of captures and replays so far."""
    monkeypatch.setattr(decoding_dacse, "PART", 64)
    monkeypatch.setattr(layers_dacse, "PART", 64)
    monkeypatch.setattr(layers_dacse, "PROCESSORS", request.param)
    calls = {"capture": 0, "replay": 0}
    begin, replay = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.replay

    def count(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", count("capture", begin))
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", count("replay", replay))
    return calls


def model_and_prompts(frames=FRAMES, **overrides):
    model = tiny_model(max_position_embeddings=512, **overrides)
    return model, tiny_prompts(frames, model.config)


def on_gpu(arguments):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in arguments.items()}


def uncaptured(model, **arguments):
    """The same call, column by column."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding_dacse, "can_capture", lambda *_: False)
        return model.generate(**arguments)


@pytest.mark.parametrize("frames", [[40], FRAMES], ids=["alone", "padded"])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}],
    ids=["tiny", "grouped-query", "biases"],
)
def test_greedy_ids_are_those_of_the_cpu(captured, frames, overrides):
    model, prompts = model_and_prompts(frames, **overrides)
    expected = model.generate(**prompts)
    assert torch.equal(model.cuda().generate(**on_gpu(prompts)).cpu(), expected)
    assert captured["capture"] >= 1 and captured["replay"] >= 30
    assert torch.equal(model.generate(**on_gpu(prompts)).cpu(), expected)


def test_forced_ids_and_begun_rows_are_those_of_the_cpu(captured):
    model, prompts = model_and_prompts()
    config, width = model.config, max(FRAMES) * model.config.num_codebooks
    generator = torch.Generator().manual_seed(0)
    first = config.first_code_id + torch.arange(width) % config.num_codebooks * config.codebook_size
    forced = first + torch.randint(config.codebook_size, (len(FRAMES), width), generator=generator)
    forced = forced.masked_fill(torch.rand(forced.shape, generator=generator) < 0.5, -1)
    forced[:, 30:60] = first[30:60]  # whole frames that no row leaves free
    expected = model.generate(**prompts, forced_ids=forced)
    model.cuda()
    assert torch.equal(model.generate(**on_gpu(prompts), forced_ids=forced.cuda()).cpu(), expected)
    begun = expected[:1, : prompts["input_ids"].shape[1] + 7].cuda()
    assert torch.equal(model.generate(begun, forced_ids=forced[:1].cuda()).cpu()[0], expected[0])
    assert captured["replay"] >= 30


def test_codes_of_the_least_risk_are_those_of_the_cpu(captured):
    model, prompts = model_and_prompts()
    vectors = tiny_code_vectors(model.config)
    expected = model.generate(**prompts, code_vectors=vectors)
    assert torch.equal(model.cuda().generate(**on_gpu(prompts), code_vectors=vectors).cpu(), expected)
    assert captured["replay"] >= 30


def test_the_device_is_asked_only_once_a_frame(captured):
    model, prompts = model_and_prompts()
    model.cuda()
    asked = []

    def agrees(self, frame):
        torch.cuda.set_sync_debug_mode("default")
        asked.append(frame)
        return False

    def run(self, decode_frame, stop, run=decoding_dacse.FrameGraph.run):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        run(self, decode_frame, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding_dacse.GridDecoder, "_agrees", agrees)
        patch.setattr(decoding_dacse.FrameGraph, "run", run)
        try:
            for arguments in ({}, {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.8}):
                model.generate(**on_gpu(prompts), **arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert asked == 2 * list(range(max(FRAMES)))


@pytest.mark.parametrize("mode", [{}, {"top_k": 5, "top_p": 0.9, "temperature": 0.8}], ids=str)
def test_sampled_ids_hang_on_the_seed(captured, mode):
    model, prompts = model_and_prompts()
    model.cuda()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(**on_gpu(prompts), do_sample=True, **mode))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert captured["replay"] >= 30


def test_ids_are_drawn_anew_in_every_frame(captured, monkeypatch):
    # Replayed random numbers would make all frames alike under a model that finds all codes equally likely.
    monkeypatch.setattr(decoding_dacse, "DRAFT_SHARE", NEVER)
    model, prompts = model_and_prompts([40], tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    ids = model.cuda().generate(**on_gpu(prompts), do_sample=True, top_k=0)[0, -121:-1].view(40, 3)
    assert len(ids.unique(dim=0)) > 30  # of 4096 possible frames
    assert captured["replay"] >= 30


def test_warpers_that_may_wait_for_the_device_are_not_captured(captured):
    model, prompts = model_and_prompts()
    model.cuda().generate(**on_gpu(prompts), do_sample=True, typical_p=0.9)
    assert captured["replay"] == 0


def test_adapters_are_heard(captured):
    model, prompts = model_and_prompts()
    plain = model.generate(**prompts)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj", "lm_head", "embed_tokens"]
    model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, lora_alpha=64))
    adapted = model.eval().generate(**prompts)
    assert not torch.equal(adapted, plain)
    assert torch.equal(model.cuda().generate(**on_gpu(prompts)).cpu(), adapted)
    assert captured["replay"] >= 30


def test_drafts_take_over_and_hand_back(captured, monkeypatch):
    monkeypatch.setattr(decoding_dacse, "DRAFT_SHARE", -1.0)  # drafts after every frame, nearly all of them refused
    model, prompts = model_and_prompts()
    expected = model.generate(**prompts)
    assert torch.equal(model.cuda().generate(**on_gpu(prompts)).cpu(), expected)


def test_bfloat16_ids_are_as_likely_as_those_without_a_graph(captured, monkeypatch):
    monkeypatch.setattr(decoding_dacse, "DRAFT_SHARE", NEVER)
    model, prompts = model_and_prompts()
    model.cuda().bfloat16()
    prompts = on_gpu(prompts)
    # Once two codes are nearly as likely as each other, rows part, and both are right.
    ids, others = model.generate(**prompts), uncaptured(model, **prompts)
    assert captured["replay"] >= 30
    likely, expected = (model.float().token_probabilities(part).nanmean() for part in (ids, others))
    torch.testing.assert_close(likely, expected, atol=0.03, rtol=0)  # over 315 ids


def test_memory_is_given_back(captured):
    model, prompts = model_and_prompts()
    model.cuda()
    held = []
    for _ in range(4):
        model.generate(**on_gpu(prompts))
        gc.collect()  # the library's cycles
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[3]


def test_int8_is_refused_as_ever():
    model, prompts = model_and_prompts()
    quantize_layers(model)
    with pytest.raises(ValueError, match="a model in int8 runs on a CPU, not on cuda"):
        model.cuda().generate(**on_gpu(prompts))
