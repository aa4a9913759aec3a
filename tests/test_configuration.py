import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

import dacse  # noqa: F401  registers the task
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from modeling_dacse.configuration_dacse import SIZES
from tests.tiny import tiny_config


@given(num_codebooks=st.integers(1, 12), codebook_size=st.integers(1, 4096), first_code_id=st.integers(5, 300))
def test_vocabulary_follows_from_the_layout(num_codebooks, codebook_size, first_code_id):
    layout = {"num_codebooks": num_codebooks, "codebook_size": codebook_size, "first_code_id": first_code_id}
    assert tiny_config(**layout).vocab_size == first_code_id + num_codebooks * codebook_size


def test_defaults_are_the_released_model():
    config = DacSeConfig()
    assert (config.vocab_size, config.max_position_embeddings) == (9221, 8192)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100_000.0}
    assert (config.rms_norm_eps, config.attention_dropout, config.initializer_range) == (1e-6, 0.1, 0.005)
    assert {name: getattr(config, name) for name in SIZES["1B"]} == SIZES["1B"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vocab_size": 32000}, "vocab_size is 32000, but 5 special ids and 9 codebooks of 1024 codes make 9221"),
        ({"num_codebooks": 0}, "num_codebooks=0 and codebook_size=1024: both must be at least 1"),
        ({"eos_token_id": 3}, "special ids must differ"),
        ({"pad_token_id": 5}, "lie below first_code_id=5"),
        ({"first_code_id": 4}, "lie below first_code_id=4"),
    ],
)
def test_contradicting_layouts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DacSeConfig(**fields)


@given(
    num_codebooks=st.integers(1, 12), codebook_size=st.integers(1, 64), max_position_embeddings=st.integers(30, 9000)
)
def test_max_frames_is_the_most_the_context_holds(num_codebooks, codebook_size, max_position_embeddings):
    config = tiny_config(
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        max_position_embeddings=max_position_embeddings,
    )

    def row_length(frames):  # bos, noisy, start_clean, clean, eos
        return 1 + frames * num_codebooks + 1 + frames * num_codebooks + 1

    assert row_length(config.max_frames) <= max_position_embeddings < row_length(config.max_frames + 1)


@pytest.mark.parametrize(
    "name, millions", [("125M", 120), ("250M", 251), ("350M", 346), ("1B", 920), ("2B", 1965), ("4B", 4017)]
)
def test_sizes_have_the_parameters_their_names_say(name, millions):
    with torch.device("meta"):
        model = DacSeForEnhancement(DacSeConfig.from_size(name))
    assert round(model.num_parameters() / 1e6) == millions


def test_size_fields_can_be_overridden():
    config = DacSeConfig.from_size("tiny", num_key_value_heads=2, num_codebooks=6, codebook_size=512)
    assert (config.num_key_value_heads, config.vocab_size) == (2, 5 + 6 * 512)
    assert DacSeConfig.from_size("tiny").num_key_value_heads == SIZES["tiny"]["num_attention_heads"]


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="no size '3B': choose one of tiny, .*4B"):
        DacSeConfig.from_size("3B")


def test_saved_configuration_loads_as_it_was(tmp_path):
    config = tiny_config(num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    config.save_pretrained(tmp_path)
    assert DacSeConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("ties", [True, False])
def test_plain_llama_configuration_keeps_its_shape_and_takes_the_layouts_ids(tmp_path, ties):
    LlamaConfig(vocab_size=9221, hidden_size=48, num_attention_heads=6, tie_word_embeddings=ties).save_pretrained(
        tmp_path
    )
    llama, config = LlamaConfig.from_pretrained(tmp_path).to_dict(), DacSeConfig.from_pretrained(tmp_path)
    different = {"model_type", "architectures", "bos_token_id", "pad_token_id"}
    assert {name: config.to_dict()[name] for name in llama if name not in different} == {
        name: value for name, value in llama.items() if name not in different
    }
    assert (config.model_type, config.architectures) == ("dacse", ["DacSeForEnhancement"])
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)


def test_a_plain_llamas_missing_fields_are_llamas_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 9221}')
    config, llama = DacSeConfig.from_pretrained(tmp_path), LlamaConfig()
    for name in ("hidden_size", "rope_parameters", "attention_dropout", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(llama, name) != getattr(DacSeConfig(), name)


def test_plain_llama_configuration_of_another_vocabulary_is_refused(tmp_path):
    LlamaConfig(vocab_size=32000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vocab_size is 32000"):
        DacSeConfig.from_pretrained(tmp_path)


def test_custom_pipelines_of_registered_tasks_are_dropped(tmp_path):
    config = tiny_config()
    config.custom_pipelines = {"text-generation": {"impl": "a.B"}, "task-of-nobody": {"impl": "a.C"}}
    config.save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]) == set(config.custom_pipelines)
    assert set(DacSeConfig.from_pretrained(tmp_path).custom_pipelines) == {"task-of-nobody"}


def test_an_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match="pattern is 'spiral': give one of flattened, delayed"):
        DacSeConfig(pattern="spiral")


def test_custom_pipelines_come_back_when_saved(tmp_path):
    spec = {"audio-enhancement": {"impl": "pipeline_dacse.AudioEnhancementPipeline", "pt": ["AutoModel"]}}
    (tmp_path / "config.json").write_text(json.dumps(DacSeConfig().to_dict() | {"custom_pipelines": spec}))
    loaded = DacSeConfig.from_pretrained(tmp_path)
    assert not loaded.custom_pipelines
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["custom_pipelines"] == spec
