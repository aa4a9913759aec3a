"""Every training script runs on a tiny corpus: both stages, an adapter, two processes, a kill, each ablation."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from dacse.cli import app
from modeling_dacse import DacSeForEnhancement
from tests.tiny import tiny_codec
from tests.tiny_corpus import RATE, voice, write_corpus
from training_dacse.lm.arguments import (
    AdapterArguments,
    DacSeTrainingArguments,
    DataArguments,
    Stage2Arguments,
    parse_arguments,
)
from training_dacse.lm.forgetting import ForgettingMatrix

ROOT = Path(__file__).parents[1]
TASKS = ["clean", "white_noise", "packet_loss"]
RECIPE = {
    "clip_seconds": [0.25, 0.25],
    "tasks": {
        "clean": {},
        "white_noise": {"steps": [{"kind": "white_noise"}]},
        "packet_loss": {"steps": [{"kind": "packet_loss", "packet_ms": [20, 50]}]},
    },
}
RUN = {
    "model": "tiny",
    "model_overrides": "hidden_size=32,num_hidden_layers=2,num_attention_heads=4,num_key_value_heads=4,"
    "intermediate_size=64,max_position_embeddings=128,initializer_range=0.1",
    "train_clips": 24,
    "valid_clips": 2,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Corpus, codec, recipe and run settings."""
    folder = tmp_path_factory.mktemp("training")
    write_corpus(folder / "corpus")
    tiny_codec(downsampling_ratios=[8, 8, 4]).save_pretrained(folder / "codec")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | {"recipe": str(folder / "recipe.yaml")}))
    return folder


def command(place: Path, script: str, output: str, *options: str) -> list[str]:
    settings = ["--config", str(place / "run.yaml"), "--data", str(place / "corpus"), "--codec", str(place / "codec")]
    cache = [] if "--cache" in options else ["--cache", str(place / "tokens")]
    return [str(ROOT / "examples" / script), *settings, "--output", str(place / output), *cache, *options]


def run(monkeypatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(argv[0], run_name="__main__")


@pytest.fixture(scope="module")
def stage1(place):
    with pytest.MonkeyPatch.context() as patch:
        run(patch, command(place, "train_stage1.py", "stage1"))
    return place / "stage1"


def test_stage1_leaves_a_model_with_its_processor_and_figures_for_every_task(stage1):
    metrics = json.loads((stage1 / "eval_results.json").read_text())
    assert {f"eval_loss/{task}" for task in TASKS} <= set(metrics)
    assert (stage1 / "processor_config.json").exists() and (stage1 / "audio_tokenizer").is_dir()
    config = DacSeForEnhancement.from_pretrained(stage1).config
    assert (config.num_codebooks, config.head_dim) == (3, 8)


def test_stage2_lowers_the_loss_of_its_task_and_plots_the_forgetting_matrix(place, stage1, monkeypatch):
    order = ["white_noise", "packet_loss"]
    options = ["--model", str(stage1), "--order", *order, "--replay", "0.3", "--anchor", "ewc"]
    argv = command(place, "train_stage2.py", "stage2", *options, "--anchor_strength", "0.01", "--max_steps", "12")
    argv += ["--bf16", "true", "--activation_checkpointing", "true"]
    run(monkeypatch, argv)
    matrix = ForgettingMatrix.load(place / "stage2")
    assert matrix.stages == ["start", "1-white_noise", "1-packet_loss"]
    for row, task in enumerate(order, start=1):
        column = matrix.tasks.index(task)
        assert matrix.losses[row][column] < matrix.losses[row - 1][column]
    assert (place / "stage2" / "forgetting.png").stat().st_size > 1000
    run(monkeypatch, argv)  # finished: nothing is trained again
    assert ForgettingMatrix.load(place / "stage2") == matrix
    with pytest.raises(ValueError, match="give another output"):
        run(monkeypatch, [*argv, "--order", "clean"])
    with pytest.raises(ValueError, match="no training clip of task 'dereverb'; there are clean, packet_loss, white"):
        run(monkeypatch, [*argv, "--order", "white_noise", "dereverb"])  # before anything is trained


def test_own_recordings_become_an_adapter_of_an_unchanged_base(place, stage1, monkeypatch):
    pairs = place / "pairs"
    for number in range(4):
        clean = voice(number, 0.3 + 0.1 * number)
        for side, waveform in (("clean", clean), ("noisy", clean + 0.05 * voice(50 + number, len(clean) / RATE))):
            (pairs / side).mkdir(parents=True, exist_ok=True)
            soundfile.write(pairs / side / f"{number}.wav", waveform, RATE)
    before = load_file(stage1 / "model.safetensors")
    settings = {key: value for key, value in RUN.items() if key not in ("model", "model_overrides")}
    settings["learning_rate"] = 3e-2  # so that a few steps change what is generated
    (place / "adapter.yaml").write_text(yaml.safe_dump(settings))
    config = ["--config", str(place / "adapter.yaml"), "--model", str(stage1), "--data", str(pairs)]
    run(monkeypatch, [str(ROOT / "examples" / "train_adapter.py"), *config, "--output", str(place / "adapter")])
    after = load_file(stage1 / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapted = PeftModel.from_pretrained(DacSeForEnhancement.from_pretrained(stage1), place / "adapter")
    assert adapted.peft_config["default"].base_model_name_or_path == str(stage1)
    assert "| pairs |" in (place / "adapter" / "README.md").read_text()
    enhanced = {}
    for name, option in (("with", ["--adapter", str(place / "adapter")]), ("without", [])):
        out = place / f"{name}.wav"
        result = CliRunner().invoke(
            app, ["enhance", str(pairs / "noisy" / "3.wav"), "-o", str(out), "--model", str(stage1), *option]
        )
        assert result.exit_code == 0, result.output
        enhanced[name], rate = soundfile.read(out)
        assert rate == RATE and len(enhanced[name]) == soundfile.info(pairs / "noisy" / "3.wav").frames
    assert (enhanced["with"] != enhanced["without"]).any()


@pytest.mark.parametrize("supply", ["on_the_fly", "stream"])
def test_clips_without_a_cache_are_trained_on(place, monkeypatch, supply):
    files = sorted((place / "corpus" / "speech").glob("train*.flac"))
    rows = [{"audio": {"bytes": path.read_bytes(), "path": path.name}} for path in files for _ in range(4)]
    (place / "streamed").mkdir(exist_ok=True)
    Dataset.from_list(rows).to_parquet(place / "streamed" / "train.parquet")
    options = {
        "on_the_fly": ["--on_the_fly", "true", "--dataloader_num_workers", "1"],
        "stream": ["--stream", "true", "--data", str(place / "streamed"), "--valid_data", str(place / "corpus")],
    }[supply]
    run(monkeypatch, command(place, "train_stage1.py", supply, *options, "--cache", str(place / supply / "tokens")))
    assert not (place / supply / "tokens" / "train").exists()
    assert (place / supply / "model.safetensors").exists()


def launch(argv: list[str], **kwargs) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


def logged_losses(output: Path, checkpoint: str) -> list[float]:
    history = json.loads((output / checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def launch_two(argv: list[str]) -> None:
    """Runs a script in two processes, to a good end."""
    config = ["--config_file", str(ROOT / "examples" / "configs" / "ddp.yaml"), "--num_processes", "2"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *config, "--mixed_precision", "no"]
    accelerate += ["--main_process_port", "0"]  # any free one
    process = launch([*accelerate, *argv])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_an_ablation_runs_in_two_processes(place):
    options = ["--max_steps", "2", "--order", "white_noise", "--per_device_train_batch_size", "2"]
    launch_two(command(place, "ablate_strategy.py", "two_strategies", *options))
    assert len(json.loads((place / "two_strategies" / "results.json").read_text())["results"]) == 8


def test_two_processes_train_as_one_with_the_same_clips(place, stage1):
    saving = ["--save_strategy", "steps", "--save_steps", "4", "--max_steps", "4"]
    saving += ["--model_overrides", RUN["model_overrides"] + ",attention_dropout=0.0"]
    two = command(place, "train_stage1.py", "two", *saving, "--per_device_train_batch_size", "2")
    launch_two(two)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, command(place, "train_stage1.py", "one", *saving))
    # two times two rows are the four rows of one process; float32 sums in another order
    one, two = (logged_losses(place / name, "checkpoint-4") for name in ("one", "two"))
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)


def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one(place, stage1, monkeypatch):
    saving = ["--save_strategy", "steps", "--save_steps", "3", "--max_steps", "60"]
    argv = command(place, "train_stage1.py", "killed", *saving)
    process = launch([sys.executable, *argv])
    deadline = time.monotonic() + 300
    while not (place / "killed" / "checkpoint-3" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(monkeypatch, argv)
    run(monkeypatch, command(place, "train_stage1.py", "whole", *saving))
    killed, whole = (logged_losses(place / name, "checkpoint-60") for name in ("killed", "whole"))
    assert len(whole) == 60 and killed == whole
    killed, whole = (load_file(place / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("script", "options", "variants"),
    [
        ("ablate_codebooks.py", ["--first", "2", "--listened_clips", "2"], 3),
        ("ablate_strategy.py", ["--max_steps", "6", "--order", "white_noise"], 8),
        ("sweep_scale.py", ["--widths", "16", "32", "64"], 3),
    ],
)
def test_each_ablation_writes_json_table_and_plot(place, monkeypatch, script, options, variants):
    name = script.removesuffix(".py")
    run(monkeypatch, command(place, script, name, *options))
    results = json.loads((place / name / "results.json").read_text())["results"]
    assert len(results) == variants
    assert all(value == value for figures in results.values() for value in figures.values())
    assert (place / name / "results.md").read_text().count("\n|") == variants + 2
    assert (place / name / "results.png").stat().st_size > 1000


def test_every_shipped_configuration_is_read_by_its_script():
    types = {"stage1": [], "stage2": [Stage2Arguments], "adapter": [AdapterArguments], "ablation": []}
    paths = [
        path for path in sorted((ROOT / "examples" / "configs").glob("*.yaml")) if path.stem.split("_")[0] in types
    ]
    assert len(paths) >= 7
    for path in paths:
        more = types[path.stem.split("_")[0]]
        argv = ["--config", str(path), "--data", "somewhere"]
        data, *_, args = parse_arguments(DataArguments, *more, DacSeTrainingArguments, argv=argv)
        assert data.recipe is None or (ROOT / data.recipe).exists()
        assert args.max_steps > 0 or args.num_train_epochs == 1
        assert path.read_text().startswith("# ")


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed_zero2", "DEEPSPEED")])
def test_every_launch_configuration_is_read_by_accelerate(name, kind):
    config = load_config_from_file(str(ROOT / "examples" / "configs" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, 8, "bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--balancing", "magic"], "invalid choice"),
        (["--train_clips", "0"], "train_clips is 0"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--recipe", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--tasks", "dereverb"], "recipe.yaml: unknown task 'dereverb'; the recipe has clean, packet_loss"),
        (["--spoiled_frames", "1.5"], "spoiled_frames is 1.5; give a share from 0 to 1"),
        (["--where", "snr_db > 99"], "no row satisfies"),
        (["--model_overrides", RUN["model_overrides"] + ",max_position_embeddings=16"], "context holds"),
    ],
)
def test_a_run_that_cannot_work_says_why(place, monkeypatch, capsys, tmp_path, options, message):
    argv = command(place, "train_stage1.py", "refused", "--cache", str(tmp_path), *options)
    with pytest.raises((SystemExit, ValueError, OSError)) as error:
        run(monkeypatch, argv)
    assert message in str(error.value) + capsys.readouterr().err
