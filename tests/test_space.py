"""The Space without a browser: what it takes and refuses, what the player is shown, the API and the command."""

# ruff: noqa: E402 - gradio may be absent, and the flat imports need the path that space_stand_in sets

import doctest
import html
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
from processing_dacse.audio_dacse import stream_audio
from tests.sounds import KINDS, encode, speech
from tests.test_imports import TRAVELLING, imported_modules
from tests.tiny import tiny_pipeline

# flat, as in a Space; space_stand_in put their folder on the path
import app
import comparison
import offer
import page
import recording

CHOICES = ("one", "none", 1.0, False, 1.0, 0)


@pytest.fixture
def space(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    return app.Space({"one": StandIn()}, {"one": ["dereverb"]}, offer.Settings(max_minutes=0.1), results)


@pytest.mark.parametrize("module", [app, comparison, offer, page])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_settings_come_from_the_environment():
    environment = {"DACSE_MODELS": "a, b", "DACSE_ADAPTERS": "org/dereverb", "DACSE_TRUST_REMOTE_CODE": "1"}
    assert offer.Settings.from_environment(environment) == offer.Settings(("a", "b"), ("org/dereverb",), True)
    assert not offer.Settings.from_environment({}).trust_remote_code
    with pytest.raises(ValueError, match="DACSE_TRUST_REMOTE_CODE is 'yes'"):
        offer.Settings.from_environment({"DACSE_TRUST_REMOTE_CODE": "yes"})
    with pytest.raises(ValueError, match="DACSE_MAX_MINUTES is 'long'; give a number above 0"):
        offer.Settings.from_environment({"DACSE_MAX_MINUTES": "long"})


def test_a_space_without_the_package_needs_a_model(monkeypatch):
    monkeypatch.setattr(offer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="no model is given; set DACSE_MODELS"):
        offer.load_pipelines(offer.Settings())


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
    headerless = folder / "headerless.raw"
    headerless.write_bytes(bytes(5000))
    cut = written(folder, "cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, RATE))
    cut.write_bytes(cut.read_bytes()[:3000])
    no_number = np.zeros(100, np.float32)
    no_number[3] = np.nan
    return {
        "There is no recording yet": None,
        "clip.mp4 cannot be read as audio": video,
        "headerless.raw cannot be read as audio": headerless,
        "empty.wav has no samples": written(folder, "empty.wav", np.zeros(0)),
        "long.wav lasts longer than the 0.1 minutes": written(folder, "long.wav", np.ones(7000), 1000),
        "wide.wav has 3 channels": written(folder, "wide.wav", np.ones((100, 3))),
        "large.wav has 2 MB": written(folder, "large.wav", np.ones(1_100_000), 700_000),
        "silent.wav is silent": written(folder, "silent.wav", np.zeros(100)),
        "one.wav is too short: not even one sample at 44100 Hz": written(folder, "one.wav", [0.5], 384_000),
        "nan.wav has NaN or infinity": written(folder, "nan.wav", no_number, subtype="FLOAT"),
        "cut.flac has no samples": cut,
    }


def test_every_bad_recording_is_refused_in_words_and_before_any_work(space, tmp_path):
    space.settings = offer.Settings(max_minutes=0.1, max_megabytes=1.5)
    for message, path in bad_recordings(tmp_path).items():
        (update,) = space.run(path and str(path), *CHOICES)
        assert 'role="alert"' in update[0] and message in update[0], update[0]
        assert str(tmp_path) not in update[0]
    assert not space.pipelines["one"].calls


@pytest.mark.parametrize("kind", ["m4a", "webm", "mp3"])
def test_what_phones_and_browsers_record_is_taken(space, tmp_path, kind):
    path = tmp_path / f"memo.{kind}"
    rate = KINDS[kind].rate
    path.write_bytes(encode(speech(rate, rate), kind))
    *_, (status, shown, _) = space.run(str(path), *CHOICES)
    assert "Done" in status and shown["seconds"] == pytest.approx(1, abs=0.1)


def test_a_flac_that_does_not_know_its_length_is_taken_as_long_as_it_is(space, tmp_path):
    path = written(tmp_path, "streamed.flac", tone(1, BEFORE_HZ))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples (RFC 9639, section 8.2)
    content[22:26] = bytes(4)
    path.write_bytes(content)
    *_, result = space.compare(str(path), *CHOICES)
    assert result.shown["seconds"] == 1


def test_what_is_damaged_is_enhanced_as_far_as_it_goes_and_that_is_said(space, tmp_path):
    path = written(tmp_path, "cut.wav", tone(2, BEFORE_HZ))
    path.write_bytes(path.read_bytes()[:-RATE])
    *_, (status, shown, _) = space.run(str(path), *CHOICES)
    assert "Done" in status and "Beware: cut.wav" in status and str(tmp_path) not in status
    assert shown["seconds"] == pytest.approx(1.5, abs=0.01)


def test_long_silences_are_shown_as_they_are(space, tmp_path):
    pipe = space.pipelines["one"] = tiny_pipeline()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2000)
    path = written(tmp_path, "pauses.wav", np.concatenate([np.zeros(8000), noise, np.zeros(16000)]), 8000)
    *_, result = space.compare(str(path), *CHOICES)
    np.testing.assert_array_equal(result.after, pipe(str(path))["audio"][None])
    assert result.after.shape[1] == 26000 and result.shown["done"]


@pytest.mark.parametrize("name", ["takes [b] #1?.wav", "50%.wav", "ü &amp; 音.wav", "x" * 150 + ".wav"])
def test_a_recording_of_any_name_is_enhanced(space, tmp_path, name):
    *_, (status, shown, _) = space.run(write_tone(tmp_path, 0.5, name), *CHOICES)
    assert "Done" in status and shown["download"].endswith(name.removesuffix(".wav") + ".enhanced.wav")


def test_names_of_files_cannot_carry_markup(space, tmp_path):
    path = tmp_path / "<img src=x>.wav"
    path.write_bytes(b"no audio")
    (update,) = space.run(str(path), *CHOICES)
    assert "&lt;img" in update[0] and "<img" not in update[0]


def test_the_choices_reach_the_pipeline(space, tmp_path):
    path = write_tone(tmp_path, 1)
    list(space.compare(path, "one", "dereverb", 0.5, True, 0.7, 3, "no"))
    list(space.compare(path, *CHOICES))
    sampled = {"strength": 0.5, "adapter": "dereverb", "do_sample": True, "temperature": 0.7, "seed": 3}
    plain = {"strength": 1.0, "adapter": None, "keep_recording": None}
    assert space.pipelines["one"].calls == [sampled | {"keep_recording": False}, plain]
    *_, best = space.compare(path, *CHOICES[:-1], 3, "default", 4)
    drawn = {"candidates": 4, "do_sample": True, "temperature": 1.0, "seed": 3}
    assert space.pipelines["one"].calls[-1] == plain | drawn and best.shown["label"].startswith("best of 4")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((*CHOICES, "default", 9), "Candidates is 9; choose a number from 1 to 8"),
        ((*CHOICES, "default", 0), "Candidates is 0; choose a number from 1 to 8"),
        ((*CHOICES, None), "What is heard is None; choose one of"),
        ((*CHOICES, "maybe"), "What is heard is 'maybe'; choose one of"),
        (("one", "/etc"), "no specialist '/etc'"),
        (("two",), "There is no model 'two' here; choose one of"),
        ((None,), "There is no model None here; choose one of"),
    ],
)
def test_a_choice_that_is_none_is_a_friendly_line(space, tmp_path, choices, message):
    (update,) = space.run(write_tone(tmp_path, 0.1), *choices)
    assert 'role="alert"' in update[0] and message in html.unescape(update[0])


def test_an_emptied_seed_draws_anew_and_one_that_is_none_is_a_friendly_line(space, tmp_path):
    space.pipelines["one"] = tiny_pipeline()
    path = str(written(tmp_path, "noise.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 900), 8000))
    takes = [[*space.compare(path, "one", "none", 1.0, True, None, seed)][-1].after for seed in (None, None, 1, 1)]
    assert not np.array_equal(takes[0], takes[1]) and np.array_equal(takes[2], takes[3])
    (*_, (status, *_)) = space.run(path, "one", "none", 1.0, True, 1.0, 1e30)
    assert 'role="alert"' in status and "seed" in status


def test_takes_of_one_recording_know_each_other_and_say_what_was_chosen(space, tmp_path):
    first, second, other = (
        [*space.compare(write_tone(tmp_path, seconds), "one", "none", strength, False, 1.0, 0)][-1].shown
        for seconds, strength in ((1, 1.0), (1, 0.5), (1.5, 1.0))
    )
    assert first["recording"] == second["recording"] != other["recording"] and first["id"] != second["id"]
    assert (first["label"], second["label"]) == ("default settings", "strength 0.5")


def test_a_picked_example_is_heard_at_once(space, tmp_path):
    path = str(page.EXAMPLES["machine noise"])
    status, player, excerpts = space.show_example(path)
    assert "Press Enhance" in status and player == gradio.skip() and excerpts is None
    space.settings = offer.Settings()
    space.prepare_examples()
    calls = len(space.pipelines["one"].calls)
    status, player, excerpts = space.show_example(path)
    assert player["done"] and player["label"] == "default settings" and len(excerpts) == 2
    assert len(space.pipelines["one"].calls) == calls == len(page.EXAMPLES)


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


def test_the_loudness_of_both_sides_is_told_where_there_is_any(space, tmp_path):
    *_, result = space.compare(write_tone(tmp_path, 2), *CHOICES)
    told = result.shown["loudness"]
    halved = comparison.loudness(result.before / 2, RATE)
    assert told["before"] - halved == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert told["after"] == comparison.loudness(result.after, RATE)
    assert comparison.loudness(np.zeros((1, 1)), RATE) is None


@pytest.mark.parametrize("samples", [1, 2, 700, 50_000])
def test_recordings_of_any_length_are_shown(tmp_path, samples):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, samples)).astype(np.float32)
    uploaded = recording.UploadedRecording("a.wav", "digest", noise, RATE)
    shown = comparison.Comparison(tmp_path, uploaded, "default settings", RATE, 100.0)
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
    assert page._scores(result.excerpts()) == ""
    monkeypatch.undo()
    scores = SimpleNamespace(
        run=lambda audio, rate: dict.fromkeys(comparison.DNSMOS_NAMES, float(np.abs(audio).max()))
    )
    monkeypatch.setitem(sys.modules, "speechmos", SimpleNamespace(dnsmos=scores, __spec__=True))
    assert "<td>0.40</td><td>0.20</td>" in page._scores(result.excerpts())


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
    assert [seconds("one", "noisy.wav", length, {}) for length in (10, 60)] == [36, 66]
    assert seconds("one", "noisy.wav", 10, {"candidates": 4}) == 54


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
        with pytest.raises(AppError, match="^notes.txt cannot be read as audio"):
            client.predict(handle_file(text), api_name="/enhance")
        with pytest.raises(AppError, match="'two' is not in the list of choices|Value: two is not in"):
            client.predict(handle_file(path), model="two", api_name="/enhance")

        calls = len(pipe.calls)
        private = {"path": str(written(tmp_path, "private.wav", tone(1, 440))), "meta": {"_type": "gradio.FileData"}}
        call = f"{address}gradio_api/call/enhance"
        event = httpx.post(call, json={"data": [private, *CHOICES]}).json()["event_id"]
        assert "event: error" in httpx.get(f"{call}/{event}").text and len(pipe.calls) == calls


def test_the_space_is_a_tool_whose_arguments_are_described(tmp_path, monkeypatch):
    """Called as an assistant calls it: over the Model Context Protocol, with the address of a recording."""
    import asyncio
    import json

    mcp = pytest.importorskip("mcp", reason="gradio[mcp] brings it")
    from mcp.client.streamable_http import streamablehttp_client

    monkeypatch.setattr("gradio.processing_utils.PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])  # loopback is refused else
    (tmp_path / "results").mkdir()
    pipe = StandIn()

    async def call(address: str):
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            (tool,) = (await session.list_tools()).tools
            example = f"{address}gradio_api/file={page.EXAMPLES['machine noise']}"
            arguments = {"audio": example, "strength": 0.5, "keep_recording": "no"}
            return tool, await session.call_tool(tool.name, arguments)

    with served_space({"one": pipe}, {"one": ["dereverb"]}, tmp_path / "results") as address:
        tool, result = asyncio.run(call(address))
    assert tool.description.startswith("Enhances a recording of speech")
    described = tool.inputSchema["properties"]
    assert list(described) == ["audio", *offer.Choices._fields]
    assert all(part["description"] for part in described.values())
    assert described["adapter"]["enum"] == ["none", "dereverb"] and tool.inputSchema["required"] == ["audio"]
    assert not result.isError and "machine_noise.enhanced.wav" in json.dumps(result.model_dump())
    assert pipe.calls == [{"strength": 0.5, "adapter": None, "keep_recording": False}]


def test_the_header_names_the_tested_gradio_and_files_that_exist():
    header = (ROOT / "spaces_app" / "README.md").read_text().split("---")[1]
    fields = dict(line.split(": ", 1) for line in header.strip().splitlines() if ": " in line)
    assert fields["sdk_version"] == gradio.__version__
    assert (ROOT / "spaces_app" / fields["app_file"]).is_file()
    assert len(page.EXAMPLES) == 3
    for path in page.EXAMPLES.values():
        assert not recording.read_recording(str(path), stream_audio, RATE, offer.Settings()).warnings


def test_the_space_requires_what_it_and_the_remote_code_import_in_the_versions_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "spaces_app" / "requirements.txt").read_text().splitlines()
    ours = {name_of(line): line for line in project["dependencies"]}
    theirs = {name_of(line): line.split(" #")[0] for line in lines if not line.startswith("#")}
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 10 and all(ours[name] == theirs[name] for name in shared)
    files = [*(ROOT / "spaces_app").glob("*.py"), *TRAVELLING]
    own = {path.stem for path in files} | {"gradio", "PIL", "spaces"}  # sdk_version brings two, ZeroGPU the third
    own |= {"modeling_dacse", "evaluation_dacse"}  # used where they are installed
    imported = {module.split(".")[0] for path in files for level, module in imported_modules(path) if not level}
    assert len(files) >= 25 and imported - own - sys.stdlib_module_names <= theirs.keys()


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
