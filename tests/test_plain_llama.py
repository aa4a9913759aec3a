"""A plain Llama repository: any engine loads it, and it gives what the model it was made of gives, bit for bit."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, LogitsProcessorList
from typer.testing import CliRunner

from command_dacse.cli import app
from hub_upload.convert import convert
from hub_upload.doors.codebook_grid import Grid, RequestGrid
from hub_upload.stage import open_checkpoint
from modeling_dacse import DacSeForEnhancement
from tests.tiny import tiny_config, tiny_model, tiny_prompts

FILES = ["codebook_grid.py", "config.json", "generation_config.json", "model.safetensors"]
FILES += ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def plain(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "llama"
    convert(str(tiny_checkpoint), folder, plain_llama=True)
    return folder


def load(folder) -> LlamaForCausalLM:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


def test_it_holds_weights_numbers_and_the_grid_and_nothing_of_ours(plain):
    assert sorted(path.name for path in plain.iterdir()) == FILES
    config = json.loads((plain / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert not [name for name in ("auto_map", "custom_pipelines", "pattern") if name in config]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_its_logits_and_greedy_ids_are_those_of_the_model(plain):
    ours, theirs = tiny_model(), load(plain)
    prompts = tiny_prompts([7], ours.config)
    with torch.no_grad():
        assert torch.equal(theirs(**prompts).logits, ours(**prompts).logits)
    grid, length = RequestGrid(Grid.of_config(theirs.config)), prompts["input_ids"].shape[1]

    def on_grid(ids, scores):
        return torch.stack([grid(row[:length].tolist(), row[length:].tolist(), s) for row, s in zip(ids, scores)])  # noqa: B905

    found = theirs.generate(**prompts, logits_processor=LogitsProcessorList([on_grid]), max_new_tokens=60)
    assert torch.equal(found, ours.generate(**prompts))


def test_it_loads_back_as_ours(plain):
    back, ours = DacSeForEnhancement.from_pretrained(plain), tiny_model()
    assert all(torch.equal(weights, ours.state_dict()[name]) for name, weights in back.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_stored_once_and_stay_tied(tied, tmp_path):
    tiny_model(tie_word_embeddings=tied).save_pretrained(tmp_path / "model")
    convert(str(tmp_path / "model"), tmp_path / "plain", plain_llama=True)  # which needs no codec
    assert ("lm_head.weight" in load_file(tmp_path / "plain" / "model.safetensors")) is not tied
    model = load(tmp_path / "plain")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_the_tokenizer_reads_and_writes_numbers(plain):
    tokenizer = AutoTokenizer.from_pretrained(plain)
    ids = list(range(tiny_config().vocab_size))
    assert tokenizer(tokenizer.decode(ids)).input_ids == ids


def test_another_precision_and_an_adapter_go_in(tiny_checkpoint, tmp_path):
    convert(str(tiny_checkpoint), tmp_path / "plain", dtype=torch.bfloat16, plain_llama=True)
    assert load(tmp_path / "plain").dtype == torch.bfloat16
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_other_engines_cannot_be_told_is_refused(tiny_checkpoint, tmp_path):
    delayed = shutil.copytree(tiny_checkpoint, tmp_path / "delayed")
    for name in ("config.json", "processor_config.json"):
        fields = json.loads((delayed / name).read_text())
        (delayed / name).write_text(json.dumps(fields | {"pattern": "delayed"}))
    with pytest.raises(ValueError, match="has the delayed pattern; other engines are told the flattened one"):
        convert(str(delayed), tmp_path / "plain", plain_llama=True)
    with pytest.raises(ValueError, match="a plain Llama has no codec: leave --codec out"):
        convert(str(tiny_checkpoint), tmp_path / "plain", codec=str(tiny_checkpoint), plain_llama=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delayed"]


def test_the_command_says_how_it_is_served(tiny_checkpoint, tmp_path):
    result = CliRunner().invoke(app, ["convert", str(tiny_checkpoint), str(tmp_path / "plain"), "--plain-llama"])
    assert result.exit_code == 0, result.output
    assert f"vllm serve {tmp_path / 'plain'} --logits-processors codebook_grid:GridLogitsProcessor" in result.stdout
    assert open_checkpoint(str(tiny_checkpoint)).model.config.model_type == "dacse"  # the source is as it was
