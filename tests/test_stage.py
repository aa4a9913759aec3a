"""Staging writes a complete repository, whatever checkpoint it starts from."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from hub_upload import stage
from hub_upload.adapter import PRIOR_NAME
from hub_upload.stage import open_checkpoint, stage_model
from tests.tiny import tiny_codec, tiny_pipeline
from training_dacse.lm.objective import PRIOR_FILE, save_prior

CODE = {
    "configuration_dacse.py",
    "pattern_dacse.py",
    "grid_dacse.py",
    "modeling_dacse.py",
    "codes_dacse.py",
    "audio_arrays_dacse.py",
    "audio_containers_dacse.py",
    "audio_parts_dacse.py",
    "audio_dacse.py",
    "audio_decoder_dacse.py",
    "codec_dacse.py",
    "descript_dacse.py",
    "processing_dacse.py",
    "options_dacse.py",
    "windows_dacse.py",
    "recording_dacse.py",
    "levels_dacse.py",
    "adapters_dacse.py",
    "layout_dacse.py",
    "device_dacse.py",
    "call_dacse.py",
    "engine_dacse.py",
    "pipeline_dacse.py",
}
FILES = {
    "README.md",
    "handler.py",
    "requirements.txt",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "model.safetensors",
    "audio_tokenizer/config.json",
    "audio_tokenizer/model.safetensors",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint the test may change."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def staged(source, folder, name="org/dac-se1", **options):
    folder.mkdir()
    stage_model(open_checkpoint(str(source), **options), str(source), folder, name)
    return folder


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_staged_repository_is_complete_and_names_no_local_path(checkpoint, tmp_path):
    folder = staged(checkpoint, tmp_path / "out")
    assert names(folder) >= FILES | CODE
    assert {name for name in names(folder) if not name.endswith("_dacse.py")} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_dacse.DacSeConfig",
        "AutoModel": "modeling_dacse.DacSeForEnhancement",
        "AutoModelForCausalLM": "modeling_dacse.DacSeForEnhancement",
    }
    task = {"impl": "pipeline_dacse.AudioEnhancementPipeline", "pt": ["AutoModel"], "type": "audio"}
    assert config["custom_pipelines"] == {"audio-enhancement": task}
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_dacse.DacSeProcessor"}
    for name in names(folder):
        if not name.endswith(".safetensors"):
            assert str(tmp_path.parent) not in (folder / name).read_text(), name


def test_large_weights_are_sharded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SHARD_SIZE", "20KB")
    found = names(staged(checkpoint, tmp_path / "out"))
    assert len([name for name in found if name.startswith("model-0")]) >= 3
    assert "model.safetensors.index.json" in found and "model.safetensors" not in found


def test_the_dtype_is_converted_and_the_codec_stays_in_float32(checkpoint, tmp_path):
    folder = staged(checkpoint, tmp_path / "out", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    codec = load_file(folder / "audio_tokenizer" / "model.safetensors")
    assert {tensor.dtype for tensor in codec.values()} == {torch.float32}
    assert open_checkpoint(str(folder)).model.dtype == torch.bfloat16
    assert "| weights | bfloat16 safetensors (codec float32) |" in (folder / "README.md").read_text()


def test_only_the_weights_are_converted(checkpoint):
    for options in ({"dtype": torch.bfloat16}, {"dtype": torch.float16}, {}):
        model = open_checkpoint(str(checkpoint), **options).model
        assert model.dtype == options.get("dtype", torch.float32)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        frequencies = model.model.rotary_emb.inv_freq
        assert torch.equal(frequencies, tiny_pipeline().model.model.rotary_emb.inv_freq)  # in float32


def test_without_a_dtype_the_stored_one_is_kept(checkpoint, tmp_path):
    half = staged(checkpoint, tmp_path / "half", dtype=torch.bfloat16)
    again = staged(half, tmp_path / "again")
    assert (half / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_weights_that_are_a_pickle_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pickle \(pytorch_model\.bin\).*safetensors"):
        open_checkpoint(str(copy))


def test_a_layout_that_contradicts_the_codec_is_refused(copy, tmp_path):
    shutil.rmtree(copy / "audio_tokenizer")
    tiny_codec(codebook_size=32).save_pretrained(copy / "audio_tokenizer")
    with pytest.raises(ValueError, match="codebook_size is 16 .* 32"):
        open_checkpoint(str(copy))
    tiny_codec(n_codebooks=2).save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="num_codebooks is 3 in the processor and 2 in its codec"):
        open_checkpoint(str(copy), codec=str(tmp_path / "codec"))


def test_a_checkpoint_without_processor_or_codec_is_refused(copy):
    (copy / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="`dacse convert .* DIR --codec descript/dac_44khz`"):
        open_checkpoint(str(copy))


def test_adapters_and_facts_are_taken_over_and_training_leftovers_are_not(copy, tmp_path):
    kept = {"adapters/rain/adapter_config.json", "adapters/rain/adapter_model.safetensors"}
    for name in (*kept, "adapters/rain/optimizer.pt", "optimizer.pt", "checkpoint-1/model.safetensors"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(json.dumps({"base_model_name_or_path": str(copy)}))
    (copy / "card.yaml").write_text("compute: an hour on a laptop\n")
    folder = staged(copy, tmp_path / "out")
    assert {name for name in names(folder) if not name.endswith("_dacse.py")} == FILES | kept | {"card.yaml"}
    assert json.loads((folder / "adapters/rain/adapter_config.json").read_text()) == {
        "base_model_name_or_path": "org/dac-se1"
    }


def test_samples_are_made_by_the_staged_weights(copy, tmp_path):
    rate = tiny_pipeline().processor.sampling_rate
    noise = 0.1 * np.random.default_rng(0).standard_normal(150).astype(np.float32)
    soundfile.write(copy / "rain.wav", noise, rate)
    (copy / "card.yaml").write_text("samples:\n- {file: rain.wav, title: Rain (CC0)}\n")
    folder = staged(copy, tmp_path / "out")
    before, rate_before = soundfile.read(folder / "samples" / "rain.noisy.flac", dtype="float32")
    np.testing.assert_allclose(before, noise, atol=2**-15)  # 16 bits
    after, rate_after = soundfile.read(folder / "samples" / "rain.enhanced.flac", dtype="float32")
    expected = tiny_pipeline()(str(copy / "rain.wav"))["audio"]
    np.testing.assert_allclose(after, expected.clip(-1, 1), atol=2**-15)
    assert rate_before == rate_after == rate
    again = staged(folder, tmp_path / "again")
    assert (again / "samples" / "rain.noisy.flac").exists()


def test_what_rivals_made_of_a_sample_is_taken_over(copy, tmp_path):
    for name in ("rain.wav", "theirs.wav"):
        soundfile.write(copy / name, [0.1, 0.2, 0.1], 8000)
    (copy / "card.yaml").write_text("samples:\n- {file: rain.wav, title: Rain, rivals: {RNNoise 0.4: theirs.wav}}\n")
    folder = staged(copy, tmp_path / "out")
    assert (folder / "samples" / "rain.rnnoise-0-4.flac").exists()
    again = staged(folder, tmp_path / "again")
    assert names(again) == names(folder)
    assert "| recording | before | dac-se1 | RNNoise 0.4 |" in (again / "README.md").read_text()


def test_the_logit_adjustment_of_the_weights_travels_with_them(copy, tmp_path):
    assert PRIOR_NAME == PRIOR_FILE  # of the room that reads it
    save_prior(torch.zeros(53), copy)
    folder = staged(copy, tmp_path / "out")
    assert (folder / PRIOR_NAME).read_bytes() == (copy / PRIOR_NAME).read_bytes()
