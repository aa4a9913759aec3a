"""What belongs to a model: its adapters, its processor and codec, this machine's devices; and what does not fit it."""

import copy
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BertConfig, BertModel, pipeline

import dacse
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import Enhancer
from tests.loopback_hub import LoopbackHub
from tests.test_pipeline import noise
from tests.tiny import tiny_codec, tiny_model, tiny_pipeline

RATE = 8000  # of the tiny codec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with two adapters in its `adapters/` folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    for seed, name in enumerate(("denoise", "dereverb")):
        model = tiny_model()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        model.save_pretrained(folder / "adapters" / name)
    return folder


def test_adapters_are_switched_per_call_and_the_base_model_comes_back(folder):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    audio = {"array": noise(60), "sampling_rate": RATE}
    base = enhance(audio)["audio"]
    denoised, dereverbed = (enhance(audio, adapter=name)["audio"] for name in ("denoise", "dereverb"))
    assert (denoised != base).any() and (dereverbed != base).any() and (denoised != dereverbed).any()
    np.testing.assert_array_equal(enhance(audio, adapter=None)["audio"], base)
    np.testing.assert_array_equal(enhance(audio)["audio"], base)
    np.testing.assert_array_equal(enhance(audio, adapter=str(folder / "adapters" / "denoise"))["audio"], denoised)
    for name, expected in (("denoise", denoised), ("dereverb", dereverbed)):  # as they were, after a third
        np.testing.assert_array_equal(enhance(audio, adapter=name)["audio"], expected)
    with pytest.raises(ValueError, match=r"adapter 'nothing' is unknown; .* has .*denoise, dereverb"):
        enhance(audio, adapter="nothing")


def test_loading_an_adapter_leaves_the_model_as_it_was_given(folder, tmp_path):
    """Its own adapter stays active, its weights stay to be trained; also where the other one does not fit."""
    model = tiny_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False), "own")
    enhancer = Enhancer(model, tiny_pipeline().processor)
    learned = [name for name, weights in model.named_parameters() if weights.requires_grad]
    config = json.loads((folder / "adapters" / "denoise" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["o_proj", "k_proj"]}))
    shutil.copy(folder / "adapters" / "denoise" / "adapter_model.safetensors", tmp_path)

    def enhanced(**options):
        pieces = enhancer.stream({"array": noise(60), "sampling_rate": RATE}, dacse.EnhanceOptions(**options))
        return np.concatenate([piece.audio for piece in pieces], axis=1)

    own = enhanced()
    assert (enhanced(adapter=folder / "adapters" / "denoise") != own).any()
    np.testing.assert_array_equal(enhanced(), own)
    with pytest.raises(ValueError, match="does not fit"):
        enhanced(adapter=tmp_path)
    np.testing.assert_array_equal(enhanced(), own)
    assert [name for name, weights in model.named_parameters() if weights.requires_grad] == learned


FROM_THE_HUB = """
import numpy, sys
import dacse
from transformers import pipeline

enhance = pipeline("audio-enhancement", model="user/model", device="cpu")
for name in ("denoise", "user/lora"):
    numpy.save(name.replace("/", "_"), enhance(numpy.load("noisy.npy"), sampling_rate=8000, adapter=name)["audio"])
try:
    enhance(numpy.load("noisy.npy"), sampling_rate=8000, adapter="other")
except ValueError as error:
    print(error)
"""


def test_adapters_come_from_the_hub_too(folder, tmp_path):
    def files(place):
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    np.save(tmp_path / "noisy.npy", noise(60))
    with LoopbackHub() as hub:
        hub.add("user/model", files(folder))
        hub.add("user/lora", files(folder / "adapters" / "denoise"))
        environment = os.environ | hub.environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", FROM_THE_HUB]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    expected = pipeline("audio-enhancement", model=str(folder), device="cpu")(
        noise(60), sampling_rate=RATE, adapter="denoise"
    )
    for name in ("denoise", "user_lora"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected["audio"])
    assert "adapter 'other' is unknown; user/model has denoise, dereverb, user_lora_b7d0fd06; or" in process.stdout


OF_A_REVISION = """
import numpy, sys
import dacse
from transformers import pipeline

for name, revision in (("first", sys.argv[1]), ("latest", None)):
    enhance = pipeline("audio-enhancement", model="user/model", revision=revision, device="cpu")
    numpy.save(name, enhance(numpy.load("noisy.npy"), sampling_rate=8000, adapter="denoise")["audio"])
"""


def test_what_lies_beside_a_model_is_of_its_revision(folder, tmp_path):
    np.save(tmp_path / "noisy.npy", noise(60))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = {name.replace("dereverb", "denoise"): content for name, content in files.items() if "dereverb" in name}
    with LoopbackHub() as hub:
        first = hub.add("user/model", files)
        hub.add("user/model", files | other)
        environment = os.environ | hub.environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", OF_A_REVISION, first]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    for name, adapter in (("first", "denoise"), ("latest", "dereverb")):
        expected = enhance(noise(60), sampling_rate=RATE, adapter=adapter)["audio"]
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


def test_an_adapter_of_another_shape_is_refused(folder, tmp_path):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    config = json.loads((folder / "adapters" / "denoise" / "adapter_config.json").read_text())
    strange = Path(shutil.copytree(folder / "adapters" / "denoise", tmp_path / "strange"))
    (strange / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "k_proj"]}))
    with pytest.raises(ValueError, match="does not fit .* weights such as"):
        enhance(noise(60), sampling_rate=RATE, adapter=str(strange))
    assert enhance(noise(60), sampling_rate=RATE, adapter="denoise")["audio"].shape == (60,)


def test_an_adapter_of_a_wider_model_is_refused_every_time(folder, tmp_path):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    wider = tiny_model(hidden_size=64)
    wider.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    wider.save_pretrained(tmp_path / "wider")
    for _ in range(2):
        with pytest.raises(ValueError, match="wider.* does not fit .* give the model it was trained on"):
            enhance(noise(60), sampling_rate=RATE, adapter=str(tmp_path / "wider"))
    assert enhance(noise(60), sampling_rate=RATE, adapter="denoise")["audio"].shape == (60,)


def remove_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def cut_weights(adapter: Path) -> None:
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights[:100])


def aim_elsewhere(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["query"]}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove_weights, ValueError, "broken has no adapter_model.safetensors"),
        (cut_weights, ValueError, "weights of adapter .*broken are damaged"),
        (aim_elsewhere, ValueError, "broken does not fit .*query"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_refused_every_time(folder, tmp_path, damage, error, message):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    damage(Path(shutil.copytree(folder / "adapters" / "denoise", tmp_path / "broken")))
    for _ in range(2):
        with pytest.raises(error, match=message):
            enhance(noise(60), sampling_rate=RATE, adapter=str(tmp_path / "broken"))
    assert enhance(noise(60), sampling_rate=RATE, adapter="denoise")["audio"].shape == (60,)


def test_adapters_whose_names_differ_by_a_sign_are_two(folder, tmp_path):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    outputs = []
    for name, adapter in (("v1_0", "denoise"), ("v1-0", "dereverb")):
        shutil.copytree(folder / "adapters" / adapter, tmp_path / name)
        given, known = (
            enhance(noise(60), sampling_rate=RATE, adapter=adapter)["audio"]
            for adapter in (str(tmp_path / name), adapter)
        )
        np.testing.assert_array_equal(given, known)
        outputs.append(given)
    assert (outputs[0] != outputs[1]).any()


def test_a_pipeline_made_from_an_adapter_uses_it_until_told_not_to(folder, tmp_path):
    adapter = Path(shutil.copytree(folder / "adapters" / "denoise", tmp_path / "mine"))
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    enhance = pipeline("audio-enhancement", model=str(adapter), device="cpu")
    audio = {"array": noise(60), "sampling_rate": RATE}
    assert (enhance(audio)["audio"] != enhance(audio, adapter=None)["audio"]).any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"device": "quantum"}, "device 'quantum' is unknown"),
        ({"dtype": "float17"}, "dtype 'float17' is unknown"),
        pytest.param(
            {"device": "cuda"},
            "device 'cuda' is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here"),
        ),
        pytest.param(
            {"device": 0},
            "device 0 is unknown",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is here"),
        ),
    ],
)
def test_a_device_or_dtype_that_is_not_here_is_refused_and_not_replaced(folder, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline("audio-enhancement", model=str(folder), **parameters)
    assert "\n" not in str(error.value)


def test_a_model_and_a_codec_that_do_not_belong_together_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="codebook_size is 16 in the processor and 8 in its codec"):
        pipeline("audio-enhancement", model=str(folder), codec=tiny_codec(codebook_size=8))
    processor = type(tiny_pipeline().processor).from_codec(tiny_codec(), first_code_id=6)
    with pytest.raises(ValueError, match="first_code_id is 5 in the model and 6 in its processor"):
        dacse.AudioEnhancementPipeline(model=tiny_model(), processor=processor)
    with pytest.raises(ValueError, match="descript/dac_44khz has not its 3 codebooks of 16 codes"):
        dacse.AudioEnhancementPipeline(model=tiny_model())
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings_file = copy / "processor_config.json"
    settings_file.write_text(settings_file.read_text().replace('"num_codebooks": 3', '"num_codebooks": 4'))
    with pytest.raises(ValueError, match="num_codebooks is 4 in the processor and 3 in its codec"):
        pipeline("audio-enhancement", model=str(copy))


def test_a_directory_without_weights_or_with_another_architecture_is_named(folder, tmp_path):
    empty = shutil.copytree(folder, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"no file named model.safetensors.* found in directory {empty}"):
        pipeline("audio-enhancement", model=str(empty))
    bert = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert is a bert model of 8 ids; audio-enhancement takes a dacse model"):
        pipeline("audio-enhancement", model=str(tmp_path / "bert"))


def test_the_codec_stays_in_float32_beside_a_model_in_bfloat16(folder):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu", dtype="bfloat16")
    assert enhance.model.dtype == torch.bfloat16 and enhance.processor.audio_tokenizer.dtype == torch.float32
    assert enhance(noise(60), sampling_rate=RATE)["audio"].dtype == np.float32


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")], ids=str)
def test_a_dtype_that_the_cpu_imitates_is_warned_of(monkeypatch, caplog, dtype, name):
    parts = tiny_pipeline()
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda supported=supported: supported)
        dacse.AudioEnhancementPipeline(model=tiny_model().to(dtype), processor=parts.processor, device="cpu")
        assert ("float32 is many times faster" in caplog.text) == (not supported)


def test_the_batch_size_follows_the_size_of_keys_and_values():
    assert tiny_pipeline().enhancer.default_batch_size() == 64
    large = DacSeConfig()  # 24 layers of 1536: 2.4 GB of keys and values in one window
    with torch.device("meta"):
        model = DacSeForEnhancement(large)
    processor = SimpleNamespace(**large.to_dict(), window_frames=None)
    assert Enhancer(model, processor).default_batch_size() == 1


def lora(**settings) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | settings))


def save_adapter(place: Path, seed: int = 0, **settings) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(tiny_model(), lora(**settings)).save_pretrained(place)
    return place


def test_an_adapter_trained_again_in_place_is_heard(folder, tmp_path):
    enhance, audio = pipeline("audio-enhancement", model=str(folder)), {"array": noise(60), "sampling_rate": RATE}
    place = save_adapter(tmp_path / "mine", seed=0)
    before = enhance(audio, adapter=place)["audio"]
    save_adapter(place, seed=1)
    fresh = pipeline("audio-enhancement", model=str(folder))(audio, adapter=place)["audio"]
    np.testing.assert_array_equal(enhance(audio, adapter=place)["audio"], fresh)
    assert (fresh != before).any()


def test_so_is_one_whose_path_is_a_bare_name(folder, tmp_path, monkeypatch):
    enhance, audio = pipeline("audio-enhancement", model=str(folder)), {"array": noise(60), "sampling_rate": RATE}
    for seed, place in ((0, tmp_path), (1, tmp_path), (2, tmp_path / "elsewhere")):  # in place, and in another folder
        save_adapter(place / "mine", seed=seed)
        monkeypatch.chdir(place)
        fresh = pipeline("audio-enhancement", model=str(folder))(audio, adapter="mine")["audio"]
        np.testing.assert_array_equal(enhance(audio, adapter="mine")["audio"], fresh)


def test_a_models_own_adapter_comes_before_a_folder_of_the_same_name(folder, tmp_path, monkeypatch):
    audio = {"array": noise(60), "sampling_rate": RATE}
    expected = pipeline("audio-enhancement", model=str(folder))(audio, adapter="denoise")["audio"]
    save_adapter(tmp_path / "denoise", seed=5)
    save_adapter(tmp_path / "mine", seed=5)
    monkeypatch.chdir(tmp_path)
    enhance = pipeline("audio-enhancement", model=str(folder))
    np.testing.assert_array_equal(enhance(audio, adapter="denoise")["audio"], expected)
    there = enhance(audio, adapter="./denoise")["audio"]
    assert (there != expected).any()
    np.testing.assert_array_equal(enhance(audio, adapter="mine")["audio"], there)


def test_what_a_call_switches_is_as_it_was_afterwards(folder):
    model = tiny_model()
    for name in "AB":
        model.add_adapter(lora(), adapter_name=name)
    model.set_adapter(["A", "B"])
    model.eval()
    enhance = dacse.AudioEnhancementPipeline(model=model, processor=tiny_pipeline().processor, device="cpu")
    audio, trained = {"array": noise(60), "sampling_rate": RATE}, [p.requires_grad for p in model.parameters()]
    both = enhance(audio)["audio"]
    assert (enhance(audio, adapter="A")["audio"] != both).any()
    assert (enhance(audio, adapter=None)["audio"] != both).any()
    assert model.active_adapters() == ["A", "B"] and [p.requires_grad for p in model.parameters()] == trained
    np.testing.assert_array_equal(enhance(audio)["audio"], both)


def test_a_peft_model_is_enhanced_with_its_adapter():
    processor, audio = tiny_pipeline().processor, {"array": noise(60), "sampling_rate": RATE}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(), lora()).eval()
    enhance = dacse.AudioEnhancementPipeline(model=model, processor=processor, device="cpu")
    expected = dacse.AudioEnhancementPipeline(
        model=copy.deepcopy(model).merge_and_unload(), processor=processor, device="cpu"
    )
    adapted = enhance(audio)["audio"]
    np.testing.assert_allclose(adapted, expected(audio)["audio"], rtol=0, atol=1e-6)
    base = enhance(audio, adapter=None)["audio"]
    np.testing.assert_array_equal(base, tiny_pipeline()(audio)["audio"])
    assert (adapted != base).any()


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"lora_dropout": 0.5}], ids=str)
def test_relatives_of_lora_are_heard_as_peft_runs_them(folder, tmp_path, settings):
    place = save_adapter(tmp_path / "mine", **settings)
    enhance, audio = pipeline("audio-enhancement", model=str(folder)), {"array": noise(60), "sampling_rate": RATE}
    model = PeftModel.from_pretrained(tiny_model(), place)
    expected = dacse.AudioEnhancementPipeline(model=model, processor=enhance.processor, device="cpu")(audio)["audio"]
    np.testing.assert_array_equal(enhance(audio, adapter=place)["audio"], expected)


def test_an_adapter_that_replaces_layers_is_refused_and_leaves_the_model_as_it_was(folder, tmp_path):
    place = save_adapter(tmp_path / "mine", modules_to_save=["norm"])
    enhance, audio = pipeline("audio-enhancement", model=str(folder)), {"array": noise(60), "sampling_rate": RATE}
    before = enhance(audio)["audio"]
    with pytest.raises(ValueError, match=r"mine replaces whole layers \(norm\).*merge it with `dacse convert"):
        enhance(audio, adapter=place)
    assert not any(isinstance(module, BaseTunerLayer) for module in enhance.model.modules())
    np.testing.assert_array_equal(enhance(audio)["audio"], before)


def test_a_subfolder_reaches_processor_and_adapters(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "repository" / "model")
    model = DacSeForEnhancement.from_pretrained(tmp_path / "repository", subfolder="model")
    enhance = dacse.AudioEnhancementPipeline(model=model, device="cpu")
    audio = {"array": noise(60), "sampling_rate": RATE}
    expected = pipeline("audio-enhancement", model=str(folder))(audio, adapter="denoise")["audio"]
    np.testing.assert_array_equal(enhance(audio, adapter="denoise")["audio"], expected)


def test_no_token_is_kept(folder):
    model = DacSeForEnhancement.from_pretrained(folder, token="hf_secret", revision="main")
    content = io.BytesIO()
    torch.save(model, content)
    assert b"hf_secret" not in content.getvalue()
