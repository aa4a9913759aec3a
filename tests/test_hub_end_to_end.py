"""What is published loads for strangers, users and offline machines: a Hub on loopback and the real clients."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load, save
from typer.testing import CliRunner

import hub_upload.fresh_process
from command_dacse.cli import app
from tests.loopback_hub import LoopbackHub
from tests.test_card import write_run
from tests.test_convert import save_released_layout
from tests.tiny import tiny_model, tiny_pipeline
from training_dacse.clips.digests import Digests
from training_dacse.lm.adapters import save_adapter
from training_dacse.tokens.writer import ShardWriter

ROOT = Path(__file__).parents[1]
MODEL, ADAPTER = "user/dac-se1", "org/dac-se1-rain"
TOKENS, PAIRS = "user/tokens", "user/pairs"
FACTS = """
license: mit
language: [en, de]
training_data:
- {name: Rain and talk, licence: CC0-1.0, id: user/rain}
compute: one minute on two CPU cores
limits: [It was never trained on anything.]
evaluations:
- {run: run, system: "dacse:checkpoint"}
samples:
- {file: noisy.wav, title: A burst of noise (CC0)}
"""

# Runs the Python blocks and the `dacse` commands of cards, in the current folder; prints what it found as JSON.
RUN_CARDS = """
import json, re, shlex, sys
from pathlib import Path

def run_python(card, wanted):
    blocks = re.findall("```python\\n(.*?)```", card, re.DOTALL)
    blocks = [block for block in blocks if wanted(block) and "InferenceClient" not in block]  # asks a service
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    return len(blocks)

def trusting(block):
    return "trust_remote_code=True" in block
"""
STRANGER = (
    """
import sys
sys.path.insert(0, sys.argv[1])
from fresh_process import NoRooms
sys.meta_path.insert(0, NoRooms)
"""
    + RUN_CARDS
    + """
from huggingface_hub import hf_hub_download
from transformers import AutoModel, pipeline

found = {}
model, *revisions = sys.argv[2:]
card = Path(hf_hub_download(model, "README.md")).read_text()
found["blocks"] = run_python(card, trusting)
found["norms"] = []
for revision in revisions:
    loaded = AutoModel.from_pretrained(model, trust_remote_code=True, revision=revision, code_revision=revision)
    found["norms"].append(float(loaded.model.norm.weight[0]))
enhance = pipeline("audio-enhancement", model=model, trust_remote_code=True, revision=revisions[-1])
found["norms"].append(float(enhance.model.model.norm.weight[0]))
found["class"] = type(loaded).__module__
for name, options in {"missing": {"trust_remote_code": True, "revision": "v9"}, "untrusted": {}}.items():
    try:
        AutoModel.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        found[name] = str(error)
print("\\n" + json.dumps(found))
"""
)
USER = (
    RUN_CARDS
    + """
import torch
from huggingface_hub import hf_hub_download
from typer.testing import CliRunner
import dacse
from command_dacse.cli import app
from training_dacse.lm.adapters import save_adapter
from training_dacse.tokens.cache import TokenCache
from transformers import pipeline

found = {"python": 0, "commands": []}
model, adapter, *data = sys.argv[1:]
for name in (model, adapter):
    card = Path(hf_hub_download(name, "README.md")).read_text()
    found["python"] += run_python(card, lambda block: not trusting(block))
    for command in re.findall("^dacse .*$", card, re.MULTILINE):
        Path("enhanced.wav").unlink()
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        found["commands"].append([command, result.exit_code, Path("enhanced.wav").exists(), result.output])
for name in data:
    card = Path(hf_hub_download(name, "README.md", repo_type="dataset")).read_text()
    found["python"] += run_python(card, lambda block: True)
found["verify"] = CliRunner().invoke(app, ["verify", model]).output
found["cache"] = len(TokenCache(data[0], "train"))
enhance = pipeline("audio-enhancement", model=model)
found["class"] = type(enhance).__module__
found["plain"] = enhance("noisy.wav")["audio"].tolist()
found["adapted"] = enhance("noisy.wav", adapter=adapter)["audio"].tolist()
print("\\n" + json.dumps(found))
"""
)
OFFLINE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from fresh_process import NoRooms
sys.meta_path.insert(0, NoRooms)
from transformers import pipeline

enhance = pipeline("audio-enhancement", model=sys.argv[2], trust_remote_code=True)
print(json.dumps(enhance("noisy.wav")["audio"].tolist()))
"""


def dacse(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


class Pairs:
    """Stands for `DegradedPairs`."""

    tasks, window_frames = ["noise"], 10

    def describe(self, digests: Digests) -> dict:
        return {"seed": 0}

    def shard(self, numbers: range):
        for index in numbers:
            noisy, clean = np.random.default_rng(index).standard_normal((2, 1, 80)).astype(np.float32)
            yield {"noisy": noisy, "clean": clean, "task": "noise", "parameters": {}, "recording": "a.wav"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Checkpoint, adapter, token cache and pairs, as training leaves them, and a recording."""
    folder = tmp_path_factory.mktemp("work")
    noise = 0.1 * np.random.default_rng(0).standard_normal(75)  # one window
    soundfile.write(folder / "noisy.wav", noise, 8000)
    tiny_pipeline().save_pretrained(folder / "checkpoint")
    (folder / "checkpoint" / "card.yaml").write_text(FACTS)
    shutil.copy(folder / "noisy.wav", folder / "checkpoint")
    write_run(folder / "checkpoint" / "run")
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "checkpoint")
    save_adapter(adapted, folder / "adapter", "rain", before={"rain": 3.2}, after={"rain": 2.5})
    for part, count in (("train", 4), ("valid", 2)):
        writer = ShardWriter(folder / "cache" / part, Pairs(), str(folder / "checkpoint"), count, shard_size=2)
        writer.claim(Digests())
        for number in range(writer.num_shards):
            writer.write(number)
    for side in ("noisy", "clean"):
        for name in ("a.wav", "deeper/b.wav"):
            (folder / "pairs" / side / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "noisy.wav", folder / "pairs" / side / name)
    return folder


@pytest.fixture(scope="module")
def hub(workplace):
    """Everything published; the branch "experiment" of the model has other weights."""
    with LoopbackHub() as server:
        with pytest.MonkeyPatch.context() as patch:
            server.attach(patch)
            dacse("push", workplace / "checkpoint", MODEL)
            dacse("push", workplace / "adapter", ADAPTER, "--adapter", "--base-model", MODEL)
            dacse("push", workplace / "cache", TOKENS, "--dataset")
            dacse("push", workplace / "pairs", PAIRS, "--dataset", "--private")
        weights = load(server.files(MODEL)["model.safetensors"])
        weights["model.norm.weight"] *= 0.5
        changed = {"model.safetensors": save(weights, metadata={"format": "pt"})}
        server.repositories["model", MODEL].commit(server.files(MODEL) | changed, "other weights", "experiment")
        save_released_layout(workplace)
        for repo_id, folder in {"disco-eth/DAC-SE1": "llama", "descript/dac_44khz": "codec"}.items():
            server.add(repo_id, {path.name: path.read_bytes() for path in (workplace / folder).iterdir()})
        yield server


def run(arguments, folder, **environment) -> str:
    """Runs Python in a fresh process; returns the last line it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def stranger(hub, workplace, home):
    """What somebody without the package sees, who has no token either; fills the cache in `home`."""
    repository = hub.repositories["model", MODEL]
    revisions = ["main", "experiment", repository.refs["experiment"], list(repository.commits)[1]]  # names and shas
    arguments = ["-P", "-c", STRANGER, Path(hub_upload.fresh_process.__file__).parent, MODEL, *revisions]
    return json.loads(run(arguments, workplace, **hub.environment(home, token=""))) | {
        "audio": soundfile.read(workplace / "enhanced.wav")[0]
    }


@pytest.fixture(scope="module")
def user(hub, workplace, tmp_path_factory):
    """What somebody with the package sees, who may read the private data."""
    home = tmp_path_factory.mktemp("home_of_user")
    return json.loads(run(["-c", USER, MODEL, ADAPTER, TOKENS, PAIRS], workplace, **hub.environment(home)))


def expected(workplace) -> np.ndarray:
    return tiny_pipeline()(workplace / "noisy.wav")["audio"]


def test_everything_is_published_in_one_commit_each(hub):
    assert {kind_and_id for kind_and_id in hub.state() if kind_and_id[1].split("/")[0] in ("user", "org")} == {
        ("model", MODEL),
        ("model", ADAPTER),
        ("dataset", TOKENS),
        ("dataset", PAIRS),
    }
    for kind, repo_id in [("model", ADAPTER), ("dataset", TOKENS), ("dataset", PAIRS)]:
        assert hub.log(repo_id, kind) == ["initial commit", "Publish with dacse"]
    assert hub.log(MODEL) == ["initial commit", "Publish with dacse", "other weights"]
    assert hub.repositories["dataset", PAIRS].private and not hub.repositories["dataset", TOKENS].private


def test_the_published_samples_and_links_belong_together(hub):
    files = hub.files(MODEL)
    links = re.findall(r'src="([^"]+)"', files["README.md"].decode())
    assert len(links) == 2
    for link in links:
        assert link.removeprefix(f"{hub.url}/{MODEL}/resolve/main/") in files


def test_the_card_of_the_adapter_has_its_task_and_its_figures(hub):
    card = hub.files(ADAPTER)["README.md"].decode()
    assert "made for **rain**" in card and "| rain | 3.200 | 2.500 |" in card


def test_a_stranger_runs_the_snippets_of_the_card_without_the_package(stranger, workplace):
    assert stranger["blocks"] == 2
    assert stranger["class"].startswith("transformers_modules.")
    last_snippet = stranger["audio"][:75]  # whole frames, in a 16-bit file
    np.testing.assert_allclose(last_snippet, expected(workplace), atol=2**-15)


def test_a_pinned_revision_or_commit_is_the_one_that_is_loaded(stranger):
    assert stranger["norms"] == [1.0, 0.5, 0.5, 1.0, 1.0]  # the last by the pipeline


def test_a_missing_revision_and_untrusted_code_are_clear_errors(stranger):
    assert "v9 is not a valid git identifier" in stranger["missing"]
    assert "trust_remote_code=True" in stranger["untrusted"]


def test_a_user_of_the_package_runs_every_other_snippet_and_trusts_no_remote_code(user):
    assert user["python"] == 4
    assert [command for command, *_ in user["commands"]] == [
        f"dacse enhance noisy.wav -o enhanced.wav --model {MODEL}",
        f"dacse enhance noisy.wav -o enhanced.wav --model {MODEL} --adapter {ADAPTER}",
    ]
    for command, exit_code, is_written, output in user["commands"]:
        assert exit_code == 0 and is_written, (command, output)
    assert user["class"] == "pipeline_dacse.pipeline_dacse"


def test_a_published_model_is_verified_by_its_id(user):
    assert f"{MODEL} works without this package, with the same output" in user["verify"]


def test_the_loaded_model_is_the_one_that_was_pushed(user, workplace):
    np.testing.assert_array_equal(np.float32(user["plain"]), expected(workplace))


def test_the_adapter_loads_by_its_id_and_changes_the_output_as_it_does_at_home(user, workplace):
    at_home = tiny_pipeline()(workplace / "noisy.wav", adapter=str(workplace / "adapter"))["audio"]
    np.testing.assert_array_equal(np.float32(user["adapted"]), at_home)
    assert not np.array_equal(at_home, expected(workplace))


def test_pushed_tokens_are_read_from_the_hub(user):
    assert user["cache"] == 4


def test_a_cached_model_works_offline_without_the_package(stranger, workplace, home):
    arguments = ["-P", "-c", OFFLINE, Path(hub_upload.fresh_process.__file__).parent, MODEL]
    audio = run(arguments, workplace, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    np.testing.assert_array_equal(np.float32(json.loads(audio)), expected(workplace))


def test_the_authors_checkpoint_is_converted_from_the_hub_as_the_readme_says(hub, workplace, tmp_path):
    command = ["convert", "disco-eth/DAC-SE1", "dac-se1", "--codec", "descript/dac_44khz", "--dtype", "bfloat16"]
    said = run(["-m", "dacse", *command], tmp_path, **hub.environment(tmp_path / "home", token=""))
    assert said == "dac-se1 is ready: dacse enhance noisy.wav --model dac-se1"
    config = json.loads((tmp_path / "dac-se1" / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["dtype"]) == ("dacse", 9221, "bfloat16")
    assert "base_model: disco-eth/DAC-SE1" in (tmp_path / "dac-se1" / "README.md").read_text()
