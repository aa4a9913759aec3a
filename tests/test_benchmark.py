"""Benchmarks: the same numbers however they are computed, and runs that go on."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from typer.testing import CliRunner

from command_dacse.cli import app
from evaluation_dacse import benchmark, rivals, workers
from evaluation_dacse.benchmark import audio_path, code_version, read_lines, run_benchmark, system_version
from evaluation_dacse.metrics import METRICS, load_metric
from evaluation_dacse.summary import summarize
from evaluation_dacse.testsets import TestSet, open_test_set
from tests.tiny_corpus import RATE, render_corpus, voice, write_corpus

ROOT = Path(__file__).parents[1]
TWO_METRICS = ["si_sdr", "mel_distance"]
OFFLINE = [name for name, about in METRICS.items() if not about.model]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A finished run and the folder it stands in."""
    folder = tmp_path_factory.mktemp("run")
    test_set = render_corpus(corpus, folder / "test_set")
    return folder, test_set, run_benchmark(test_set, ["noisy", "clean"], folder, TWO_METRICS)


def test_scores_are_what_the_metric_says_of_the_written_files(run):
    folder, test_set, _ = run
    table = pandas.read_parquet(folder / "clips.parquet").set_index(["system", "clip"])
    metric = load_metric("si_sdr")
    assert len(table) == 8
    for clip in test_set.clips:
        paths = audio_path(folder, "noisy", clip.name), clip.clean
        pair = [{"array": soundfile.read(path, dtype="float32")[0], "sampling_rate": RATE} for path in paths]
        assert table.loc[("noisy", clip.name), "si_sdr"] == metric.measure(*pair)[0]["si_sdr"]
        assert table.loc[("noisy", clip.name), "task"] == clip.task
        assert table.loc[("clean", clip.name), "mel_distance"] < 0.05


def test_the_summary_is_the_table_condensed(run):
    folder, test_set, summary = run
    table = pandas.read_parquet(folder / "clips.parquet")
    noisy = table[table["system"] == "noisy"].set_index("clip")
    clean = table[table["system"] == "clean"].set_index("clip")
    overall = summary["systems"]["clean"]["overall"]["mel_distance"]
    # the summary has six digits
    assert overall["mean"] == pytest.approx(clean["mel_distance"].mean(), rel=1e-5)
    assert overall["low"] <= overall["mean"] <= overall["high"] and overall["count"] == 4
    difference = overall["difference"]["noisy"]
    assert difference["mean"] == pytest.approx((clean["mel_distance"] - noisy["mel_distance"]).mean(), rel=1e-5)
    part = summary["systems"]["noisy"]["tasks"]["packet_loss"]["mel_distance"]
    assert part["mean"] == pytest.approx(noisy[noisy["task"] == "packet_loss"]["mel_distance"].mean(), rel=1e-5)
    assert summary["test_set"]["checksum"] == test_set.checksum and summary["test_set"]["speakers"] == 0
    assert summary["commits"] == [code_version()]
    assert summary["metrics"]["si_sdr"]["sampling_rate"] == 44100 and summary["metrics"]["si_sdr"]["lowest"] == -60
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_two_processes_and_another_order_give_the_same_numbers_by_every_metric(run, tmp_path):
    _, test_set, _ = run
    shuffled = TestSet(test_set.name, list(test_set.clips)[::-1])
    alone, together = (
        run_benchmark(clips, ["noisy"], tmp_path / str(processes), OFFLINE, processes=processes)
        for processes, clips in ((1, test_set), (2, shuffled))
    )
    scores = together["systems"]["noisy"]["overall"]
    assert len(scores) == 12 and all(scores[name]["count"] == 4 for name in ("dnsmos_ovrl", "plcmos", "lsd"))
    for name, expected in alone["systems"]["noisy"]["overall"].items():
        values = {key: value for key, value in scores[name].items() if key != "difference"}
        # the last digits of numpy's sums change with the address of what they sum over; the summary has six
        assert values == pytest.approx({key: expected[key] for key in values}, rel=1e-5), name


def test_ctrl_c_stops_at_once_and_the_run_goes_on(corpus, tmp_path):
    def command(folder):
        options = ["--recipe", corpus / "recipe.yaml", "--split", "valid", "--clips-per-task", "20", "-m", "si_sdr"]
        options += ["-s", "noisy,noisereduce", "-o", folder]
        return [str(part) for part in (sys.executable, "-m", "dacse", "evaluate", "-t", corpus, *options)]

    # A test run in the background of a shell ignores the signal, and a child would inherit that.
    as_usual = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command(tmp_path / "run"), cwd=ROOT, stderr=stderr, start_new_session=True, preexec_fn=as_usual
        )
        deadline = time.monotonic() + 120
        while len(read_lines(tmp_path / "run" / "timing.jsonl")) < 42:  # the worker of the second system is at work
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the worker, too
        assert process.wait(timeout=30) != 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert not (tmp_path / "run" / "summary.json").exists()
    for folder in ("run", "uninterrupted"):
        subprocess.run(command(tmp_path / folder), cwd=ROOT, check=True, capture_output=True)
    resumed, whole = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "uninterrupted"))
    assert len(read_lines(tmp_path / "run" / "timing.jsonl")) == 80  # none was enhanced twice
    for system in ("noisy", "noisereduce"):
        assert resumed["systems"][system]["overall"] == whole["systems"][system]["overall"]


def test_a_broken_file_or_pair_is_named_before_any_work(tmp_path):
    for side in ("noisy", "clean"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for name in ("a.wav", "b.wav"):
            soundfile.write(tmp_path / "pairs" / side / name, voice(0), RATE)
    broken = tmp_path / "pairs" / "noisy" / "b.wav"
    command = ["evaluate", "-t", str(tmp_path / "pairs"), "-s", "noisy", "-o", str(tmp_path / "run")]
    for content, message in ((b"RIFF", "cannot be read as audio"), (None, "the same length and rate")):
        if content:
            broken.write_bytes(content)
        else:
            soundfile.write(broken, voice(0)[:-1], RATE)
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1 and done.stderr.startswith(f"error: {broken}") and message in done.stderr
    assert not (tmp_path / "run" / "audio").exists()


def test_a_folder_that_cannot_be_written_is_one_line(corpus, tmp_path):
    (tmp_path / "file").touch()
    options = ["--recipe", str(corpus / "recipe.yaml"), "--split", "valid", "-s", "noisy"]
    done = CliRunner().invoke(app, ["evaluate", "-t", str(corpus), *options, "-o", str(tmp_path / "file" / "run")])
    assert done.exit_code == 1 and str(tmp_path / "file") in done.stderr and done.stderr.count("\n") == 1


def test_a_worker_that_fails_or_dies_is_an_error_that_names_its_clip():
    with pytest.raises(ValueError, match="base") as caught:
        list(workers.run_in_workers(1, print, (), int, {"the third clip": ("3", 1)}))
    assert caught.value.__notes__ == ["while working on the third clip"]
    with pytest.raises(OSError, match="a worker died, perhaps for lack of memory"):
        list(workers.run_in_workers(1, print, (), os._exit, {"a clip": (1,)}))


def test_a_run_goes_on_where_it_was(run):
    folder, test_set, summary = run
    lines = {name: read_lines(folder / name) for name in ("timing.jsonl", "scores.jsonl")}
    assert len(lines["timing.jsonl"]) == 8 and len(lines["scores.jsonl"]) == 16
    half_written = json.dumps(lines["scores.jsonl"][-1])[:20]
    (folder / "scores.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines["scores.jsonl"][:-1]) + half_written
    )
    kept = {path: path.stat().st_mtime_ns for path in (folder / "audio").rglob("*.flac")}
    assert len(kept) == 8
    assert run_benchmark(test_set, ["noisy", "clean"], folder, TWO_METRICS)["systems"] == summary["systems"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(read_lines(folder / "scores.jsonl")) == 16


def test_a_folder_of_another_run_is_refused(corpus, run, tmp_path):
    folder, _, _ = run
    other = render_corpus(corpus, tmp_path, seed=1)
    with pytest.raises(ValueError, match="give another folder"):
        run_benchmark(other, ["noisy"], folder, TWO_METRICS)


def test_bounds_need_clean_recordings(tmp_path):
    (tmp_path / "wild").mkdir()
    soundfile.write(tmp_path / "wild" / "a.wav", voice(0), RATE)
    test_set = open_test_set(str(tmp_path / "wild"), tmp_path)
    with pytest.raises(ValueError, match="codec cannot run on wild: it has no clean recordings"):
        run_benchmark(test_set, ["noisy", "codec"], tmp_path / "run", TWO_METRICS)


SCALE = {"score": {"lowest": 0.0, "highest": 9.0}}


def table_of(values: dict[str, list[float]], speakers: str) -> pandas.DataFrame:
    """A run's table of clips: scores of each system, a clip after the other."""
    return pandas.DataFrame(
        {"system": system, "clip": f"c{number}", "task": "all", "speaker": speakers[number], "score": value}
        | {"reasons": "{}", "seconds": 2.0, "work_seconds": 1.0, "peak_memory_mb": number}
        for system, scores in values.items()
        for number, value in enumerate(scores)
    )


def test_a_clip_without_a_value_from_one_system_is_left_out_for_all():
    values = {"noisy": [1.0, 5.0, np.nan], "ours": [2.0, 6.5, 9.0], "theirs": [2.0, 6.0, 8.0]}
    summary = summarize(table_of(values, "abc"), SCALE, against="theirs")
    ours = summary["ours"]["overall"]["score"]
    assert (ours["mean"], ours["count"]) == (4.25, 2)
    assert ours["difference"]["noisy"]["mean"] == 1.25 and ours["difference"]["noisy"]["count"] == 2
    assert ours["difference"]["theirs"]["mean"] == 0.25 and ours["difference"]["theirs"]["count"] == 2
    assert "noisy" not in summary["noisy"]["overall"]["score"]["difference"]
    assert (summary["ours"]["real_time_factor"], summary["ours"]["peak_memory_mb"]) == (0.5, 2.0)


def test_clips_of_one_speaker_do_not_narrow_an_interval():
    values = {"noisy": [1.0, 1.2, 3.0, 3.2, 5.0, 5.2], "ours": [2.0, 2.0, 4.5, 4.5, 8.0, 8.0]}
    alone, together = (
        summarize(table_of(values, speakers), SCALE)["ours"]["overall"]["score"] for speakers in ("abcdef", "aabbcc")
    )
    assert together["mean"] == alone["mean"] and together["low"] < alone["low"]
    assert together["high"] == 9.0  # the end of the scale
    assert together["difference"]["noisy"]["p"] > alone["difference"]["noisy"]["p"]


def test_an_output_without_sound_is_said_and_gets_the_worst_values(corpus, tmp_path, monkeypatch):
    def break_down(waveform, sampling_rate):
        return np.full_like(waveform, np.nan) if waveform.std() > 0.1 else waveform[:0]

    test_set = render_corpus(corpus, tmp_path / "test_set")
    monkeypatch.setitem(
        rivals.RIVALS, "breaks", rivals.Rival(lambda device: rivals.PerChannel(break_down, None), "pytest")
    )
    monkeypatch.setattr(benchmark, "run_in_workers", lambda processes, *work: workers.run_here(*work))
    monkeypatch.setattr(workers, "loaded", {})
    summary = run_benchmark(test_set, ["noisy", "breaks"], tmp_path / "run", TWO_METRICS)["systems"]
    assert summary["breaks"]["overall"]["si_sdr"]["mean"] == -60
    assert (
        summary["breaks"]["overall"]["mel_distance"]["count"] == summary["noisy"]["overall"]["mel_distance"]["count"]
    )
    reasons = summary["breaks"]["unscorable"]
    assert reasons["si_sdr: output silent: worst value"] == 4
    assert reasons["system: returned NaN or infinite samples"] + reasons["system: returned no samples"] == 4


def test_a_run_is_extended_by_a_system_and_nothing_else_is_computed(run):
    """Here `folder:DIR` on the clean recordings, which scores as `clean`."""
    folder, test_set, summary = run
    system = f"folder:{test_set.clips[0].clean.parent}"
    before = {name: (folder / name).read_text() for name in ("timing.jsonl", "scores.jsonl")}
    extended = run_benchmark(test_set, ["noisy", "clean", system], folder, TWO_METRICS)["systems"]
    for name, text in before.items():
        assert (folder / name).read_text().startswith(text)
        assert {row["system"] for row in read_lines(folder / name)[text.count("\n") :]} == {system}, name
    for name in ("noisy", "clean"):  # their differences are now corrected for one system more
        scores = [parts[name]["overall"]["mel_distance"] for parts in (extended, summary["systems"])]
        assert {**scores[0], "difference": None} == {**scores[1], "difference": None}
    found = extended[system]
    assert found["overall"]["mel_distance"]["mean"] == summary["systems"]["clean"]["overall"]["mel_distance"]["mean"]
    assert audio_path(folder, system, test_set.clips[0].name).exists()


@pytest.mark.parametrize(("system", "file"), [("folder:{}", "a.wav"), ("dacse:.+{}", "adapter_config.json")])
def test_a_system_is_another_when_its_recordings_or_its_adapter_change(tmp_path, monkeypatch, system, file):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    (tmp_path / file).write_text("one")
    first = system_version(system.format(tmp_path))
    assert system_version(system.format(tmp_path)) == first != system_version("dacse:.")
    (tmp_path / file).write_text("another")
    assert system_version(system.format(tmp_path)) != first


def test_time_is_that_of_the_processor_and_on_an_accelerator_that_of_the_clock(run, tmp_path, monkeypatch):
    def wait(waveform, sampling_rate):
        time.sleep(0.2)
        return waveform

    _, test_set, _ = run
    monkeypatch.setitem(rivals.RIVALS, "waits", rivals.Rival(lambda device: rivals.PerChannel(wait, None), "pytest"))
    monkeypatch.setattr(workers, "loaded", {})
    for device in ("cpu", "cuda"):
        workers.start_system("waits", device)
        (row,) = workers.enhance_clips(test_set.clips[:1], [tmp_path / "out.flac"])
        assert (row["work_seconds"] >= 0.2) == (device == "cuda")


def test_the_command_says_what_brings_a_missing_package(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluation_dacse.testsets", None)  # as where an import of it fails
    failed = CliRunner().invoke(app, ["evaluate", "-t", str(corpus), "-o", str(tmp_path / "run")])
    assert failed.exit_code == 1
    assert "pip install 'dacse[eval]'" in failed.stderr


def test_the_command_evaluates_and_says_what_is_wrong(corpus, tmp_path):
    options = ["--recipe", str(corpus / "recipe.yaml"), "--split", "valid", "--clips-per-task", "1"]
    options += ["-s", "noisy", "-m", "si_sdr", "-o", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, ["evaluate", "-t", str(corpus), *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["systems"]["noisy"]["overall"]["si_sdr"]["count"] == 2
    assert "checksum" in done.stderr and (tmp_path / "run" / "report.md").exists()
    wrong = CliRunner().invoke(app, ["evaluate", "-t", str(corpus), *options, "-s", "nosiy"])
    assert wrong.exit_code == 1 and "unknown system 'nosiy'" in wrong.stderr
