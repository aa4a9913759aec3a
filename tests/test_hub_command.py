"""The commands say in one line what is wrong, publish every kind of repository, and report for people and machines."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
import yaml
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from command_dacse.cli import app
from hub_upload.adapter import PRIOR_NAME
from hub_upload.remote import MANIFEST_NAME
from hub_upload.space import stage_space
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.tiny import tiny_model, tiny_pipeline
from training_dacse.lm.objective import save_prior

SPACE = Path(__file__).parents[1] / "spaces_app"


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as server:
        server.attach(monkeypatch)
        yield server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


def save_adapter(folder, base, **model) -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model(**model), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)


def save_pairs(folder, noisy=("a.wav",), clean=("a.wav",)) -> None:
    for side, names in {"noisy": noisy, "clean": clean}.items():
        (folder / side).mkdir(parents=True)
        for name in names:
            soundfile.write(folder / side / name, [0.0, 0.1], 8000)


def dacse(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def error_of(*arguments) -> str:
    """The one line a failing command says."""
    exit_code, stdout, stderr = dacse(*arguments)
    lines = [line for line in stderr.splitlines() if line]
    assert (exit_code, stdout) == (1, "") and lines[-1].startswith("error: "), (exit_code, stdout, stderr)
    return lines[-1]


def test_the_space_is_published_as_it_stands_and_again_over_itself(hub, checkpoint):
    dacse("push", checkpoint, "org/model")
    for _ in range(2):
        exit_code, stdout, _ = dacse("push", "--space", "org/enhance", "--model", "org/model")
        assert exit_code == 0 and "published as http" in stdout
    assert hub.log("org/enhance", "space") == ["initial commit", "Publish with dacse"]
    published = hub.files("org/enhance", "space")
    for name in set(published) - {".gitattributes", MANIFEST_NAME, "README.md"}:
        assert published[name] == (SPACE / name).read_bytes()
    header, text = published["README.md"].decode().removeprefix("---\n").split("---\n", 1)
    assert (SPACE / "README.md").read_text().endswith(text)
    assert yaml.safe_load(header)["models"] == yaml.safe_load(header)["preload_from_hub"] == ["org/model"]
    variables = {"DACSE_MODELS": "org/model", "DACSE_TRUST_REMOTE_CODE": "1"}
    assert hub.repositories["space", "org/enhance"].variables == variables


def test_a_space_is_made_of_its_files_and_of_nothing_that_lies_beside_them(tmp_path, monkeypatch):
    place = Path(shutil.copytree(SPACE, tmp_path / "spaces_app", ignore=shutil.ignore_patterns("__pycache__")))
    for stray in (
        ".env",
        "notes.py",
        "secrets.json",
        ".gradio/flagged.csv",
        "__pycache__/app.pyc",
        "examples/mine.wav",
        "examples/mine.flac",
    ):
        (place / stray).parent.mkdir(exist_ok=True)
        (place / stray).write_text("HF_TOKEN=secret")
    found = SimpleNamespace(submodule_search_locations=[str(place)])
    monkeypatch.setattr("hub_upload.space.find_spec", lambda name: found)
    (tmp_path / "out").mkdir()
    stage_space(tmp_path / "out", [])
    files = {path.relative_to(SPACE) for path in SPACE.rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in files if not path.parts[0].startswith((".", "__"))}
    staged = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert staged == wanted and len(staged) >= 11


def test_a_space_offers_no_model_that_could_not_run_there(hub, checkpoint):
    hub.add("org/plain", {"config.json": b"{}"})
    for model, message in {
        str(checkpoint): "is a directory, which a Space cannot reach",
        "org/nothing": "there is no model org/nothing on the Hub",
        "org/plain": "org/plain holds no pipeline_dacse.py and no processor_config.json",
    }.items():
        assert message in error_of("push", "--space", "org/enhance", "--model", model)
    assert ("space", "org/enhance") not in hub.repositories


def test_what_is_removed_and_what_is_kept_is_said(hub, tmp_path):
    save_pairs(tmp_path / "pairs")
    dacse("push", tmp_path / "pairs", "org/pairs", "--dataset")
    hub.add("org/pairs", {"notes.md": b"mine"}, "dataset")
    (tmp_path / "pairs" / "card.yaml").write_text("license: mit\n")
    dacse("push", tmp_path / "pairs", "org/pairs", "--dataset")
    (tmp_path / "pairs" / "card.yaml").unlink()
    _, stdout, _ = dacse("push", tmp_path / "pairs", "org/pairs", "--dataset")
    assert "removed  card.yaml\n" in stdout and "kept  notes.md (not of dacse)\n" in stdout


def test_a_dry_run_lists_files_with_their_sizes_and_needs_no_hub(checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    save_pairs(tmp_path / "pairs")
    exit_code, stdout, _ = dacse("push", tmp_path / "pairs", "org/pairs", "--dataset", "--dry-run")
    assert exit_code == 0
    *files, last = [line.split() for line in stdout.splitlines()]
    assert [name for *_, name in files] == [MANIFEST_NAME, "README.md", "data/train-00000-of-00001.parquet"]
    assert files[1][1] == "bytes" and files[2][1] == "kB"
    assert " ".join(last).endswith("verified, nothing uploaded (dry run)")


def test_the_report_for_machines_is_json(hub, tmp_path):
    save_pairs(tmp_path / "pairs")
    _, stdout, _ = dacse("push", tmp_path / "pairs", "org/pairs", "--dataset", "--json")
    report = json.loads(stdout)
    assert (report["repo_id"], report["repo_type"]) == ("org/pairs", "dataset")
    assert report["url"].startswith(hub.url) and {"path", "bytes"} == set(report["files"][0])


def test_the_token_is_written_nowhere(hub, tmp_path):
    save_pairs(tmp_path / "pairs")
    _, stdout, stderr = dacse("push", tmp_path / "pairs", "org/pairs", "--dataset")
    assert TOKEN not in stdout + stderr
    for repository in hub.repositories.values():
        for files in repository.commits.values():
            assert not [path for path, content in files.items() if TOKEN.encode() in content]


@pytest.mark.parametrize(
    "arguments",
    [
        ["push", "folder"],
        ["push", "folder", "org/name", "--adapter", "--dataset"],
        ["push", "--space", "folder", "org/name"],
        ["push", "folder", "org/name", "--model", "org/model"],
        ["convert", "source"],
        ["convert", "source", "folder", "--dtype", "int8"],
    ],
)
def test_contradicting_arguments_are_refused(arguments):
    assert dacse(*arguments)[0] == 2


def test_a_checkpoint_that_is_not_there_is_one_line(hub, tmp_path):
    nowhere = tmp_path / "nowhere"
    for command in (["push", nowhere, "org/model"], ["convert", nowhere, tmp_path / "to"], ["verify", nowhere]):
        assert f"'{nowhere}' is neither a directory here nor a Hub id" in error_of(*command)
    assert hub.state() == {}


def test_a_checkpoint_whose_codec_contradicts_it_is_one_line(hub, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "processor_config.json").read_text())
    (other / "processor_config.json").write_text(json.dumps(config | {"codebook_size": 32}))
    assert "codebook_size" in error_of("push", other, "org/model")
    assert hub.state() == {}


def test_an_adapter_on_a_local_base_is_refused_until_its_base_has_a_name(hub, checkpoint, tmp_path):
    save_adapter(tmp_path / "adapter", checkpoint)
    assert "--base-model ORGANISATION/NAME" in error_of("push", tmp_path / "adapter", "org/adapter", "--adapter")
    assert hub.state() == {}
    assert dacse("push", tmp_path / "adapter", "org/adapter", "--adapter", "--base-model", "org/base")[0] == 0
    published = hub.files("org/adapter")
    assert set(published) == {
        ".gitattributes",
        MANIFEST_NAME,
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "card.yaml",
    }
    assert json.loads(published["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert str(checkpoint).encode() not in b"".join(published.values())


def test_an_adapter_is_published_with_its_bases_logit_adjustment_and_policy(hub, tmp_path):
    base = tiny_pipeline()
    base.processor.minimum_risk = True
    base.save_pretrained(tmp_path / "base")
    save_prior(torch.arange(53.0), tmp_path / "base")
    save_adapter(tmp_path / "adapter", tmp_path / "base")
    assert dacse("push", tmp_path / "adapter", "org/adapter", "--adapter", "--base-model", "org/base")[0] == 0
    published = hub.files("org/adapter")
    assert published[PRIOR_NAME] == (tmp_path / "base" / PRIOR_NAME).read_bytes()
    assert b"`minimum_risk=True`" in published["README.md"]


def test_an_adapter_for_another_base_is_refused(hub, checkpoint, tmp_path):
    save_adapter(tmp_path / "wide", checkpoint, hidden_size=64)
    assert "does not fit" in error_of("push", tmp_path / "wide", "org/adapter", "--adapter", "--base-model", "o/b")
    save_adapter(tmp_path / "deep", checkpoint, num_hidden_layers=3)
    assert "does not fit" in error_of("push", tmp_path / "deep", "org/adapter", "--adapter", "--base-model", "o/b")
    assert "is no adapter" in error_of("push", checkpoint, "org/adapter", "--adapter")
    assert hub.state() == {}


def test_a_folder_that_is_no_data_set_is_refused(hub, tmp_path):
    assert "holds neither tokens" in error_of("push", tmp_path, "org/data", "--dataset")
    save_pairs(tmp_path / "lonely", noisy=["a.wav", "b.wav"])
    assert "1 recordings without a partner of the same name, such as b.wav" in error_of(
        "push", tmp_path / "lonely", "org/data", "--dataset"
    )
    save_pairs(tmp_path / "none", noisy=[], clean=[])
    assert "hold no recordings" in error_of("push", tmp_path / "none", "org/data", "--dataset")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cache.json").write_text("{}")
    assert "holds no tokens-*.arrow" in error_of("push", tmp_path, "org/data", "--dataset")
    assert hub.state() == {}


def test_large_pair_sets_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr("hub_upload.dataset.SHARD_BYTES", 100)
    names = ["a.wav", "b.wav", "c.wav"]
    save_pairs(tmp_path / "pairs", names, names)
    _, stdout, _ = dacse("push", tmp_path / "pairs", "org/pairs", "--dataset", "--dry-run", "--json")
    shards = [file["path"] for file in json.loads(stdout)["files"] if file["path"].startswith("data/")]
    assert shards == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def test_verify_finds_foreign_code_and_pickles(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "modeling_dacse.py").write_text("print('hello')\n")
    assert "modeling_dacse.py" in error_of("verify", copy) and "--trust-remote-code" in error_of("verify", copy)
    torch.save({}, copy / "optimizer.pt")
    assert "optimizer.pt is a pickle" in error_of("verify", copy)
