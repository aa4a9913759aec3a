import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, pipeline

import dacse  # noqa: F401  registers model and pipeline
from modeling_dacse import DacSeForEnhancement
from modeling_dacse.int8_dacse import (
    Int8Linear,
    adds_in_32_bits,
    multiply_whole,
    multiply_widened,
    pack,
    quantize_layers,
    quantize_rows,
)
from tests.tiny import tiny_model, tiny_pipeline, tiny_prompts


@torch.no_grad()
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("inputs", [256, 264])  # whole vectors or not
@pytest.mark.parametrize("rows", [1, 32, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_the_layer_to_one_percent(monkeypatch, bias, rows, inputs, is_whole):
    if is_whole and not adds_in_32_bits():
        pytest.skip("this processor adds products up in 16 bits")
    monkeypatch.setattr("modeling_dacse.int8_dacse.adds_in_32_bits", lambda: is_whole)
    torch.manual_seed(0)
    linear, hidden = nn.Linear(inputs, 64, bias), torch.randn(1, rows, inputs)
    expected = linear(hidden)
    error = (Int8Linear(linear)(hidden) - expected).norm() / expected.norm()
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
    code = "from modeling_dacse.int8_dacse import adds_in_32_bits; print(adds_in_32_bits())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # as if the processor had nothing newer
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert run.stdout.strip() == str(not is_x86)


@torch.no_grad()
def test_rows_do_not_depend_on_the_rows_beside_them():
    layer, hidden = Int8Linear(nn.Linear(32, 16)), torch.randn(4, 32)
    assert torch.equal(layer(hidden), torch.cat([layer(row[None]) for row in hidden]))


@pytest.mark.parametrize("is_new", [True, False])
def test_what_is_not_rounded_is_in_a_dtype_the_processor_has(monkeypatch, is_new):
    monkeypatch.setattr("modeling_dacse.int8_dacse.adds_in_32_bits", lambda: is_new)
    model = tiny_model().bfloat16()
    quantize_layers(model)
    assert model.dtype == model.lm_head.weight.dtype == (torch.bfloat16 if is_new else torch.float32)
    prompts = tiny_prompts([3], model.config)
    assert model.generate(**prompts).shape == (1, 2 * prompts["input_ids"].shape[1] - 1)


def test_silence_stays_silence():
    whole, scales = quantize_rows(torch.zeros(1, 8))
    assert not whole.any() and (whole * scales == 0).all()


@pytest.mark.parametrize("dtype", ["int8", torch.int8], ids=str)
@pytest.mark.parametrize("load", [DacSeForEnhancement, AutoModel, AutoModelForCausalLM])
def test_a_model_loads_in_int8_and_stays_on_the_grid(tmp_path, load, dtype):
    tiny_model().save_pretrained(tmp_path)
    model = load.from_pretrained(tmp_path, dtype=dtype)
    layers = [module for module in model.model.layers.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 7 * model.config.num_hidden_layers
    prompts, config = tiny_prompts([3, 2], model.config), model.config
    ids = model.generate(**prompts)
    together = [model.generate(row[row != config.pad_token_id][None]) for row in prompts["input_ids"]]
    assert torch.equal(ids[0], together[0][0]) and torch.equal(ids[1, 3:-3], together[1][0])
    clean = ids[0, -10:-1]
    codebook = torch.arange(9) % config.num_codebooks
    assert torch.equal((clean - config.first_code_id) // config.codebook_size, codebook)
    with pytest.raises(ValueError, match="int8"):
        model.save_pretrained(tmp_path / "again")


def test_a_pipeline_takes_int8(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    enhance = pipeline("audio-enhancement", model=str(tmp_path), dtype="int8")
    assert isinstance(enhance.model.model.layers[0].mlp.up_proj, Int8Linear)
    assert enhance.processor.audio_tokenizer.dtype == torch.float32
    assert enhance(torch.randn(100).numpy(), sampling_rate=8000)["audio"].shape == (100,)
