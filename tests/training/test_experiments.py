"""Experiments: arms of equal length, models that do what they say, tables with intervals, and every script at work."""

import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evaluation_dacse import benchmark
from evaluation_dacse.workers import run_here
from modeling_dacse.pattern_dacse import DelayedPattern
from processing_dacse import DacSeProcessor
from tests.tiny import tiny_codec, tiny_config, tiny_model, tiny_pipeline
from tests.tiny_corpus import voice
from tests.training.test_examples import RUN, SHAPE
from tests.training.tiny_tokens import RECIPE, Rows, logged_losses, make_tokens, tiny_trainer, write_place
from training_dacse.experiments.arms import Arm, arm_arguments, enhance_in_windows, evened_weights, generate_with
from training_dacse.experiments.frames import NOTHING, FrameModel, FrameObjective
from training_dacse.experiments.results import Results, interval
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments
from training_dacse.tokens.encode import first_codebooks

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples" / "experiments"


@pytest.mark.parametrize("depth_layers", [0, 2])
def test_a_model_of_one_step_a_frame_generates_what_its_logits_say(depth_layers):
    torch.manual_seed(0)
    model = FrameModel(tiny_config(attention_dropout=0.0), depth_layers).eval()
    noisy = torch.randint(16, (2, 3, 5))
    clean = model.generate_codes(noisy)
    logits, steps = model(noisy, clean), model.clean_steps(clean)
    assert clean.shape == (2, 3, 5) and torch.equal(model.frames_of(steps, 5), clean)
    there = steps != NOTHING
    assert torch.equal(logits.argmax(-1)[there], steps[there])


def test_delayed_codes_stand_where_the_pattern_says():
    model = FrameModel(tiny_config())
    clean = torch.arange(15).view(1, 3, 5)
    steps = model.clean_steps(clean)
    pattern = DelayedPattern(3)
    places = zip(pattern.codebooks(5), pattern.frames(5), pattern.steps(5), strict=True)
    assert all(steps[0, book, step] == clean[0, book, frame] for book, frame, step in places)
    assert (steps != NOTHING).sum() == 15 and steps.shape == (1, 3, 7)


@pytest.mark.parametrize("depth_layers", [0, 2])
def test_a_model_of_one_step_a_frame_learns(tmp_path, depth_layers):
    model = FrameModel(tiny_config(attention_dropout=0.0), depth_layers)
    run = tiny_trainer(tmp_path, Rows(16), model, objective=FrameObjective(model.config), max_steps=40)
    start = run.evaluate()["eval_loss"]
    run.train()
    assert logged_losses(run)[-1] < 0.3 * start and run.evaluate()["eval_loss"] < 0.3 * start
    noisy = torch.stack([Rows(4)[number]["noisy"] for number in range(4)])
    assert (model.generate_codes(noisy) == noisy).float().mean() > 0.9  # clean codes are the noisy ones


def test_windows_are_enhanced_side_by_side_and_the_last_begins_earlier():
    processor, asked = DacSeProcessor.from_codec(tiny_codec()), []
    waveform = voice(0, 0.1)  # 100 frames of 8 samples

    def generate(noisy):
        asked.append(noisy.shape)
        return noisy

    out = enhance_in_windows(generate, processor, waveform, 30)
    assert asked == [(4, 3, 30)]
    np.testing.assert_array_equal(out, processor.decode_codes(processor.encode(waveform[None]))[0, : len(waveform)])
    small = DacSeProcessor.from_codec(first_codebooks(processor.audio_tokenizer, 2))
    heard = enhance_in_windows(lambda noisy: noisy[:, :2], processor, waveform, 30, small)
    np.testing.assert_array_equal(heard, small.decode_codes(small.encode(waveform[None]))[0, : len(waveform)])


def test_generating_with_a_language_model_is_its_own_generate():
    processor, model = DacSeProcessor.from_codec(tiny_codec()), tiny_model()
    noisy = torch.randint(16, (2, 3, 5))
    rows = model.generate(processor.build_prompt(noisy), do_sample=False)
    expected = torch.cat([processor.clean_codes(row) for row in rows])
    assert torch.equal(generate_with(model, processor)(noisy), expected)


def test_intervals_are_those_of_student():
    mean, reach = interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and reach == pytest.approx(4.302653 * np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert math.isnan(interval([1.0])[1])


def test_results_are_kept_by_arm_and_seed_and_written_with_intervals(tmp_path):
    results = Results(tmp_path, "Title", {"loss": "low", "BAK": "high"})
    for seed in range(3):
        results.add("one stage", seed, {"loss": 2.0 + seed, "BAK": 3.0, "other": 1.0})
        results.add("two, stages", seed, {"loss": 1.0, "BAK": 2.0})
    assert results.has("two, stages", 2) and not results.has("one stage", 3)
    results.write(["two, stages", "one stage", "missing"], ["made so"])
    table = (tmp_path / "results.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert rows == [
        ["arm", "seeds", "loss ↓", "BAK ↑"],
        ["two, stages", "3", "1.00", "2.00"],
        ["one stage", "3", "3.00 ± 2.5", "3.00"],
    ]
    assert "95% intervals" in table and "made so" in table
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_an_arm_changes_what_is_its_own_and_nothing_of_the_others(tmp_path):
    data = DataArguments(tokens="somewhere")
    args = DacSeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=0.1, max_steps=50)
    arm = Arm({"weighting": "gradnorm", "num_codebooks": 2, "learning_rate": 0.5})
    own_data, own = arm_arguments(arm, data, args, 7, tmp_path / "arm")
    assert own.weighting == {"kind": "gradnorm"} and own.learning_rate == 0.5 and own.seed == 7
    assert own_data.num_codebooks == 2 and own.output_dir == str(tmp_path / "arm")
    assert args.weighting == {"kind": "equal"} and data.num_codebooks is None
    assert own.get_warmup_steps(50) == 5 and own.get_warmup_steps(6) == 1  # a share of however many there are


def test_weights_that_even_losses_out():
    weights = evened_weights({"loss": 9.0, "loss/a": 1.0, "loss/b": 4.0})
    assert weights["a"] * 1.0 == pytest.approx(weights["b"] * 4.0) and sum(weights.values()) == pytest.approx(2.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = write_place(tmp_path_factory.mktemp("experiments"))
    tasks = {name: task for name, task in RECIPE["tasks"].items() if name != "clean"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"clip_seconds": [0.25, 0.25], "tasks": tasks}))
    make_tokens(folder, max_seconds=0.25, whole=True)
    settings = {"model": "tiny", "model_overrides": SHAPE + ",attention_dropout=0.0", "seeds": 2, "listened_clips": 1}
    settings |= {"recipe": str(folder / "recipe.yaml"), "corpus": str(folder / "corpus"), "max_steps": 8}
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | settings))
    return folder


@pytest.mark.parametrize(
    ("script", "options", "arms"),
    [
        ("codebooks", ["--first", "2"], 5),
        ("strategies", ["--only", "one stage", "fixed weights", "two stages, EWC"], 3),
        ("scale", ["--widths", "16", "32", "--rates", "0.5", "1.0"], 2),
        ("patterns", [], 3),
        ("background", ["--only", "cross-entropy", "both"], 2),
    ],
)
def test_every_experiment_ends_in_a_table_and_a_plot(place, monkeypatch, script, options, arms):
    monkeypatch.syspath_prepend(HERE)
    import score

    monkeypatch.setattr(score, "SECONDS", 0.9)
    monkeypatch.setattr(score, "METRICS", {"mel_distance": {"mel_distance": "distance"}})
    monkeypatch.setattr(score, "BEST", {"loss": "low", "distance": "low"})
    folder = place / script
    argv = [str(HERE / f"{script}.py"), f"--config={place / 'run.yaml'}", "--tokens", str(place / "tokens")]
    monkeypatch.setattr(sys, "argv", [*argv, "--output", str(folder), *options])
    runpy.run_path(argv[0], run_name="__main__")
    table = (folder / "results.md").read_text()
    assert table.count("\n| ") == arms + 1 and "nan" not in table
    assert (folder / "results.png").stat().st_size > 1000
    paths = sorted(folder.glob("*-[01].json"))
    figures = [json.loads(path.read_text())["figures"] for path in paths]
    assert len(paths) >= 2 * arms - 2 and all(math.isfinite(value) for row in figures for value in row.values())
    changed = [path.stat().st_mtime_ns for path in paths]
    runpy.run_path(argv[0], run_name="__main__")  # nothing is trained again
    assert [path.stat().st_mtime_ns for path in paths if "codec" not in path.name] == [
        time for time, path in zip(changed, paths, strict=True) if "codec" not in path.name
    ]


def test_rewards_and_the_best_of_several_end_in_a_table_with_intervals(place, monkeypatch):
    monkeypatch.setattr(benchmark, "run_in_workers", lambda processes, *work: run_here(*work))
    folder, model = place / "rewards", place / "rewards_model"
    tiny_pipeline().save_pretrained(model)
    argv = [str(HERE / "rewards.py"), "--corpus", str(place / "corpus"), "--recipe", str(place / "recipe.yaml")]
    argv += [
        "--model",
        str(model),
        "--split",
        "valid",
        "--clips_per_task",
        "2",
        "--candidates",
        "3",
        "--choices",
        "confidence",
    ]
    argv += ["--metrics", "mel_distance", "--work", str(place / "work"), "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(argv[0], run_name="__main__")
    table = (folder / "results.md").read_text()
    assert table.startswith("# ") and "nan" not in table and "folder:" not in table
    for arm in ("noisy", "as it is", "one draw", "best of 3 by confidence"):
        assert f"\n| {arm}" in table
    changed = [path.stat().st_mtime_ns for path in sorted((place / "work").glob("*/*.wav"))]
    assert len(changed) == 3 * 2 * 2  # arms, tasks, clips
    runpy.run_path(argv[0], run_name="__main__")  # nothing is enhanced again
    assert [path.stat().st_mtime_ns for path in sorted((place / "work").glob("*/*.wav"))] == changed


def test_every_shipped_configuration_is_read():
    for name in ("small", "full"):
        settings = yaml.safe_load((HERE / f"{name}.yaml").read_text())
        assert (ROOT / settings["recipe"]).exists() and 0 < settings["warmup_steps"] < 1
