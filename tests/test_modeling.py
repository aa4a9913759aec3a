import json
import logging
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from tests.test_generation import naive_loop
from tests.tiny import tiny_model, tiny_prompts


def as_llama(model):
    """The stock model with the same weights."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig(**config)).eval()
    llama.load_state_dict(model.state_dict())
    return llama


def test_loss_and_logits_are_llamas():
    model = tiny_model()
    llama = as_llama(model)
    prompts = tiny_prompts([2, 1], model.config)
    ids = model.generate(**prompts)
    labels = ids.masked_fill(ids == model.config.pad_token_id, -100)
    labels[:, : prompts["input_ids"].shape[1]] = -100
    inputs = {"input_ids": ids, "attention_mask": (ids != model.config.pad_token_id).long(), "labels": labels}
    ours, theirs = model(**inputs), llama(**inputs)
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.logits, theirs.logits)


def test_saved_model_loads_with_the_same_output(tmp_path):
    model = tiny_model(num_key_value_heads=2)
    model.save_pretrained(tmp_path)
    loaded = DacSeForEnhancement.from_pretrained(tmp_path)
    prompts = tiny_prompts([2, 3], model.config)
    assert torch.equal(loaded.generate(**prompts), model.generate(**prompts))
    assert torch.equal(loaded(**prompts).logits, model(**prompts).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_tied_weights_are_stored_once(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        assert [name for name in weights.keys() if "embed" in name or "lm_head" in name] == [
            "model.embed_tokens.weight"
        ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "9 missing, such as model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "9 unexpected, such as model.layers.1.input_layernorm.weight"),
        ({"codebook_size": 8, "vocab_size": 29}, r"1 mismatched, such as .*embed_tokens.weight.*53.*29"),
        ({"num_hidden_layers": "three"}, "config.json is wrong: .*num_hidden_layers.* expected int, got str"),
        ({"num_attention_heads": 5}, "config.json is wrong: .*hidden size"),
    ],
)
def test_weights_and_configuration_that_contradict_each_other_are_refused(tmp_path, change, message):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        DacSeForEnhancement.from_pretrained(tmp_path)


def test_damaged_weights_and_pickles_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="the weights in .* are damaged .*: get them again"):
        DacSeForEnhancement.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        DacSeForEnhancement.from_pretrained(tmp_path)


def test_the_librarys_report_of_loading_is_handed_over_when_asked_for(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, info = DacSeForEnhancement.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, DacSeForEnhancement) and not info["missing_keys"]


def write_plain_llama(folder, legacy, generation_config):
    """A repository as the authors' trainer leaves it: a plain Llama whose configuration says bos 1 and pad 0."""
    config = LlamaConfig(
        vocab_size=9221,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        initializer_range=0.2,
        attention_dropout=0.1,
        hidden_dropout_prob=0.3,
        tie_word_embeddings=True,
        bos_token_id=1,
        pad_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    if legacy:  # the names of these two fields before transformers 5
        stored = json.loads((folder / "config.json").read_text())
        stored["rope_theta"] = stored.pop("rope_parameters")["rope_theta"]
        stored["torch_dtype"] = stored.pop("dtype")
        stored["rope_scaling"] = None
        (folder / "config.json").write_text(json.dumps(stored))
    if not generation_config:
        (folder / "generation_config.json").unlink()


@pytest.fixture
def complaints(caplog):
    """What transformers logs at WARNING or above, and any Python warning as an error."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "transformers"):
        warnings.simplefilter("error")
        yield caplog.records
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("generation_config", [True, False])
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_llama_repository_loads_silently_and_generates_as_the_naive_loop(
    tmp_path, complaints, legacy, generation_config
):
    write_plain_llama(tmp_path, legacy, generation_config)
    model = DacSeForEnhancement.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompts = tiny_prompts([2, 1], model.config)
    ids = model.generate(prompts["input_ids"])  # the attention mask is inferred: bos is seen, padding is not
    assert not complaints
    llama = LlamaForCausalLM.from_pretrained(tmp_path)
    for prompt, mask, row in zip(prompts["input_ids"], prompts["attention_mask"].bool(), ids, strict=True):
        expected = naive_loop(llama, prompt[mask], config=model.config)
        assert [i for i in row.tolist() if i != model.config.pad_token_id] == expected


def test_plain_llama_repository_is_saved_as_ours(tmp_path):
    write_plain_llama(tmp_path / "llama", legacy=True, generation_config=True)
    model = DacSeForEnhancement.from_pretrained(tmp_path / "llama")
    model.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "dacse"
    assert DacSeConfig.from_pretrained(tmp_path / "ours").pad_token_id == 1
    prompts = tiny_prompts([1], model.config)
    loaded = DacSeForEnhancement.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.generate(**prompts), model.generate(**prompts))


def test_saved_directory_runs_where_the_package_cannot_be_imported(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    prompts = tiny_prompts([2, 1], model.config)
    torch.save(
        {"prompts": prompts, "ids": model.generate(**prompts), "logits": model(**prompts).logits}, tmp_path / "it"
    )
    script = """
        import sys, torch
        from transformers import AutoModel, AutoModelForCausalLM

        sys.modules["modeling_dacse"] = None  # importing it now raises
        expected = torch.load("it")
        model = AutoModel.from_pretrained("model", trust_remote_code=True)
        model.save_pretrained("again")
        for path, auto_class in ("model", AutoModelForCausalLM), ("again", AutoModel), ("again", AutoModelForCausalLM):
            model = auto_class.from_pretrained(path, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules.")
            assert torch.equal(model.generate(**expected["prompts"]), expected["ids"])
            assert torch.equal(model(**expected["prompts"]).logits, expected["logits"])
    """
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=environment, check=True)


def test_lora_generates_with_forced_ids_as_the_base_it_starts_from():
    prompts = tiny_prompts([2, 1], tiny_model().config)
    forced_ids = torch.full((2, 6), -1)
    forced_ids[:, 0] = 9
    expected = tiny_model().generate(**prompts, forced_ids=forced_ids)
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    assert torch.equal(adapted.eval().generate(**prompts, forced_ids=forced_ids), expected)


def test_token_probabilities_are_those_generate_chose_with():
    model = tiny_model()
    prompts = tiny_prompts([3, 1, 2], model.config)
    length = prompts["input_ids"].shape[1]
    torch.manual_seed(0)
    out = model.generate(**prompts, do_sample=True, top_k=0, return_dict_in_generate=True, output_scores=True)
    probabilities = model.token_probabilities(out.sequences)

    is_clean = out.sequences >= model.config.first_code_id
    is_clean[:, :length] = False
    assert is_clean.sum(-1).tolist() == [9, 3, 6]
    assert torch.equal(probabilities.isnan(), ~is_clean)
    chosen = torch.stack(out.scores, 1).softmax(-1).gather(2, out.sequences[:, length:, None])[..., 0]
    torch.testing.assert_close(probabilities[is_clean], chosen[is_clean[:, length:]])
