"""Decoding by CUDA graphs: what is in them is tested on the CPU in test_decoding.py; here, that capturing keeps it."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from peft import LoraConfig

from modeling_dacse import DacSeForEnhancement
from modeling_dacse.fast import decoding, layers
from modeling_dacse.fast.decoding import decode_grid
from modeling_dacse.fast.int8 import Int8Config
from tests.tiny import tiny_code_vectors, tiny_model, tiny_pipeline, tiny_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
torch.backends.cuda.matmul.allow_tf32 = False  # ids are to be those of the CPU
FRAMES = [40, 25, 40]


@pytest.fixture(params=[0, 128], ids=["fused attention", "in parts"])
def captured(request, monkeypatch):
    """Small buckets, either attention, and the number of captures and replays so far."""
    monkeypatch.setattr(decoding, "PART", 64)
    monkeypatch.setattr(layers, "PART", 64)
    monkeypatch.setattr(layers, "PROCESSORS", request.param)
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


def decode(model, **arguments):
    return model.generate(**arguments, custom_generate=decode_grid)


def uncaptured(model, **arguments):
    """The same call, column by column."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding.GridDecoder, "_can_capture", lambda _: False)
        return decode(model, **arguments)


@pytest.mark.parametrize("frames", [[40], FRAMES], ids=["alone", "padded"])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}],
    ids=["tiny", "grouped-query", "biases"],
)
def test_greedy_ids_are_those_of_the_cpu(captured, frames, overrides):
    model, prompts = model_and_prompts(frames, **overrides)
    expected = decode(model, **prompts)
    assert torch.equal(decode(model.cuda(), **on_gpu(prompts)).cpu(), expected)
    assert captured["capture"] >= 1 and captured["replay"] >= 30
    assert torch.equal(decode(model, **on_gpu(prompts)).cpu(), expected)


def test_forced_ids_and_begun_rows_are_those_of_the_cpu(captured):
    model, prompts = model_and_prompts()
    config, width = model.config, max(FRAMES) * model.config.num_codebooks
    generator = torch.Generator().manual_seed(0)
    first = config.first_code_id + torch.arange(width) % config.num_codebooks * config.codebook_size
    forced = first + torch.randint(config.codebook_size, (len(FRAMES), width), generator=generator)
    forced = forced.masked_fill(torch.rand(forced.shape, generator=generator) < 0.5, -1)
    forced[:, 30:60] = first[30:60]  # whole frames that no row leaves free
    expected = decode(model, **prompts, forced_ids=forced)
    model.cuda()
    assert torch.equal(decode(model, **on_gpu(prompts), forced_ids=forced.cuda()).cpu(), expected)
    begun = expected[:1, : prompts["input_ids"].shape[1] + 7].cuda()
    assert torch.equal(decode(model, input_ids=begun, forced_ids=forced[:1].cuda()).cpu()[0], expected[0])
    assert captured["replay"] >= 30


def test_codes_of_the_least_risk_are_those_of_the_cpu(captured):
    model, prompts = model_and_prompts()
    risk = {"logits_processor": [model.risk_processor(tiny_code_vectors(model.config))]}
    expected = decode(model, **prompts, **risk)
    assert torch.equal(decode(model.cuda(), **on_gpu(prompts), **risk).cpu(), expected)
    assert captured["replay"] >= 30


def test_rows_draw_the_ids_of_the_cpu(captured):
    model, prompts = model_and_prompts()
    mode = {"do_sample": True, "top_k": 5, "row_seeds": torch.arange(len(FRAMES))}
    expected = decode(model, **prompts, **mode)
    assert torch.equal(decode(model.cuda(), **on_gpu(prompts), **on_gpu(mode)).cpu(), expected)
    assert torch.equal(model.generate(**on_gpu(prompts), **on_gpu(mode)).cpu(), expected)
    assert captured["replay"] >= 30


def test_the_device_is_not_waited_for_inside_a_frame(captured):
    model, prompts = model_and_prompts()
    model.cuda()
    frames = []

    def run(self, decode_frame, stop, run=decoding.FrameGraph.run):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        run(self, decode_frame, stop)
        torch.cuda.set_sync_debug_mode("default")
        frames.append(stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding.FrameGraph, "run", run)
        try:
            for arguments in ({}, {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.8}):
                decode(model, **on_gpu(prompts), **arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(frames) == 2 * max(FRAMES)


@pytest.mark.parametrize("mode", [{}, {"top_k": 5, "top_p": 0.9, "temperature": 0.8}], ids=str)
def test_sampled_ids_hang_on_the_seed(captured, mode):
    model, prompts = model_and_prompts()
    model.cuda()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(decode(model, **on_gpu(prompts), do_sample=True, **mode))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert captured["replay"] >= 30


def test_ids_are_drawn_anew_in_every_frame(captured, monkeypatch):
    # Replayed random numbers would make all frames alike under a model that finds all codes equally likely.
    model, prompts = model_and_prompts([40], tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    ids = decode(model.cuda(), **on_gpu(prompts), do_sample=True, top_k=0)[0, -121:-1].view(40, 3)
    assert len(ids.unique(dim=0)) > 30  # of 4096 possible frames
    assert captured["replay"] >= 30


def test_warpers_that_may_wait_for_the_device_are_not_captured(captured):
    model, prompts = model_and_prompts()
    decode(model.cuda(), **on_gpu(prompts), do_sample=True, typical_p=0.9)
    assert captured["replay"] == 0


def test_adapters_are_heard(captured):
    model, prompts = model_and_prompts()
    plain = decode(model, **prompts)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj", "lm_head", "embed_tokens"]
    model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, lora_alpha=64))
    adapted = decode(model.eval(), **prompts)
    assert not torch.equal(adapted, plain)
    assert torch.equal(decode(model.cuda(), **on_gpu(prompts)).cpu(), adapted)
    assert captured["replay"] >= 30


def test_bfloat16_ids_are_as_likely_as_those_without_a_graph(captured, monkeypatch):
    model, prompts = model_and_prompts()
    model.cuda().bfloat16()
    prompts = on_gpu(prompts)
    # Once two codes are nearly as likely as each other, rows part, and both are right.
    ids, others = decode(model, **prompts), uncaptured(model, **prompts)
    assert captured["replay"] >= 30
    likely, expected = (model.float().token_probabilities(part).nanmean() for part in (ids, others))
    torch.testing.assert_close(likely, expected, atol=0.03, rtol=0)  # over 315 ids


def test_memory_is_given_back(captured):
    model, prompts = model_and_prompts()
    model.cuda()
    held = []
    for _ in range(4):
        decode(model, **on_gpu(prompts))
        gc.collect()  # the library's cycles
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[3]


def test_threads_do_not_mix_their_graphs(captured):
    enhance = tiny_pipeline()
    enhance.model.cuda()
    recordings = [
        {"array": np.random.default_rng(i).standard_normal(2000) * 0.1, "sampling_rate": 8000} for i in range(6)
    ]
    alone = [enhance(recording)["audio"] for recording in recordings]
    with ThreadPoolExecutor(3) as pool:
        for expected, found in zip(alone, pool.map(lambda r: enhance(r)["audio"], recordings), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_int8_is_refused_as_ever(tmp_path):
    model, prompts = model_and_prompts()
    model.save_pretrained(tmp_path)
    model = DacSeForEnhancement.from_pretrained(tmp_path, quantization_config=Int8Config())
    with pytest.raises(ValueError, match="a model in int8 runs on a CPU, not on cuda"):
        model.cuda().generate(**on_gpu(prompts))
