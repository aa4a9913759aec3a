"""Conversion makes a self-contained directory of the authors' layout, of another dtype, of a merged adapter."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import DacConfig, DacModel, LlamaConfig, LlamaForCausalLM

from hub_upload.convert import convert
from hub_upload.stage import open_checkpoint
from tests.tiny import tiny_model, tiny_pipeline, tiny_prompts

RELEASED_SHAPE = {
    "vocab_size": 9221,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
}


def save_released_layout(folder) -> None:
    """The authors' layout with small random weights: a plain Llama in `folder/llama`, a codec in `folder/codec`."""
    torch.manual_seed(0)
    # The released trainer wrote these ids although its tokenizer has bos 0 and pad 1.
    LlamaForCausalLM(LlamaConfig(**RELEASED_SHAPE, bos_token_id=1, pad_token_id=0)).save_pretrained(folder / "llama")
    DacModel(DacConfig(encoder_hidden_size=2, decoder_hidden_size=16)).save_pretrained(folder / "codec")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    save_released_layout(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


def test_the_authors_plain_llama_becomes_a_complete_repository(released, tmp_path):
    convert(str(released / "llama"), tmp_path / "out", codec=str(released / "codec"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("dacse", ["DacSeForEnhancement"])
    enhance = open_checkpoint(str(tmp_path / "out"))
    generation = enhance.model.generation_config
    assert (generation.bos_token_id, generation.pad_token_id, generation.eos_token_id) == (0, 1, 2)
    assert (enhance.processor.num_codebooks, enhance.processor.codebook_size) == (9, 1024)
    original = LlamaForCausalLM.from_pretrained(released / "llama")
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(enhance.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert "without a licence" not in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_is_merged_in_float32_and_the_result_has_its_outputs(checkpoint, tmp_path):
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    convert(str(checkpoint), tmp_path / "out", adapter=str(tmp_path / "adapter"))
    merged = open_checkpoint(str(tmp_path / "out")).model
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    prompts = tiny_prompts([4], merged.config)
    with torch.no_grad():
        expected, plain = adapted.eval()(**prompts).logits, tiny_model()(**prompts).logits
        torch.testing.assert_close(merged(**prompts).logits, expected, rtol=1e-4, atol=1e-4)  # sums in another order
    assert (expected - plain).abs().max() > 0.1


def test_adapters_and_figures_of_the_source_are_not_those_of_merged_weights(checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(source / "adapters" / "denoise")
    goals = [{"what": "STOI", "goal": "0.9", "reached": "0.8", "passed": False}]
    (source / "card.yaml").write_text(yaml.safe_dump({"license": "mit", "goals": goals}))
    convert(str(source), tmp_path / "same")
    assert (tmp_path / "same/adapters/denoise").exists()
    assert yaml.safe_load((tmp_path / "same/card.yaml").read_text())["goals"] == goals
    convert(str(source), tmp_path / "merged", adapter=str(source / "adapters/denoise"))
    assert not (tmp_path / "merged/adapters").exists()
    assert yaml.safe_load((tmp_path / "merged/card.yaml").read_text()) == {"license": "mit"}


def test_dtype_and_codec_are_those_asked_for(checkpoint, released, tmp_path):
    convert(str(checkpoint), tmp_path / "out", dtype=torch.float16)
    assert open_checkpoint(str(tmp_path / "out")).model.dtype == torch.float16


def test_a_directory_with_content_is_refused_and_left_alone(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        convert(str(checkpoint), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes.txt"]


def test_a_failure_leaves_no_directory(released, tmp_path):
    with pytest.raises(ValueError, match="--codec"):
        convert(str(released / "llama"), tmp_path / "out")
    (tmp_path / "no").mkdir()
    with pytest.raises(ValueError, match="has no config.json"):
        convert(str(tmp_path / "no"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
