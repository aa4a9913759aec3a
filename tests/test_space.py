"""The Space without a browser: what it takes and refuses, what the player is shown, the API and the command."""

# ruff: noqa: E402 - gradio may be absent, and the flat imports need the path that space_stand_in sets

import doctest
import re
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

gradio = pytest.importorskip("gradio", reason="the Space needs the extra `app`")

# isort: off
from tests.space_stand_in import AFTER_HZ, BEFORE_HZ, RATE, ROOT, StandIn, served_space, tone, write_tone
from tests.test_imports import imported_modules
from tests.tiny import tiny_pipeline

# flat, as in a Space; space_stand_in put their folder on the path
import app
import comparison
import offer

CHOICES = ("one", "none", 1.0, False, 1.0, 0)


@pytest.fixture
def space(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    return app.Space({"one": StandIn()}, {"one": ["dereverb"]}, offer.Settings(max_minutes=0.1), results)


@pytest.mark.parametrize("module", [app, comparison, offer])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_settings_come_from_the_environment():
    environment = {"DACSE_MODELS": "a, b", "DACSE_ADAPTERS": "org/dereverb", "DACSE_TRUST_REMOTE_CODE": "1"}
    assert offer.Settings.from_environment(environment) == offer.Settings(("a", "b"), ("org/dereverb",), True)
    assert not offer.Settings.from_environment({}).trust_remote_code
    with pytest.raises(ValueError, match="DACSE_TRUST_REMOTE_CODE is 'yes'"):
        offer.Settings.from_environment({"DACSE_TRUST_REMOTE_CODE": "yes"})


def test_adapters_beside_a_model_are_found(tmp_path):
    for name in ("noise", "dereverb"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_config.json").touch()
    assert offer.adapters_beside(str(tmp_path)) == ["dereverb", "noise"]


def written(tmp_path, name, samples, rate=RATE, **options):
    soundfile.write(tmp_path / name, samples, rate, **options)
    return tmp_path / name


def bad_recordings(folder):
    video = folder / "clip.mp4"
    video.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(1000))
    cut = written(folder, "cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, RATE))
    cut.write_bytes(cut.read_bytes()[:3000])
    no_number = np.zeros(100, np.float32)
    no_number[3] = np.nan
    return {
        "There is no recording yet": None,
        "clip.mp4 is not audio": video,
        "empty.wav holds no audio": written(folder, "empty.wav", np.zeros(0)),
        "long.wav lasts 120.0 minutes": written(folder, "long.wav", np.zeros(7200 * 8), 8),
        "wide.wav has 3 channels": written(folder, "wide.wav", np.ones((100, 3))),
        "large.wav has 2 MB": written(folder, "large.wav", np.ones(1_100_000), 700_000),
        "silent.wav is silent": written(folder, "silent.wav", np.zeros(100)),
        "nan.wav holds values that are no numbers": written(folder, "nan.wav", no_number, subtype="FLOAT"),
        "cut.flac is damaged": cut,
    }


def test_every_bad_recording_is_refused_in_words_and_before_any_work(space, tmp_path):
    space.settings = offer.Settings(max_minutes=0.1, max_megabytes=1.5)
    recordings = bad_recordings(tmp_path)
    for message, path in recordings.items():
        (update,) = space.run(path and str(path), *CHOICES)
        assert 'role="alert"' in update[0] and message in update[0], update[0]
        assert str(tmp_path) not in update[0]
    assert not space.pipelines["one"].calls


def test_names_of_files_cannot_carry_markup(space, tmp_path):
    path = tmp_path / "<img src=x>.wav"
    path.write_bytes(b"no audio")
    (update,) = space.run(str(path), *CHOICES)
    assert "&lt;img" in update[0] and "<img" not in update[0]


def test_the_choices_reach_the_pipeline(space, tmp_path):
    path = write_tone(tmp_path, 1)
    list(space.compare(path, "one", "dereverb", 0.5, True, 0.7, 3))
    list(space.compare(path, *CHOICES))
    sampled = {"strength": 0.5, "adapter": "dereverb", "do_sample": True, "temperature": 0.7, "seed": 3}
    assert space.pipelines["one"].calls == [sampled, {"strength": 1.0, "adapter": None}]
    with pytest.raises(ValueError, match="no specialist '/etc'"):
        next(space.compare(path, "one", "/etc", 1.0, False, 1.0, 0))


def test_pieces_joined_are_both_sides_whole(space, tmp_path):
    *_, result = space.compare(write_tone(tmp_path, 3.5), *CHOICES)
    pieces = result.shown["pieces"]
    assert [(piece["start"], piece["seconds"]) for piece in pieces] == [(0, 1), (1, 1), (2, 1), (3, 0.5)]
    for side, expected in (("before", tone(3.5, BEFORE_HZ)), ("after", tone(3.5, AFTER_HZ) / 2)):
        joined = np.concatenate([soundfile.read(piece[side])[0] for piece in pieces])
        np.testing.assert_allclose(joined, expected, atol=2**-15)  # 16-bit files
    downloaded, rate = soundfile.read(result.download)
    assert (rate, result.download.name) == (RATE, "noisy.enhanced.wav")
    np.testing.assert_allclose(downloaded, tone(3.5, AFTER_HZ) / 2, atol=2**-23)  # a 24-bit file


def test_both_sides_play_equally_loud_and_neither_louder_than_it_is(space, tmp_path):
    import pyloudnorm

    *_, result = space.compare(write_tone(tmp_path, 2), *CHOICES)
    gains = result.shown["gains"]
    meter = pyloudnorm.Meter(RATE)
    before, after = (meter.integrated_loudness(gains[side] * getattr(result, side).T) for side in ("before", "after"))
    assert before == pytest.approx(after, abs=1e-3) and max(gains.values()) == 1
    assert comparison.matching_gains(np.ones((1, 1)), np.zeros((1, 1)), RATE) == (1.0, 1.0)


@pytest.mark.parametrize("samples", [1, 2, 700, 50_000])
def test_recordings_of_any_length_are_shown(tmp_path, samples):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, samples)).astype(np.float32)
    shown = comparison.Comparison(tmp_path, "a.wav", noise, RATE, RATE, 100.0)
    shown.add(noise / 2, np.full((2, 1), 0.5))
    shown.finish()
    assert shown.state()["done"] and shown.download.exists()


def test_spectrograms_share_one_scale():
    loud = comparison.spectrogram(tone(1, 5000)[None])
    quiet = comparison.spectrogram(tone(1, 5000)[None] / 10)
    assert loud.max() - quiet.max() == pytest.approx(20, abs=0.1)  # dB
    row = loud.mean(1).argmax() * RATE / comparison.FFT_SAMPLES
    assert row == pytest.approx(5000, abs=RATE / comparison.FFT_SAMPLES)
    dark, bright = (np.asarray(comparison.picture(level, loud.max())).max() for level in (quiet, loud))
    assert bright == 255 and dark == pytest.approx(255 * (1 - 20 / comparison.DYNAMIC_RANGE_DB), abs=2)


def test_dnsmos_is_shown_where_it_can_be_had(space, tmp_path, monkeypatch):
    *_, result = space.compare(write_tone(tmp_path, 1), *CHOICES)
    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda name: None)
    assert app._scores(result.excerpts()) == ""
    monkeypatch.undo()
    scores = SimpleNamespace(
        run=lambda audio, rate: dict.fromkeys(comparison.DNSMOS_NAMES, float(np.abs(audio).max()))
    )
    monkeypatch.setitem(sys.modules, "speechmos", SimpleNamespace(dnsmos=scores, __spec__=True))
    assert "<td>0.40</td><td>0.20</td>" in app._scores(result.excerpts())


def test_the_space_gives_what_the_pipeline_gives(space, tmp_path):
    pipe = space.pipelines["one"] = tiny_pipeline()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (300, 2))
    path = str(written(tmp_path, "noise.wav", noise, 16000))
    *_, result = space.compare(path, "one", "none", 0.7, True, 1.0, 5)
    sampling = {"do_sample": True, "temperature": 1.0, "seed": 5, "batch_size": app.TOGETHER}
    expected = pipe(path, strength=0.7, return_confidence=True, **sampling)
    np.testing.assert_array_equal(result.after, expected["audio"])
    np.testing.assert_array_equal(np.concatenate(result.confidence), expected["confidence"].mean(0))


def test_on_zerogpu_only_the_model_runs_on_the_gpu(tmp_path, monkeypatch):
    reserved = []
    gpu = SimpleNamespace(GPU=lambda duration: reserved.append(duration) or (lambda function: function))
    monkeypatch.setattr(app, "spaces", gpu)
    space = app.Space({"one": StandIn()}, {"one": []}, offer.Settings(), tmp_path)
    list(space.compare(write_tone(tmp_path, 1), *CHOICES))
    (seconds,) = reserved
    assert [seconds("one", write_tone(tmp_path, length), {}) for length in (10, 60)] == [36, 66]


def test_programs_reach_one_endpoint_whose_errors_are_plain_and_which_reads_uploads_alone(tmp_path):
    import httpx
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    path, results = write_tone(tmp_path, 2), tmp_path / "results"
    results.mkdir()
    pipe = StandIn()
    with served_space({"one": pipe}, {"one": []}, results) as address:
        client = Client(address, verbose=False, download_files=tmp_path / "downloads")
        assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/enhance"]
        enhanced, rate = soundfile.read(client.predict(handle_file(path), strength=0.5, api_name="/enhance"))
        assert (rate, len(enhanced)) == (RATE, 2 * RATE) and pipe.calls[0]["strength"] == 0.5
        text = tmp_path / "notes.txt"
        text.write_text("no audio")
        with pytest.raises(AppError, match="^notes.txt is not audio this demo can read"):
            client.predict(handle_file(text), api_name="/enhance")
        with pytest.raises(AppError, match="'two' is not in the list of choices|Value: two is not in"):
            client.predict(handle_file(path), model="two", api_name="/enhance")

        calls = len(pipe.calls)
        private = {"path": str(written(tmp_path, "private.wav", tone(1, 440))), "meta": {"_type": "gradio.FileData"}}
        call = f"{address}gradio_api/call/enhance"
        event = httpx.post(call, json={"data": [private, *CHOICES]}).json()["event_id"]
        assert "event: error" in httpx.get(f"{call}/{event}").text and len(pipe.calls) == calls


def test_the_header_names_the_tested_gradio_and_files_that_exist():
    header = (ROOT / "spaces_app" / "README.md").read_text().split("---")[1]
    fields = dict(line.split(": ", 1) for line in header.strip().splitlines() if ": " in line)
    assert fields["sdk_version"] == gradio.__version__
    assert (ROOT / "spaces_app" / fields["app_file"]).is_file()
    assert len(app.EXAMPLES) == 3
    for path in app.EXAMPLES.values():
        offer.check_recording(str(path), offer.Settings())


def test_the_space_requires_what_it_and_the_remote_code_import_in_the_versions_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "spaces_app" / "requirements.txt").read_text().splitlines()
    ours = {name_of(line): line for line in project["dependencies"]}
    theirs = {name_of(line): line for line in lines if not line.startswith("#")}
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 9 and all(ours[name] == theirs[name] for name in shared)
    files = [*(ROOT / "spaces_app").glob("*.py"), *(ROOT / "dacse" / "tiny").glob("*.py")]
    own = {path.stem for path in files} | {"gradio", "PIL", "spaces"}  # sdk_version brings two, ZeroGPU the third
    imported = {module.split(".")[0] for path in files for level, module in imported_modules(path) if not level}
    assert len(files) >= 14 and imported - own - sys.stdlib_module_names <= theirs.keys()


def name_of(requirement: str) -> str:
    """What a package is imported as."""
    return re.split("[>=]", requirement)[0].replace("-", "_")


def test_dacse_app_starts_the_space_with_its_settings(monkeypatch):
    from typer.testing import CliRunner

    from command_dacse.cli import app as command

    started = []
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **options: started.append((args, options)) or SimpleNamespace(returncode=0)
    )
    options = ["--model", "org/a", "--model", "org/b", "--adapter", "org/c", "--max-minutes", "2", "--port", "7999"]
    result = CliRunner().invoke(command, ["app", *options])
    assert result.exit_code == 0, result.output
    ((arguments,), environment) = started[0][0], started[0][1]["env"]
    assert arguments == [sys.executable, str(ROOT / "spaces_app" / "app.py")]
    assert offer.Settings.from_environment(environment) == offer.Settings(
        ("org/a", "org/b"), ("org/c",), max_minutes=2
    )
    assert environment["GRADIO_SERVER_PORT"] == "7999"
    nowhere = CliRunner().invoke(command, ["app", "--adapter", "/no/such/adapter"])
    assert nowhere.exit_code == 1 and len(started) == 1
    assert nowhere.stderr == "error: '/no/such/adapter' is neither a directory here nor a Hub id\n"
