"""The whole of training on a tiny corpus, as its scripts do it: stages, an adapter, two processes, killed runs."""

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
from peft import PeftModel
from safetensors.torch import load_file
from transformers import pipeline

import dacse  # noqa: F401  (registers the pipeline)
from modeling_dacse import DacSeForEnhancement
from processing_dacse import DacSeProcessor
from tests.tiny import tiny_codec
from tests.tiny_corpus import RATE, voice
from tests.training.tiny_tokens import TASKS, make_tokens, write_place
from training_dacse.lm.arguments import (
    AdapterArguments,
    DacSeTrainingArguments,
    DataArguments,
    Stage2Arguments,
    Stage3Arguments,
    parse_arguments,
)
from training_dacse.lm.forgetting import ForgettingMatrix
from training_dacse.lm.objective import Objective
from training_dacse.lm.rewards.trainer import check_settings
from training_dacse.lm.runs import make_model, new_config
from training_dacse.lm.stages import make_anchor, present_tasks
from training_dacse.tokens.cache import TokenCache
from training_dacse.tokens.encode import find_processor

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "configs"
SHAPE = "hidden_size=32,num_hidden_layers=2,num_attention_heads=4,num_key_value_heads=4,intermediate_size=64"
SHAPE += ",max_position_embeddings=128,initializer_range=0.1"
RUN = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
NEW = ["--model", "tiny", "--model_overrides", SHAPE]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Corpus, codec, tokens and run settings."""
    folder = write_place(tmp_path_factory.mktemp("training"))
    make_tokens(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    return folder


def command(place: Path, script: str, output: str, *options: str) -> list[str]:
    settings = [f"--config={place / 'run.yaml'}", "--tokens", str(place / "tokens")]
    return [str(ROOT / "examples" / script), *settings, "--output", str(place / output), *options]


def run(monkeypatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(argv[0], run_name="__main__")


@pytest.fixture(scope="module")
def stage1(place):
    with pytest.MonkeyPatch.context() as patch:
        run(patch, command(place, "train_stage1.py", "stage1", *NEW))
    return place / "stage1"


def test_stage1_leaves_a_model_with_its_processor_and_figures_for_every_task(stage1):
    metrics = json.loads((stage1 / "eval_results.json").read_text())
    assert {f"eval_loss/{task}" for task in TASKS} <= set(metrics)
    config, processor = DacSeForEnhancement.from_pretrained(stage1).config, DacSeProcessor.from_pretrained(stage1)
    assert (config.num_codebooks, config.head_dim) == (3, 8)
    assert (processor.num_codebooks, processor.window_frames) == (3, 7)  # all clips have one length


def test_a_model_of_the_first_codebooks_gets_a_processor_and_enhances(place, monkeypatch):
    options = ["--num_codebooks", "2", "--batching", "packed", "--max_steps", "2"]
    run(monkeypatch, command(place, "train_stage1.py", "first", *NEW, *options))
    assert DacSeProcessor.from_pretrained(place / "first").num_codebooks == 2
    noisy = place / "corpus" / "speech" / "valid0.flac"
    enhanced = pipeline("audio-enhancement", model=str(place / "first"), device="cpu")(str(noisy))
    assert len(enhanced["audio"]) == soundfile.info(noisy).frames


def test_clips_of_a_window_of_shards_are_trained_on(place, monkeypatch):
    options = ["--window_shards", "2", "--fresh_shards", "1", "--max_steps", "7"]
    run(monkeypatch, command(place, "train_stage1.py", "rolling", *NEW, *options))
    reading = json.loads((place / "tokens" / "train" / "reading.json").read_text())
    assert reading["ended"] and (place / "rolling" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_stage3_leaves_what_held_out_clips_say_before_and_after_and_goes_on(place, stage1, monkeypatch, kind):
    settings = {"rewards": {"mel_distance": 1.0}, "metrics": ["mel_distance", "si_sdr"], "answers": 4, "processes": 0}
    settings |= {"heard_clips": 3, "rank": 4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"loss": "grpo", "full": kind == "full"}
    (place / "stage3.yaml").write_text(yaml.safe_dump(RUN | settings))
    options = ["--model", str(stage1), "--config", str(place / "stage3.yaml")]
    argv = command(place, "train_stage3.py", f"stage3-{kind}", *options)
    run(monkeypatch, [*argv, "--max_steps", "2"])
    run(monkeypatch, [*argv, "--max_steps", "4"])  # goes on from step 2
    output = place / f"stage3-{kind}"
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "reward/mel_distance" in entry] == [1, 3]
    figures = json.loads((output / "rewards.json").read_text())
    named = {"eval_reward/mel_distance", "eval_reward/si_sdr", "eval_level_db", "eval_silent_seconds", "eval_loss"}
    assert named <= figures.keys() and figures["eval_loss"][0] != figures["eval_loss"][1]
    noisy = str(place / "corpus" / "speech" / "valid0.flac")
    enhance = pipeline("audio-enhancement", model=str(output if kind == "full" else stage1), device="cpu")
    enhanced = enhance(noisy, **({} if kind == "full" else {"adapter": str(output)}))
    assert len(enhanced["audio"]) == soundfile.info(noisy).frames


def test_stage2_lowers_the_loss_of_its_task_and_goes_on_in_the_sub_stage_it_was_in(place, stage1, monkeypatch):
    order = ["white_noise", "packet_loss"]
    options = ["--model", str(stage1), "--order", *order, "--replay", "0.3", "--anchor", "ewc", "--anchor_strength"]
    options += ["0.01", "--max_steps", "12", "--save_strategy", "steps", "--save_steps", "5", "--bf16", "true"]
    options += ["--listen_clips", "1"]
    argv = command(place, "train_stage2.py", "stage2", *options, "--activation_checkpointing", "true")
    run(monkeypatch, argv)
    matrix = ForgettingMatrix.load(place / "stage2")
    assert matrix.stages == ["start", "1-white_noise", "1-packet_loss"]
    for row, task in enumerate(order, start=1):
        column = matrix.tasks.index(task)
        assert matrix.losses[row][column] < matrix.losses[row - 1][column]
    assert (place / "stage2" / "forgetting.png").stat().st_size > 1000
    assert list((place / "stage2" / "1-packet_loss" / "audio").iterdir())
    trained = load_file(place / "stage2" / "model.safetensors")
    shorter = ForgettingMatrix(matrix.tasks, matrix.stages[:2], matrix.losses[:2])
    shorter.save(place / "stage2")  # as if killed in the second sub-stage, after its checkpoint at step 10
    changed = (place / "stage2" / "1-packet_loss" / "checkpoint-5" / "trainer_state.json").stat().st_mtime_ns
    run(monkeypatch, argv)
    assert (place / "stage2" / "1-packet_loss" / "checkpoint-5" / "trainer_state.json").stat().st_mtime_ns == changed
    again = load_file(place / "stage2" / "model.safetensors")
    assert all(torch.equal(again[name], trained[name]) for name in trained)
    assert ForgettingMatrix.load(place / "stage2").losses == matrix.losses
    with pytest.raises(ValueError, match="give another output"):
        run(monkeypatch, [*argv, "--order", "clean"])
    with pytest.raises(ValueError, match="no training clip of task 'dereverb'; there are clean, white_noise, packet"):
        run(monkeypatch, [*argv, "--order", "white_noise", "dereverb"])  # before anything is trained


def test_a_task_that_drew_no_clip_is_no_part_of_an_anchor(place, stage1, tmp_path):
    described = yaml.safe_load((place / "recipe.yaml").read_text())
    described["tasks"]["rare"] = {"weight": 0, "steps": [{"kind": "clipping"}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    train = TokenCache(make_tokens(place, str(tmp_path / "tokens"), recipe=str(tmp_path / "recipe.yaml")), "train")
    assert "rare" in train.tasks and "rare" not in present_tasks(train)
    model = DacSeForEnhancement.from_pretrained(stage1)
    anchor = make_anchor(model, Stage2Arguments(anchor="ewc"), train, "clean", 0, Objective(model.config))
    assert anchor.penalty(model).item() == 0.0 and anchor.importance["model.norm.weight"].max() > 0
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    assert anchor.penalty(model).item() > 0


def test_own_recordings_become_an_adapter_of_an_unchanged_base(place, stage1, monkeypatch):
    pairs = place / "pairs"
    for number in range(4):
        clean = voice(number, 0.3 + 0.1 * number)
        for side, waveform in (("clean", clean), ("noisy", clean + 0.05 * voice(50 + number, len(clean) / RATE))):
            (pairs / side).mkdir(parents=True, exist_ok=True)
            soundfile.write(pairs / side / f"{number}.wav", waveform, RATE)
    tokens = make_tokens(place, "pair_tokens", corpus=str(pairs), recipe=None, max_seconds=0.3, codec=str(stage1))
    before = load_file(stage1 / "model.safetensors")
    options = ["--model", str(stage1), "--tokens", str(tokens), "--learning_rate", "0.03"]
    options += ["--save_strategy", "steps", "--save_steps", "4", "--listen_clips", "1"]
    argv = command(place, "train_adapter.py", "adapter", *options)
    run(monkeypatch, argv)
    after = load_file(stage1 / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapted = PeftModel.from_pretrained(DacSeForEnhancement.from_pretrained(stage1), place / "adapter")
    assert adapted.peft_config["default"].base_model_name_or_path == str(stage1)
    card = (place / "adapter" / "README.md").read_text()
    assert "| pairs |" in card and list((place / "adapter" / "audio").iterdir())
    weights = load_file(place / "adapter" / "adapter_model.safetensors")
    (place / "adapter" / "adapter_model.safetensors").unlink()  # as if killed before it was saved
    run(monkeypatch, argv)
    again = load_file(place / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert (place / "adapter" / "README.md").read_text() == card
    enhance, noisy = pipeline("audio-enhancement", model=str(stage1), device="cpu"), str(pairs / "noisy" / "3.wav")
    plain, own = (enhance(noisy, **option)["audio"] for option in ({}, {"adapter": str(place / "adapter")}))
    assert len(plain) == len(own) == soundfile.info(noisy).frames and (plain != own).any()


def launch(argv: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def logged_losses(output: Path, checkpoint: str) -> list[float]:
    history = json.loads((output / checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("launch_config", ["ddp", "fsdp"])
def test_two_processes_train_as_one(place, launch_config):
    saving = ["--save_strategy", "steps", "--save_steps", "4", "--max_steps", "4"]
    new = ["--model", "tiny", "--model_overrides", SHAPE + ",attention_dropout=0.0"]
    config = [
        "--config_file",
        str(CONFIGS / f"{launch_config}.yaml"),
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
    ]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *config, "--mixed_precision", "no"]
    two = command(place, "train_stage1.py", launch_config, *new, *saving, "--per_device_train_batch_size", "2")
    process = launch([*accelerate, "--main_process_port", "0", *two])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    with pytest.MonkeyPatch.context() as patch:
        # two times two rows are two rows twice in one process: the same clips
        accumulated = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
        run(patch, command(place, "train_stage1.py", "one", *new, *saving, *accumulated))
    one, two = (logged_losses(place / name, "checkpoint-4") for name in ("one", launch_config))
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)  # float32 sums in another order
    measured = [json.loads((place / name / "eval_results.json").read_text()) for name in ("one", launch_config)]
    assert measured[1]["eval_loss"] == pytest.approx(measured[0]["eval_loss"], rel=1e-4)


def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one(place, monkeypatch):
    saving = ["--save_strategy", "steps", "--save_steps", "6", "--max_steps", "60", "--batching", "packed"]
    argv = command(place, "train_stage1.py", "killed", *NEW, *saving)
    process = launch([sys.executable, *argv])
    deadline = time.monotonic() + 300
    while not (place / "killed" / "checkpoint-6" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "killed" / "checkpoint-60").exists()
    run(monkeypatch, argv)
    run(monkeypatch, command(place, "train_stage1.py", "whole", *NEW, *saving))
    killed, whole = (logged_losses(place / name, "checkpoint-60") for name in ("killed", "whole"))
    assert len(whole) == 60 and killed == whole
    killed, whole = (load_file(place / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def test_every_shipped_configuration_is_read_by_its_script():
    types = {"stage1": [], "stage2": [Stage2Arguments], "adapter": [AdapterArguments]}
    types |= {"stage3": [AdapterArguments, Stage3Arguments]}
    paths = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem.split("_")[0] in types]
    assert len(paths) >= 7
    for path in paths:
        more = types[path.stem.split("_")[0]]
        argv = [f"--config={path}", "--tokens", "somewhere"]
        _, *more_args, args = parse_arguments(DataArguments, *more, DacSeTrainingArguments, argv=argv)
        assert args.max_steps > 0 or args.num_train_epochs == 1
        if path.stem.startswith("stage3"):
            check_settings(args, *more_args[1:])
        assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", "MULTI_GPU"),
        ("ddp_multinode", "MULTI_GPU"),
        ("fsdp", "FSDP"),
        ("fsdp_multinode", "FSDP"),
        ("deepspeed_zero2", "DEEPSPEED"),
        ("deepspeed_multinode", "DEEPSPEED"),
    ],
)
def test_every_launch_configuration_is_read_by_accelerate(name, kind):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    machines = 4 if name.endswith("multinode") else 1
    assert (config.distributed_type, config.num_machines, config.mixed_precision) == (kind, machines, "bf16")
    assert config.num_processes == 8 * machines
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2


def test_settings_may_be_nested_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    nested = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}, "max_steps": 7}
    path.write_text(yaml.safe_dump(nested | {"sampling": {"kind": "easy_first", "epochs": 3}, "tokens": "a"}))
    for config in ([f"--config={path}"], ["--config", str(path)]):
        argv = [*config, "--max_steps", "9", "--output_dir", str(tmp_path)]
        data, args = parse_arguments(DataArguments, DacSeTrainingArguments, argv=argv)
        assert args.lr_scheduler_kwargs == {"min_lr": 1e-5} and args.max_steps == 9 and data.tokens == "a"
        assert args.sampling == {"kind": "easy_first", "epochs": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_step: 3", "unknown setting 'max_step'"),
        ("batching: magic", "choose one of rows"),
        ("max_steps: 7.5", "max_steps is 7.5; give a whole number"),
        ("learning_rate: [1.0e-3]", r"learning_rate is \[0.001\]; give a number"),
        ("order: noise", r"order is 'noise'; give a list, \[noise\]"),
        ("order: [noise, room, noise]", "order names 'noise' more than once; rounds goes through"),
        ("- max_steps", "no settings; give a line"),
        ("max_steps: [", "no YAML"),
    ],
)
def test_a_file_of_settings_that_cannot_be_meant_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments(DacSeTrainingArguments, Stage2Arguments, argv=[f"--config={path}"])


def test_numbers_may_be_written_as_yaml_takes_them_for_words(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 5e-4")
    (args,) = parse_arguments(DacSeTrainingArguments, argv=[f"--config={path}"])
    assert args.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weighting", "magic"], "weighting is 'magic'; choose one of equal"),
        (["--batching", "magic"], "invalid choice"),
        (["--tokens", "/nowhere"], "/nowhere: no such folder; make tokens with `dacse tokenize"),
        (["--spoiled_frames", "1.5"], "spoiled_frames is 1.5; give a share from 0 to 1"),
        (["--spoiled_frames", "0.5", "--batching", "packed"], "exclude one another"),
        (["--eval_strategy", "epoch"], "eval_strategy is epoch, but batches come without end; give steps"),
        (["--train_sampling_strategy", "sequential"], "has no effect here; give sampling and batching"),
        (["--window_shards", "2", "--fresh_shards", "3"], "fresh_shards is 3; give 1 to window_shards, 2"),
        (["--fresh_shards", "3"], "fresh_shards is 3, of no window; give window_shards or leave it out"),
        (
            ["--model_overrides", SHAPE.replace("128", "16")],
            "holds clips of 7 frames, but the model's context holds 2",
        ),
    ],
)
def test_a_run_that_cannot_work_says_why(place, monkeypatch, capsys, options, message):
    argv = command(place, "train_stage1.py", "refused", *NEW, *options)
    with pytest.raises((SystemExit, ValueError, OSError)) as error:
        run(monkeypatch, argv)
    assert message in str(error.value) + capsys.readouterr().err


def test_settings_of_a_new_model_and_tokens_of_another_codec_are_refused_for_one_that_exists(place, stage1, tmp_path):
    given = {"tokens": str(place / "tokens"), "model": str(stage1)}
    assert make_model(DataArguments(**given)).config.num_hidden_layers == 2
    for setting in ({"model_overrides": "hidden_size=64"}, {"num_codebooks": 2}):
        with pytest.raises(
            ValueError, match=f"{next(iter(setting))} is of a new model, but .*stage1 is one that exists"
        ):
            make_model(DataArguments(**given, **setting))
    tiny_codec(seed=1, downsampling_ratios=[8, 8, 4]).save_pretrained(tmp_path / "codec")
    other = make_tokens(place, str(tmp_path / "other"), codec=str(tmp_path / "codec"))
    with pytest.raises(ValueError, match="was made with another codec than that of .*stage1; make tokens with"):
        make_model(DataArguments(tokens=str(other), model=str(stage1)))


def test_heads_of_a_new_model_follow_what_is_overridden():
    grid = {"num_codebooks": 3, "codebook_size": 16}
    config = new_config("tiny", "num_attention_heads=2,hidden_size=32", grid)
    assert (config.num_key_value_heads, config.head_dim, config.num_codebooks) == (2, 16, 3)
    with pytest.raises(ValueError, match="4 heads cannot share 3 for keys and values; give num_key_value_heads"):
        new_config("tiny", "num_key_value_heads=3", grid)


def test_a_model_stored_in_half_precision_is_trained_in_full(place, stage1, tmp_path):
    model = DacSeForEnhancement.from_pretrained(stage1, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    find_processor(stage1).save_pretrained(tmp_path)
    assert make_model(DataArguments(tokens=str(place / "tokens"), model=str(tmp_path))).dtype == torch.float32
