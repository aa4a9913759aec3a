"""The front door: importing it registers everything and costs next to nothing beyond transformers itself."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import dacse
from tests.tiny import tiny_config, tiny_pipeline

ROOT = Path(__file__).parents[1]
needs_embedded_model = pytest.mark.skipif(
    not Path(dacse.default_model(), "config.json").is_file(), reason="dacse/tiny holds no model yet"
)


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(process.stdout.split())


def test_import_registers_config_model_processor_and_pipeline(tmp_path):
    enhance = tiny_pipeline()
    enhance.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is dacse.DacSeConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is dacse.DacSeForEnhancement
    assert type(AutoModelForCausalLM.from_config(tiny_config())) is dacse.DacSeForEnhancement
    assert type(AutoProcessor.from_pretrained(tmp_path)) is dacse.DacSeProcessor
    assert type(pipeline("audio-enhancement", model=str(tmp_path))) is dacse.AudioEnhancementPipeline


def test_registering_again_changes_nothing():
    before = PIPELINE_REGISTRY.check_task("audio-enhancement")[1]
    dacse.register()
    assert PIPELINE_REGISTRY.check_task("audio-enhancement")[1] is before


def test_import_loads_at_most_a_tenth_more_modules_than_transformers_does():
    # seconds are measured in benchmarks/import_time.py; the number of modules does not hang on the machine
    names = "AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor"
    transformers = modules_after(f"from transformers import {names}")
    ours = modules_after("import dacse")
    assert len(transformers) > 500 and "pipeline_dacse.pipeline_dacse" in ours
    assert len(ours) <= 1.1 * len(transformers)


def test_public_names_are_there_and_others_are_not():
    for name in dacse.__all__:
        assert getattr(dacse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dacse.nothing


@needs_embedded_model
def test_a_pipeline_without_a_model_is_the_embedded_one():
    enhance = pipeline("audio-enhancement", device="cpu")
    assert enhance.model.config._name_or_path == dacse.default_model()
    rate = enhance.processor.sampling_rate
    audio = 0.1 * np.random.default_rng(0).standard_normal(rate // 10).astype(np.float32)
    out = enhance({"array": audio, "sampling_rate": rate})
    assert out["audio"].shape == audio.shape and out["sampling_rate"] == rate


@needs_embedded_model
def test_the_embedded_model_is_weights_and_json():
    files = [path for path in Path(dacse.default_model()).rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".md"}


def test_the_version_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dacse.__version__ == project["version"]


@needs_embedded_model
def test_the_embedded_model_is_at_most_25_megabytes_of_safetensors():
    files = [path for path in Path(dacse.default_model()).rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert not any(path.suffix in (".bin", ".pt", ".pth") for path in files)
    assert sum(path.stat().st_size for path in files) <= 25e6
