"""The `dacse` command: which files it reads and writes, what it says, and that it never leaves half a file."""

import dataclasses
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import constants
from peft import LoraConfig
from typer.testing import CliRunner

from command_dacse.cli import app
from command_dacse.engine import EngineSettings
from command_dacse.files import plan_jobs
from command_dacse.options import RANGES, check_options
from dacse import default_model
from hub_upload.places import check_hub
from pipeline_dacse import EnhanceOptions
from processing_dacse.audio_dacse import stream_audio
from tests.sounds import encode, speech, video
from tests.tiny import tiny_model, tiny_pipeline

RATE = 8000  # of the tiny codec
ROOT = Path(__file__).parents[1]


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return 0.3 * np.random.default_rng(0).standard_normal((samples, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return str(tiny_checkpoint)


@pytest.fixture
def run(model):
    """`dacse enhance` with the tiny model; a later `--model` or `--device` wins."""

    def run(*arguments, **kwargs):
        options = ["--model", model, "--device", "cpu", *map(str, arguments)]
        return CliRunner().invoke(app, ["enhance", *options], **kwargs)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["enhance", "--help"],
        ["enhance"],
        ["enhance", "x.wav", "--seed", "one"],
        ["enhance", "x.wav", "--dtype", "float17"],
        ["enhance", "README.md", "-o", "x.txt"],
        ["enhance", "README.md", "-o", "x.wav", "--overwrite", "--skip-existing"],
        ["info", "--help"],
    ],
)
def test_help_and_wrong_arguments_answer_without_loading_torch(arguments):
    code = (
        f"import sys; sys.argv = ['dacse', *{arguments}]\n"
        "from command_dacse.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit: print('status', exit.code)\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    status, loaded = process.stdout.splitlines()[-2:]
    assert loaded == "[]"
    assert status == ("status 0" if "--help" in arguments else "status 2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], "device is 'gpu'; give cpu, cuda, mps"),
        (["--window-seconds", "nan"], "window_seconds is nan; give a number of seconds"),
        (["--window-seconds", "0"], "window_seconds is 0.0; give a number of seconds"),
        (["--overlap-seconds", "-1"], "overlap_seconds is -1.0; give a number of seconds"),
        (["--strength", "2"], "strength is 2.0; give a number from 0 (the input) to 1 (enhanced)"),
        (["--strength", "nan"], "strength is nan; give a number from 0"),
        (["--batch-size", "0"], "batch_size is 0; give a whole number of windows, at least 1"),
        (["--candidates", "0"], "candidates is 0; give a whole number of answers to a window, at least 1"),
        (["--seed", str(2**64)], "seed is 18446744073709551616; give any number of 64 bits"),
        (["--adapter", "nothing"], "adapter 'nothing' is unknown; {model} has bandwidth_extension, denoise"),
        (["--adapter", ""], "adapter '' is unknown; {model} has bandwidth_extension, denoise"),
        (["--model", "tests"], "tests has no config.json; give the directory of a model, or a Hub id"),
        (["--model", "./no such model"], "'./no such model' is neither a directory here nor a Hub id"),
        (["--codec", "/no/such/codec"], "'/no/such/codec' is neither a directory here nor a Hub id"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line_without_loading_torch_with_json_as_well(options, message, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    arguments = ["dacse", "enhance", str(tmp_path / "a.wav"), "--json", *options]
    code = (
        f"import sys; sys.argv = {arguments}\n"
        "from command_dacse.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit: status = exit.code\n"
        "assert status == 1 and not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: " + message.format(model=default_model()))
    report = json.loads(process.stdout)
    assert report["failed"] == 1 and report["error"] == report["files"][0]["error"] == line.removeprefix("error: ")


NUMBERS = [0, 1, -1, 2**31, 2**31 + 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 0.5, 1.5, -0.5, np.nan, np.inf]


@pytest.mark.parametrize("name", RANGES)
def test_a_number_is_an_option_of_the_command_where_it_is_one_of_a_call(name):
    nothing = EngineSettings(default_model(), None, None, "auto", False, None, dict.fromkeys(RANGES))
    for value in NUMBERS:
        if name in ("seed", "batch_size", "candidates") and value != value // 1:
            continue
        if name == "window_seconds" and value == 0:  # a call refuses it when it knows the model
            continue
        settings = dataclasses.replace(nothing, options=nothing.options | {name: value})
        messages = []
        for check in (partial(check_options, settings), partial(EnhanceOptions, **{name: value})):
            try:
                messages.append(check() and None)
            except ValueError as error:
                messages.append(str(error).replace("np.float64(nan)", "nan"))
        command, call = (message and message.split("; give")[0] for message in messages)
        assert command == (call if isinstance(call, str) else None), (value, messages)


def test_the_first_screen_of_help_is_what_most_people_need():
    screen = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["enhance", "--help"]).stdout.splitlines()[:40]
    for needed in ("noisy.wav -o clean.wav", "--output", "--format", "--overwrite", "--model", "--device", "--help"):
        assert any(needed in line for line in screen), needed


def test_what_cannot_be_written_is_said_before_a_model_is_loaded(monkeypatch, tmp_path):
    def fail(settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(EngineSettings, "load", fail)
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", noise(9), RATE)
    Path("file").touch()
    Path("folder/a.wav").mkdir(parents=True)
    for output, reason in {
        "/proc/out.wav": "No such file or directory",
        "file/out.wav": "Not a directory",
        "x" * 300 + ".wav": "File name too long",
        "folder": "it is a folder",
    }.items():
        result = CliRunner().invoke(app, ["enhance", "a.wav", "-o", output])
        place = "folder/a.wav" if output == "folder" else output
        (line, *_) = result.stderr.splitlines()
        assert (
            result.exit_code == 1 and line == f"failed: a.wav: cannot write {place} ({reason}); write somewhere else"
        )
    assert sorted(os.listdir()) == ["a.wav", "file", "folder"]


def test_a_folder_keeps_its_structure_names_and_bit_depth(run, tmp_path):
    (tmp_path / "in" / "süb dir").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "a.wav", noise(90, 2), RATE, subtype="PCM_24")
    soundfile.write(tmp_path / "in" / "süb dir" / "b ü.flac", noise(180), 2 * RATE)
    soundfile.write(tmp_path / "in" / "c.WAV", noise(8), RATE, subtype="FLOAT")
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--keep-rate")
    assert result.exit_code == 0, result.output
    assert "3 enhanced, 0 skipped, 0 failed" in result.stderr
    infos = {path.relative_to(tmp_path / "out"): soundfile.info(path) for path in (tmp_path / "out").rglob("*.wav")}
    facts = {str(name): (i.samplerate, i.channels, i.frames, i.subtype) for name, i in infos.items()}
    assert facts == {
        "a.wav": (RATE, 2, 90, "PCM_24"),
        str(Path("süb dir", "b ü.wav")): (2 * RATE, 1, 180, "PCM_16"),
        "c.wav": (RATE, 1, 8, "FLOAT"),
    }


@pytest.mark.parametrize("keep", [None, True, False])
def test_the_command_writes_what_the_pipeline_returns(run, model, tmp_path, keep):
    soundfile.write(tmp_path / "noisy.wav", noise(200, 2), RATE, subtype="FLOAT")
    flag = {None: [], True: ["--keep-recording"], False: ["--no-keep-recording"]}[keep]
    assert run(tmp_path / "noisy.wav", "-o", tmp_path / "out.wav", "--strength", "0.7", *flag).exit_code == 0
    written, rate = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)
    expected = tiny_pipeline()(str(tmp_path / "noisy.wav"), strength=0.7, keep_recording=keep)
    np.testing.assert_array_equal(written.T, expected["audio"])
    assert rate == expected["sampling_rate"]


def test_the_best_of_several_candidates_is_written(run, tmp_path):
    soundfile.write(tmp_path / "noisy.wav", noise(200), RATE, subtype="FLOAT")
    assert run(tmp_path / "noisy.wav", "-o", tmp_path / "out.wav", "--candidates", "8", "--seed", "5").exit_code == 0
    written, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    expected = tiny_pipeline()(str(tmp_path / "noisy.wav"), candidates=8, seed=5)["audio"]
    np.testing.assert_array_equal(written, expected)
    assert not np.array_equal(tiny_pipeline()(str(tmp_path / "noisy.wav"), do_sample=True, seed=5)["audio"], expected)


def test_results_stand_beside_their_inputs_and_are_no_inputs_the_next_time(run, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(8), RATE)
    assert run(tmp_path).exit_code == 0
    assert (tmp_path / "a.enhanced.wav").is_file()
    again = run(tmp_path, "--skip-existing")
    assert again.exit_code == 0 and "0 enhanced, 1 skipped, 0 failed" in again.stderr


def test_results_are_told_from_inputs_by_a_folder_within_the_one_that_is_searched(tmp_path, monkeypatch):
    (tmp_path / "noisy").mkdir()
    for name in ("noisy/a.wav", "noisy/b.flac"):
        soundfile.write(tmp_path / name, noise(8), RATE)
    monkeypatch.chdir(tmp_path / "noisy")
    sources = [str(tmp_path / "noisy/a.wav"), str(tmp_path / "noisy/b.flac")]
    for output in (tmp_path, tmp_path / "noisy/out", tmp_path / "elsewhere"):
        (tmp_path / "noisy/out").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "noisy/out/c.wav", noise(8), RATE)
        plan = plan_jobs([str(tmp_path / "noisy")], str(output), None)
        earlier = [] if output.name == "out" else [str(tmp_path / "noisy/out/c.wav")]
        assert [job.source for job in plan.jobs] == sources + earlier and not plan.problems
    assert [job.target for job in plan_jobs(["*.flac"], ".", None).jobs] == ["./b.wav"]
    assert [job.source for job in plan_jobs(["**/*.wav"], "out", None).jobs] == ["a.wav"]


def test_a_model_that_is_an_adapter_is_used_as_one(run, model, tmp_path):
    adapted = tiny_model()
    adapted.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text()) | {"base_model_name_or_path": model}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    soundfile.write(tmp_path / "a.wav", noise(90), RATE, subtype="FLOAT")
    given = run(tmp_path / "a.wav", "-o", tmp_path / "given.wav", "--adapter", tmp_path / "adapter")
    itself = run(tmp_path / "a.wav", "-o", tmp_path / "itself.wav", "--model", tmp_path / "adapter")
    plain = run(tmp_path / "a.wav", "-o", tmp_path / "plain.wav")
    assert [given.exit_code, itself.exit_code, plain.exit_code] == [0, 0, 0], itself.stderr
    audio = {name: soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("given", "itself", "plain")}
    np.testing.assert_array_equal(audio["itself"], audio["given"])
    assert (audio["itself"] != audio["plain"]).any()


def test_existing_results_are_refused_skipped_or_replaced_as_asked(run, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(8), RATE)
    (tmp_path / "out.wav").write_text("precious")
    refused = run(tmp_path / "a.wav", "-o", tmp_path / "out.wav")
    assert refused.exit_code == 1 and "exists; pass --overwrite or --skip-existing" in refused.stderr
    assert run(tmp_path / "a.wav", "-o", tmp_path / "out.wav", "--skip-existing").exit_code == 0
    assert (tmp_path / "out.wav").read_text() == "precious"
    assert run(tmp_path / "a.wav", "-o", tmp_path / "out.wav", "--overwrite").exit_code == 0
    assert soundfile.info(tmp_path / "out.wav").frames == 8


def test_standard_input_to_standard_output(run, tmp_path):
    content = io.BytesIO()
    soundfile.write(content, noise(90), RATE, format="WAV", subtype="FLOAT")
    result = run("-", input=content.getvalue())
    assert result.exit_code == 0, result.stderr
    audio, rate = soundfile.read(io.BytesIO(result.stdout_bytes), dtype="float32")
    np.testing.assert_array_equal(audio, tiny_pipeline()(content.getvalue())["audio"])
    assert rate == RATE


def test_globs_and_formats(run, tmp_path):
    for name in ("a.wav", "b.wav", "c.flac"):
        soundfile.write(tmp_path / name, noise(80), RATE)
    result = run(tmp_path / "*.wav", "-o", tmp_path / "out", "--format", "flac")
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.flac", "b.flac"]
    assert soundfile.info(tmp_path / "out" / "a.flac").format == "FLAC"


def test_the_report_for_machines_names_every_file(run, tmp_path):
    soundfile.write(tmp_path / "good.wav", noise(800), RATE)
    result = run(tmp_path / "good.wav", tmp_path / "missing.wav", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["enhanced"], report["skipped"], report["failed"], report["device"]) == (1, 0, 1, "cpu")
    assert report["audio_seconds"] == pytest.approx(0.1)
    by_name = {Path(file["input"]).name: file for file in report["files"]}
    assert by_name["good.wav"]["output"] == str(tmp_path / "out" / "good.wav")
    assert by_name["missing.wav"]["error"] == "no such file or folder"


FORMAT = b"WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data"  # 16 bits, 8 kHz, mono
BAD_FILES = {
    "text.wav": b"this is text",
    "empty.wav": b"",
    "no samples.wav": b"RIFF$\0\0\0" + FORMAT + b"\0\0\0\0",
    "half a sample.wav": b"RIFF\xff\xff\xff\xff" + FORMAT + b"\xff\xff\xff\xff\0",
}


def test_bad_files_are_named_in_one_line_each_write_nothing_and_leave_the_others_alone(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name, content in BAD_FILES.items():
        (tmp_path / "in" / name).write_bytes(content)
    soundfile.write(tmp_path / "in" / "nan.wav", noise(9) * np.nan, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "in" / "good.wav", noise(9), RATE)
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1 and "1 enhanced, 0 skipped, 5 failed" in result.stderr
    failures = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    for name in [*BAD_FILES, "nan.wav"]:
        assert sum(name in line for line in failures) == 1, name
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.wav"]


def test_inputs_that_name_no_audio_and_outputs_that_cannot_be_written(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    result = run(tmp_path / "empty", tmp_path / "none*.wav", tmp_path / "a.wav", "-o", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert (
        f"folder without audio files, which end in .wav, .m4a, .mp4, ...; what is called otherwise is read if it is \
named: '{tmp_path}/empty/*'"
        in result.stderr
        and "nothing matches" in result.stderr
    )
    assert f"cannot write {tmp_path / 'file' / 'out' / 'a.wav'} (Not a directory" in result.stderr
    assert "0 enhanced, 0 skipped, 3 failed" in result.stderr


def test_a_folder_that_may_not_be_written_is_named_with_the_systems_reason(run, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    result = run(tmp_path / "a.wav", "-o", "/proc/out.wav")  # nobody may write there, not even root
    assert result.exit_code == 1
    assert re.search(
        r"^failed: .*a\.wav: cannot write /proc/out\.wav \(.+\); write somewhere else", result.stderr, re.MULTILINE
    )


def test_a_link_that_leads_nowhere_is_reported_and_not_passed_over(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "lost.wav").symlink_to("nowhere.wav")
    soundfile.write(tmp_path / "in" / "a.wav", noise(9), RATE)
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1 and "1 enhanced, 0 skipped, 1 failed" in result.stderr
    assert "lost.wav" in result.stderr


def test_bad_standard_input_is_called_so(run, tmp_path):
    result = run("-", "-o", tmp_path / "out.wav", input=b"no audio")
    assert result.exit_code == 1 and "failed: standard input cannot be read as audio" in result.stderr
    assert str(Path(tempfile.gettempdir(), "tmp")) not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--adapter", "nothing"], "adapter 'nothing' is unknown"),
        (["--window-seconds", "60"], "window_seconds is 60.0"),
        (["--overlap-seconds", "60"], "overlap_seconds is 60.0"),
        (["--model", "tests"], "tests has no config.json"),
        (["--model", "./no such model"], "'./no such model' is neither a directory here nor a Hub id"),
        (["--codec", "/no/such/codec"], "'/no/such/codec' is neither a directory here nor a Hub id"),
    ],
)
def test_what_is_wrong_about_the_model_is_one_line_before_any_file_is_read(run, tmp_path, options, message):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    result = run(tmp_path / "a.wav", *options)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_an_output_that_is_an_input_or_cannot_hold_the_results_is_refused(tmp_path):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, noise(9), RATE)
    with pytest.raises(ValueError, match="'new.wav' is named like one file, and the input is not one; give a folder"):
        plan_jobs([str(tmp_path / "a.wav"), str(tmp_path / "a.flac")], "new.wav", None)
    with pytest.raises(ValueError, match="is an input; write somewhere else"):
        plan_jobs([str(tmp_path / "a.wav")], str(tmp_path / "." / "a.wav"), None)
    with pytest.raises(ValueError, match="standard output takes one input"):
        plan_jobs([str(tmp_path)], "-", None)
    with pytest.raises(ValueError, match="ends in .flac, and --format is mp3"):
        plan_jobs([str(tmp_path / "a.wav")], str(tmp_path / "b.flac"), "mp3")


def test_inputs_that_are_not_there_are_the_error_whatever_the_output(tmp_path):
    missing = str(tmp_path / "missing.wav")
    plan = plan_jobs([missing], str(tmp_path / "folder"), None)
    assert (plan.jobs, plan.problems) == ([], {missing: "no such file or folder"})


def test_a_model_whose_weights_are_damaged_is_one_line(run, model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    copy = shutil.copytree(model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | {"hidden_size": 16}
    (copy / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "dacse", "enhance", str(tmp_path / "a.wav"), "--model", str(copy)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1 and len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith(f"error: the weights in {copy} are not those of its config.json")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_an_interrupted_command_leaves_nothing_half_done(number, status, model, tmp_path):
    for name in ("in", "temporary"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "in" / "long.wav", noise(60 * RATE), RATE)
    content = io.BytesIO()
    soundfile.write(content, noise(90), RATE, format="WAV")
    # A test run in the background of a shell ignores the signal, and a child would inherit that.
    as_usual = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "dacse", "enhance", str(tmp_path / "in/long.wav"), "-", "-o", "out", "--model", model],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=as_usual,
    )
    process.stdin.write(content.getvalue())
    process.stdin.close()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/.*.part")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    assert os.listdir(tmp_path / "out") == []
    # What other libraries cache there is theirs.
    assert not [name for name in os.listdir(tmp_path / "temporary") if name.startswith("dacse")]


def test_a_signal_that_is_ignored_stays_ignored():
    code = (
        "import signal, sys; sys.argv = ['dacse']; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from command_dacse.signals import stop_in_order; stop_in_order()\n"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.startswith("True <function _stop")


def test_a_phone_s_memo_a_browser_s_clip_and_the_sound_of_a_meeting_are_enhanced(run, tmp_path):
    (tmp_path / "in").mkdir()
    files = {
        "memo.m4a": encode(speech(3000, 44100), "m4a"),
        "clip.webm": encode(speech(3000, 48000, 2), "webm of a browser"),
        "meeting.mp4": video([speech(3000, 48000)]),
        "note.opus": encode(speech(3000, 48000), "opus"),
        "voice.amr": encode(speech(3200, 8000), "amr"),
    }
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "silent film.mp4").write_bytes(video([]))
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--keep-rate")
    assert result.exit_code == 1 and "5 enhanced, 0 skipped, 1 failed" in result.stderr
    assert "silent film.mp4 has no sound, only video; give a recording with sound" in result.stderr
    infos = {path.stem: soundfile.info(path) for path in (tmp_path / "out").iterdir()}
    assert {name: (info.samplerate, info.channels, info.frames) for name, info in infos.items()} == {
        "memo": (44100, 1, 3000),
        "clip": (48000, 2, 3000),
        "meeting": (48000, 1, 3000),
        "note": (48000, 1, 3000),
        "voice": (8000, 1, 3360),
    }


def test_what_is_amiss_about_a_recording_is_said_once_and_reported(run, tmp_path):
    (tmp_path / "cut.wav").write_bytes(encode(speech(2000, 44100), "wav")[:-1000])
    soundfile.write(tmp_path / "floats.wav", noise(90), RATE, subtype="FLOAT")
    result = run(tmp_path / "cut.wav", tmp_path / "floats.wav", "-o", tmp_path / "out", "--format", "flac", "--json")
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert lines == [
        f"warning: {tmp_path}/cut.wav promises 4000 bytes and has 3000: it was cut; what is there is read",
        f"warning: {tmp_path}/floats.wav: flac holds 24 bits at most: float32 samples are rounded to those",
    ]
    warned = [file["warnings"] for file in json.loads(result.stdout)["files"]]
    assert [len(texts) for texts in warned] == [1, 1]
    assert soundfile.info(tmp_path / "out" / "floats.flac").subtype == "PCM_24"
    assert soundfile.info(tmp_path / "out" / "cut.flac").frames == round(1500 * RATE / 44100)


def test_a_result_has_the_permissions_and_tags_of_its_input(run, tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", RATE, 1) as file:
        file.title = "Täg"
        file.write(noise(90))
    (tmp_path / "a.wav").chmod(0o640)
    assert run(tmp_path / "a.wav", "-o", tmp_path / "b.mp3").exit_code == 0
    assert stat.S_IMODE((tmp_path / "b.mp3").stat().st_mode) == 0o640
    assert stream_audio(tmp_path / "b.mp3").tags["title"] == "Täg"


def test_pipes_are_read_and_devices_written(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    content = encode(speech(2000, 44100), "wav")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.wav").write_bytes(content))
    writer.start()
    result = run(tmp_path / "pipe.wav", "-o", tmp_path / "out.wav", "--keep-rate")
    writer.join()
    assert result.exit_code == 0 and soundfile.info(tmp_path / "out.wav").frames == 2000
    assert run(tmp_path / "out.wav", "-o", "/dev/null").exit_code == 0
    full = run(tmp_path / "out.wav", "-o", "/dev/full")
    assert full.exit_code == 1
    assert f"failed: {tmp_path}/out.wav: cannot write /dev/full (No space left on device); make room" in full.stderr


def test_names_are_shown_as_they_are_in_one_line_each(run, tmp_path):
    names = ["[b] [red].wav", "two\nlines.wav", "\x1b[31m.wav", os.fsdecode(b"caf\xe9.wav"), "音.wav"]
    for name in names:
        (tmp_path / name).write_bytes(b"no audio")
    result = run(*(tmp_path / name for name in names), "-o", tmp_path / "out")
    lines = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    shown = ["[b] [red].wav", "two\\nlines.wav", "\\x1b[31m.wav", "caf\\udce9.wav", "音.wav"]
    assert [line[: len(f"failed: {tmp_path}/{name}")] for line, name in zip(lines, shown, strict=True)] == [
        f"failed: {tmp_path}/{name}" for name in shown
    ]


def test_a_terminal_takes_nothing_in_a_name_for_markup(model, tmp_path):
    (tmp_path / "takes [").mkdir()
    for name in ("takes [/b].wav", "[red].wav"):
        soundfile.write(tmp_path / name, noise(90), RATE)
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "dacse", "enhance", "takes [/b].wav", "[red].wav", "-o", "out", "--model", model]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    printed = b""
    while True:
        try:
            printed += os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(main)
    assert process.wait(60) == 0, printed
    assert b"2 enhanced, 0 skipped, 0 failed" in printed
    assert sorted(os.listdir(tmp_path / "out")) == ["[red].wav", "b].wav"]


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("{dacse} missing.wav -o x.wav >&-", 1, "failed: missing.wav: no such file or folder"),
        ("{dacse} missing.wav -o x.wav 2>&-", 1, ""),
        ("{dacse} missing.wav -o x.wav <&- >&- 2>&-", 1, ""),
        ("{dacse} missing.wav -o x.wav --json >/dev/full", 1, "error: cannot write standard output (No space left"),
        ("{dacse} missing.wav -o x.wav --json >&-", 1, "error: cannot write standard output (it is closed)"),
        ("{dacse} --help | head -c 5", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii {dacse} --help > help.txt", 0, ""),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii {dacse} 音.wav -o x.wav", 1, "failed: \\udce9"),
    ],
)
def test_closed_full_and_narrow_streams_end_in_a_line_and_no_traceback(shell, status, said, tmp_path):
    command = shell.format(dacse=f"{sys.executable} -m dacse enhance")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == status, process.stderr
    assert "Traceback" not in process.stderr and "Exception ignored" not in process.stderr
    assert said in process.stderr
    assert not said or len(process.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    "arguments", [["enhance", "a.wav", "--adapter", "org/adapter"], ["info", "org/model"]], ids=lambda it: it[0]
)
def test_nothing_waits_for_a_hub_that_cannot_be_reached(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", noise(9), RATE)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "the Hub at http://127.0.0.1:1 cannot be reached" in result.stderr


def test_a_hub_that_does_not_answer_is_one_line(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        arguments = ["enhance", str(tmp_path / "a.wav"), "--model", "org/model", "--json"]
        command = [sys.executable, "-c", "from command_dacse.cli import main; main()", *arguments]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"error: the Hub at {address} cannot be reached (no answer in 8 s); give a directory")
    assert process.returncode == 1 and json.loads(process.stdout)["error"] == line.removeprefix("error: ")


def test_what_was_downloaded_is_used_when_the_hub_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="the Hub at http://127.0.0.1:1 cannot be reached .*refused"):
        check_hub("org/model")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: f"/cache/{name}")
    check_hub("org/model")
    assert constants.HF_HUB_OFFLINE is True


def test_info_counts_a_model_without_loading_it(model, tmp_path):
    facts = json.loads(CliRunner().invoke(app, ["info", model, "--json"]).stdout)
    tiny = tiny_pipeline()
    assert facts["parameters"] == tiny.model.num_parameters()
    assert facts["codec_parameters"] == tiny.processor.audio_tokenizer.num_parameters()
    assert facts["tokens_per_second_of_audio"] == 3000 and facts["longest_window_seconds"] == 0.01
    assert facts["cache_bytes_per_second_of_audio"] == 2 * 3000 * 2 * 2 * 32 * 4  # noisy and clean; keys and values
    released = json.loads(CliRunner().invoke(app, ["info", "--size", "1B", "--json"]).stdout)
    assert released["tokens_per_second_of_audio"] == 775.2  # arXiv 2510.02187
    assert released["longest_window_seconds"] == 5.271
    assert "parameters" in CliRunner().invoke(app, ["info", model]).stdout
    missing = CliRunner().invoke(app, ["info", str(tmp_path)])
    nowhere = CliRunner().invoke(app, ["info", "/no/such/model"])
    assert nowhere.exit_code == 1 and "is neither a directory here nor a Hub id" in nowhere.stderr
    assert missing.exit_code == 1 and missing.stderr.startswith("error: ")


def test_what_was_chosen_is_said_once(run, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(100), RATE)
    chosen = run(tmp_path / "a.wav", "-o", tmp_path / "b.wav").stderr
    assert chosen.count("on cpu in float32, up to 64 windows at a time") == 1
    told = run(tmp_path / "a.wav", "-o", tmp_path / "c.wav", "--int8", "--batch-size", "2").stderr
    assert told.count("on cpu in int8, up to 2 windows at a time") == 1
