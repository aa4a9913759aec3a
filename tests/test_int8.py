import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, pipeline

import dacse  # noqa: F401  registers model and pipeline
from modeling_dacse import DacSeForEnhancement
from modeling_dacse.fast.decoding import decode_grid
from modeling_dacse.fast.int8 import (
    Int8Config,
    Int8Linear,
    adds_in_32_bits,
    multiply_whole,
    multiply_widened,
    pack,
    quantize_rows,
)
from tests.tiny import tiny_model, tiny_pipeline, tiny_prompts


def rounded(linear: nn.Linear) -> Int8Linear:
    """An 8-bit layer of another layer's weights."""
    layer = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None)
    whole, scales = quantize_rows(linear.weight)
    layer.weight.data, layer.scales, layer.bias = whole, scales[:, 0], linear.bias
    return layer


@torch.no_grad()
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("inputs", [256, 264])  # whole vectors or not
@pytest.mark.parametrize("rows", [1, 32, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_the_layer_to_one_percent(monkeypatch, bias, rows, inputs, is_whole):
    if is_whole and not adds_in_32_bits():
        pytest.skip("this processor adds products up in 16 bits")
    monkeypatch.setattr("modeling_dacse.fast.int8.adds_in_32_bits", lambda: is_whole)
    torch.manual_seed(0)
    linear, hidden = nn.Linear(inputs, 64, bias), torch.randn(1, rows, inputs)
    expected = linear(hidden)
    error = (rounded(linear)(hidden) - expected).norm() / expected.norm()
    assert error < (0.015 if is_whole else 0.01)  # one or two roundings of normal numbers


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_products_are_exact_in_whole_numbers(rows):
    if not adds_in_32_bits():
        pytest.skip("this processor adds products up in 16 bits")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-127, 128, (rows, 200), dtype=torch.int8, generator=generator)
    matrix = torch.randint(-127, 128, (50, 200), dtype=torch.int8, generator=generator)
    matrix[0], hidden[0] = 127, 127  # the largest sum
    assert torch.equal(multiply_whole(hidden, pack(matrix), torch.ones(50)).long(), hidden.long() @ matrix.long().t())


@torch.no_grad()
@pytest.mark.parametrize("inputs", [200, 208])  # no whole vectors are left to the kernel, which would read on
@pytest.mark.parametrize("rows", [1, 3, 32, 40])
def test_widened_products_are_those_of_the_whole_numbers(rows, inputs):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, inputs, generator=generator).bfloat16()
    matrix = torch.randint(-127, 128, (50, inputs), dtype=torch.int8, generator=generator)
    expected = hidden.double() @ matrix.double().t()
    error = (multiply_widened(hidden, matrix, torch.ones(50)) - expected).abs().max() / expected.abs().max()
    assert error < 2**-8


def test_whole_numbers_are_not_added_up_where_they_overflow():
    code = "from modeling_dacse.fast.int8 import adds_in_32_bits; print(adds_in_32_bits())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # as if the processor had nothing newer
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert run.stdout.strip() == str(not is_x86)


@torch.no_grad()
def test_rows_do_not_depend_on_the_rows_beside_them():
    layer, hidden = rounded(nn.Linear(32, 16)), torch.randn(4, 32)
    assert torch.equal(layer(hidden), torch.cat([layer(row[None]) for row in hidden]))


def test_silence_stays_silence():
    whole, scales = quantize_rows(torch.zeros(1, 8))
    assert not whole.any() and (whole * scales == 0).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("load", [DacSeForEnhancement, AutoModel, AutoModelForCausalLM])
def test_a_model_loads_in_int8_and_stays_on_the_grid(folder, load):
    model, plain = load.from_pretrained(folder, quantization_config=Int8Config()), tiny_model()
    layers = [module for module in model.model.layers.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 7 * model.config.num_hidden_layers
    assert model.dtype == torch.float32 and model.num_parameters() == plain.num_parameters()
    prompts, config = tiny_prompts([3, 2], model.config), model.config
    ids = model.generate(**prompts)
    assert torch.equal(model.generate(**prompts, custom_generate=decode_grid), ids)
    alone = [model.generate(row[row != config.pad_token_id][None]) for row in prompts["input_ids"]]
    assert torch.equal(ids[0], alone[0][0]) and torch.equal(ids[1, 3:-3], alone[1][0])
    error = (model(**prompts).logits - plain(**prompts).logits).norm() / plain(**prompts).logits.norm()
    assert error < 0.05  # roundings of one or two percent through seven matrices of two layers


def test_a_model_in_int8_is_copied_pickled_saved_and_loaded(folder, tmp_path):
    model = DacSeForEnhancement.from_pretrained(folder, quantization_config=Int8Config(), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    prompts = tiny_prompts([3, 2], model.config)
    expected = model.generate(**prompts)
    model.save_pretrained(tmp_path)
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    copies = [copy.deepcopy(model), torch.load(content, weights_only=False)]
    for other in [*copies, DacSeForEnhancement.from_pretrained(tmp_path, dtype="auto")]:
        assert torch.equal(other.generate(**prompts), expected) and other.dtype == torch.bfloat16


def test_adapters_work_on_whole_numbers(folder):
    model = DacSeForEnhancement.from_pretrained(folder, quantization_config=Int8Config())
    plain = model(**tiny_prompts([3], model.config)).logits
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    assert not torch.equal(model(**tiny_prompts([3], model.config)).logits, plain)


def test_a_pipeline_takes_int8(folder):
    enhance = pipeline(
        "audio-enhancement", model=str(folder), model_kwargs={"quantization_config": Int8Config()}, device="cpu"
    )
    assert isinstance(enhance.model.model.layers[0].mlp.up_proj, Int8Linear)
    assert enhance.processor.audio_tokenizer.dtype == torch.float32
    assert enhance(torch.randn(100).numpy(), sampling_rate=8000)["audio"].shape == (100,)
