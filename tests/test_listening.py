"""The MUSHRA test: built, taken by a browser, analysed."""

import json
import os
import re

import numpy as np
import pytest
import soundfile

from evaluation_dacse.listening import ANCHOR_HZ, build_listening_test, low_pass
from evaluation_dacse.ratings import analyse, ratings_table
from evaluation_dacse.samples import write_samples
from tests.tiny_corpus import voice
from tests.tiny_run import SCORES, write_run

CHROMIUM = "/usr/bin/chromium"
# what the assessor of the browser test thinks of each
OPINION = {"reference": 100, "low anchor": 20, "mid anchor": 60, "noisy": 40, "dacse": 70}


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path)
    return tmp_path


def read_key(run):
    return json.loads((run / "listening" / "key.json").read_text())


def test_every_page_holds_reference_anchors_and_every_system_under_names_that_say_nothing(run):
    page = build_listening_test(run, trials=3).read_text()
    key = read_key(run)
    assert [trial["clip"] for trial in key["trials"].values()] == ["clip-0", "clip-1", "clip-2"]
    for trial in key["trials"].values():
        assert sorted(trial["stimuli"].values()) == sorted(OPINION)
        assert all((run / "listening" / "audio" / f"{name}.wav").exists() for name in trial["stimuli"])
        hidden = {stimulus: name for name, stimulus in trial["stimuli"].items()}
        clean, _ = soundfile.read(run / "audio" / "clean" / f"{trial['clip']}.flac")
        np.testing.assert_array_equal(
            soundfile.read(run / "listening" / "audio" / f"{hidden['reference']}.wav")[0], clean
        )
    assert not any(word in page for word in ("dacse", "noisy", "anchor", "clip-0"))


@pytest.mark.parametrize("cutoff", ANCHOR_HZ.values())
def test_the_anchors_keep_what_the_standard_says(cutoff):
    """Within 0.1 dB up to the cutoff; of 3.5 kHz, 25 dB less from 4 kHz and 50 dB from 4.5 kHz on."""
    rate = 44100
    click = np.zeros(rate, np.float32)
    click[rate // 2] = 1.0
    decibels = 20 * np.log10(np.abs(np.fft.rfft(low_pass(click, rate, cutoff))) + 1e-9)  # bins of 1 Hz
    assert np.ptp(decibels[:cutoff]) < 0.21
    assert decibels[cutoff * 8 // 7 :].max() < -25 and decibels[cutoff * 9 // 7 :].max() < -50


def test_clips_too_narrow_for_an_anchor_are_refused():
    with pytest.raises(ValueError, match="needs clips of 16 kHz or more"):
        low_pass(voice(0), 8000, 7000)


def test_a_run_without_reference_or_unfinished_is_refused(run, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    del summary["systems"]["clean"]
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="run the benchmark with the system 'clean'"):
        build_listening_test(run)
    with pytest.raises(FileNotFoundError, match="no finished run"):
        build_listening_test(tmp_path / "elsewhere")


def answer(run, assessor, opinion):
    """A results file as the page writes it."""
    key = read_key(run)
    trials = [
        {"trial": trial, "ratings": {name: opinion[stimulus] for name, stimulus in content["stimuli"].items()}}
        for trial, content in key["trials"].items()
    ]
    path = run / f"{assessor}.json"
    path.write_text(json.dumps({"test": key["id"], "assessor": assessor, "trials": trials}))
    return path


def test_analysis_leaves_out_who_misses_the_hidden_reference_or_takes_the_mid_anchor_for_it(run):
    build_listening_test(run)
    files = [answer(run, name, {**OPINION, "dacse": 70 + number}) for number, name in enumerate(("ana", "ben", "cem"))]
    deaf = answer(run, "deaf", dict.fromkeys(OPINION, 50))
    mild = answer(run, "mild", {**OPINION, "mid anchor": 95})
    result = analyse(run, [*files, deaf, mild])
    assert (result["assessors"], result["trials"]) == (3, 4)
    assert result["left_out"] == {
        "deaf": "rated the hidden reference below 90 in 100% of the trials",
        "mild": "rated the mid-range anchor above 90 in 100% of the trials",
    }
    assert list(result["systems"]) == ["reference", "dacse", "mid anchor", "noisy", "low anchor"]
    dacse = result["systems"]["dacse"]
    # of three assessors who differ by 1 each: 71 -+ 4.30 * 1 / sqrt(3), whatever the number of trials
    assert (dacse["mean"], dacse["count"]) == (71, 12) and dacse["high"] - 71 == pytest.approx(2.484, abs=1e-3)
    assert dacse["difference"]["mean"] == 31 and dacse["difference"]["p"] < 0.01
    assert "| 71.00 [68.52, 73.48]" in ratings_table(result) and "| **+31.00 [" in ratings_table(result)
    assert "deaf is left out: rated the hidden reference" in ratings_table(result)
    with pytest.raises(ValueError, match="nobody is left"):
        analyse(run, [deaf])
    with pytest.raises(ValueError, match="two results of 'ana'"):
        analyse(run, [*files, files[0]])


def test_answers_to_another_test_are_refused(run):
    build_listening_test(run)
    path, first = answer(run, "ana", OPINION), read_key(run)["id"]
    assert re.fullmatch("made-up-[0-9a-f]{8}", first)
    build_listening_test(run, seed=1)
    with pytest.raises(ValueError, match=f"answers the test {first}, but"):
        analyse(run, [path])
    build_listening_test(run)
    analyse(run, [path])  # the same test again
    summary = json.loads((run / "summary.json").read_text())
    systems = dict(reversed(summary["systems"].items()))
    (run / "summary.json").write_text(json.dumps(summary | {"systems": systems}))
    build_listening_test(run)  # whose recordings have the names that others had
    with pytest.raises(ValueError, match=f"answers the test {first}, but"):
        analyse(run, [path])


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"needs {CHROMIUM} (Debian's package chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as driver:
        with driver.chromium.launch(executable_path=CHROMIUM, args=flags) as chromium:
            yield chromium


def test_a_browser_takes_the_test_by_keyboard_and_its_answers_are_analysed(run, browser):
    page_path = build_listening_test(run, trials=2)
    key = read_key(run)["trials"]
    page = browser.new_page(accept_downloads=True)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(page_path.as_uri())
    page.get_by_label("pseudonym").fill("ana")
    page.keyboard.press("Enter")
    for number in (1, 2):
        page.get_by_role("heading", name=f"Page {number} of 2").wait_for()
        sliders = page.locator(".stimulus input")
        assert sliders.count() == 5
        names = [sliders.nth(place).get_attribute("data-stimulus") for place in range(5)]
        trial = next(content["stimuli"] for content in key.values() if set(content["stimuli"]) == set(names))
        page.keyboard.press("0")
        page.wait_for_function("players[0].currentTime > 0 && !players[0].paused")
        for place, name in enumerate(names):
            assert page.locator("#next").is_disabled()
            page.keyboard.press(str(place + 1))  # one sound at a time
            page.wait_for_function(f"players.filter((p) => !p.paused).length === 1 && !players[{place + 1}].paused")
            steps = OPINION[trial[name]] - 50
            for _ in range(abs(steps) // 10):
                page.keyboard.press("Shift+ArrowUp" if steps > 0 else "Shift+ArrowDown")
        page.keyboard.press("Space")
        page.wait_for_function("players.every((player) => player.paused)")
        if number == 1:
            page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    download.value.save_as(run / "ana.json")
    assert problems == []
    assert page.locator("#results").input_value() == (run / "ana.json").read_text()
    result = analyse(run, [run / "ana.json"])
    assert result["assessors"] == 1 and result["left_out"] == {}
    assert {system: item["mean"] for system, item in result["systems"].items()} == OPINION


def test_a_browser_plays_one_of_the_samples_at_a_time(run, browser):
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(write_samples(run / "page", [run], "Samples", clips=1).as_uri())
    assert page.locator("audio").count() == len(SCORES)
    for number in range(len(SCORES)):
        page.evaluate(f"players[{number}].loop = true; players[{number}].play()")
        alone = f"players.filter((p) => !p.paused).length === 1 && !players[{number}].paused"
        page.wait_for_function(f"{alone} && players[{number}].currentTime > 0")
    assert problems == []
