"""The Space in a browser: everything a visitor does, seen and heard in headless Chromium."""

import os
import re
import time
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a microphone that hears beeps
    "--use-fake-ui-for-media-stream",
]
pytest.importorskip("gradio", reason="the Space needs the extra `app`")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
if not os.path.exists(CHROMIUM):
    pytest.skip(f"needs {CHROMIUM} (Debian's package chromium)", allow_module_level=True)

from tests.space_stand_in import AFTER_HZ, BEFORE_HZ, KEPT_HZ, RATE, StandIn, served_space, tone, write_tone  # noqa: E402

HZ = 20  # a busy machine drops blocks of what is recorded, which blurs a tone
# Keeps what reaches the loudspeaker: `heard()` is the last half second of it.
LISTEN = """
const connect = AudioNode.prototype.connect;
const blocks = [];
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode && !target.tap) {
    target.tap = target.context.createScriptProcessor(2048, 1, 1);
    target.tap.onaudioprocess = (event) => blocks.push(Array.from(event.inputBuffer.getChannelData(0)));
    connect.call(target.tap, target);
  }
  if (target instanceof AudioDestinationNode) connect.call(this, target.tap);
  return connect.call(this, target, ...rest);
};
window.heard = () => blocks.slice(-11).flat();
"""
# WCAG 2 contrast of every piece of text on the page with what lies behind it; the worst ones.
CONTRAST = """() => {
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgba = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return v.length > 3 ? v : [...v, 1]; };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] > 0.5) return colour;
    }
    return [255, 255, 255, 1];
  };
  const low = [];
  for (const node of document.querySelectorAll("main *")) {
    const text = [...node.childNodes].map((child) => (child.nodeType === 3 ? child.data.trim() : "")).join("");
    if (!text || !node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    if (node.closest("button:disabled")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    pipe = StandIn()
    results = tmp_path_factory.mktemp("results")
    limits = {"max_minutes": 0.5, "max_megabytes": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("page.score", lambda excerpts: [("Overall", 2.0, 3.0)])
        with served_space({"one": pipe, "two": pipe}, {"one": ["dereverb"], "two": []}, results, **limits) as address:
            yield address, pipe


@pytest.fixture
def pipe(space):
    pipe = space[1]
    pipe.gate.set()
    pipe.pieces = pipe.most_running = 0
    pipe.calls.clear()
    pipe.error = None
    yield pipe
    pipe.gate.set()


@contextmanager
def visitor(browser, space, **options):
    """A page of a visitor of their own; what it asked of other machines, and its errors, are checked at the end."""
    context = browser.new_context(**options)
    context.add_init_script(LISTEN)
    page = context.new_page()
    page.set_default_timeout(60_000)
    foreign, errors = [], []
    page.on("request", lambda request: foreign.append(request.url) if foreign_address(request.url) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if is_our_error(message) else None)
    page.goto(space[0])
    page.get_by_role("button", name="Enhance", exact=True).wait_for()
    yield page
    context.close()
    assert not foreign and not errors, (foreign, errors)


def foreign_address(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def is_our_error(message) -> bool:
    """Not Gradio's word that it cannot draw the waveform of a file that is no audio."""
    return message.type == "error" and "Waveform load error" not in message.text


def upload(page, path) -> None:
    with page.expect_response(lambda response: "/upload" in response.url and response.request.method == "POST"):
        page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text(os.path.basename(path)).or_(page.get_by_label("Clear")).first.wait_for()


def start(page) -> None:
    page.get_by_role("button", name="Enhance", exact=True).click()


def wait_for_status(page, text: str) -> None:
    page.locator("#dacse-status").get_by_text(text).wait_for()


def play_button(page, name="Play"):
    return page.get_by_role("region", name="Before and after").get_by_role("button", name=name)


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def heard_hz(page) -> float:
    samples = np.array(page.evaluate("heard()"))
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples)


def position(page) -> float:
    return float(page.locator(".dacse-player").get_attribute("data-position"))


def goes_on(page, where: float, clock: float) -> bool:
    """Whether the player has gone on from `where` it was at the time `clock`, without a jump. A busy one lags."""
    return 0 < position(page) - where < time.monotonic() - clock + 1


def test_a_recording_is_enhanced_heard_on_both_sides_and_downloaded(browser, space, pipe, tmp_path):
    with visitor(browser, space) as page:
        upload(page, write_tone(tmp_path, 25))
        page.get_by_label("Specialist").click()
        page.get_by_role("option", name="dereverb").click()
        page.get_by_label("number input for Strength").fill("0.5")
        page.get_by_text("Advanced").click()
        page.get_by_label("All of it generated").check()
        page.get_by_label("Sample").check()
        page.get_by_label("Seed").fill("7")
        start(page)
        wait_for_status(page, "Done")
        sampling = {"do_sample": True, "temperature": 1, "seed": 7}
        assert pipe.calls == [{"strength": 0.5, "adapter": "dereverb", "keep_recording": False, **sampling}]
        sizes = page.locator(".dacse-plot img").evaluate_all("images => images.map((image) => image.naturalWidth)")
        assert len(sizes) == 2 and min(sizes) > 100
        assert page.locator(".dacse-confidence path").get_attribute("d").count(",0.25") == 300  # 1 - 0.75

        play_button(page).click()
        wait_until(lambda: position(page) > 1)
        assert heard_hz(page) == pytest.approx(AFTER_HZ, abs=HZ)
        page.get_by_text("Before", exact=True).first.click()
        clock, where = time.monotonic(), position(page)
        page.wait_for_timeout(800)
        assert heard_hz(page) == pytest.approx(BEFORE_HZ, abs=HZ)
        assert goes_on(page, where, clock)
        page.keyboard.press("ArrowRight")  # the switch has the focus
        page.wait_for_timeout(300)
        loudness = np.abs(page.evaluate("heard()")).reshape(-1, 512).max(1)  # 12 ms each, the change of side in it
        assert 0.15 < loudness.min() and loudness.max() < 0.3  # both tones peak in between: no gap, no click
        page.get_by_label("Position").fill("21")
        wait_until(lambda: position(page) > 21)
        assert heard_hz(page) == pytest.approx(AFTER_HZ, abs=HZ)
        play_button(page).wait_for()  # at its end the player stops by itself
        assert position(page) == 0

        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "noisy.enhanced.wav"
        audio, rate = soundfile.read(download.value.path())
        np.testing.assert_allclose(audio, tone(25, AFTER_HZ) / 2, atol=2**-23)


def test_what_was_heard_before_stays_comparable_after_a_change_of_settings(browser, space, pipe, tmp_path):
    with visitor(browser, space) as page:
        upload(page, write_tone(tmp_path, 29))  # which plays until all of this is done
        start(page)
        wait_for_status(page, "Done")
        play_button(page).click()
        wait_until(lambda: position(page) > 0.5)
        page.get_by_text("Advanced").click()
        page.get_by_label("The recording, filtered, with its gaps filled").check()
        start(page)
        wait_for_status(page, "Done")
        assert heard_hz(page) == pytest.approx(AFTER_HZ, abs=HZ)  # what plays is not interrupted
        for choice, frequency, settings in (
            (page.get_by_label("Take 2: recording kept"), KEPT_HZ, "Take 2: recording kept"),
            (page.get_by_label("Take 1: default settings"), AFTER_HZ, "Take 1: default settings"),
            (page.get_by_label("Before", exact=True), BEFORE_HZ, "Before: the recording as it was"),
        ):
            page.get_by_label("Position").fill("1")
            clock, where = time.monotonic(), position(page)
            choice.check(force=True)  # its label covers it
            wait_until(lambda: heard_hz(page) == pytest.approx(frequency, abs=HZ))  # noqa: B023
            assert goes_on(page, where, clock)
            assert page.locator(".dacse-take").inner_text() == settings
        page.get_by_label("Take 1: default settings").check(force=True)
        with page.expect_download() as download:
            page.get_by_role("link", name="Download take 1").click()
        np.testing.assert_allclose(soundfile.read(download.value.path())[0], tone(29, AFTER_HZ) / 2, atol=2**-23)

        upload_again = page.get_by_label("Clear").first
        upload_again.click()
        upload(page, write_tone(tmp_path, 2, "other.wav"))
        start(page)
        wait_for_status(page, "Done: 2.0 s")
        assert page.locator(".dacse-sides label").all_inner_texts() == ["Before", "After"]  # another recording


def test_a_picked_example_is_heard_at_once_and_can_be_compared(browser, space, pipe):
    with visitor(browser, space) as page:
        page.get_by_text("machine noise").click()
        wait_for_status(page, "enhanced when the page was started")
        assert play_button(page).is_enabled() and not pipe.calls
        page.get_by_label("number input for Strength").fill("0.5")
        start(page)
        wait_for_status(page, "Done")
        assert page.locator(".dacse-sides label").all_inner_texts() == ["Before", "1", "2"]


def test_a_recording_of_the_microphone_is_enhanced(browser, space, pipe):
    with visitor(browser, space, permissions=["microphone"]) as page:
        page.get_by_label("Record audio").click()
        page.get_by_role("button", name="Record", exact=True).click()
        page.wait_for_timeout(1500)
        page.get_by_role("button", name="Stop").first.click()
        page.get_by_label("Clear").first.wait_for()
        start(page)
        wait_for_status(page, "Done")
        assert len(pipe.calls) == 1 and page.locator(".dacse-plot img").first.is_visible()


def test_what_is_done_can_be_heard_while_the_rest_is_made_and_cancelled(browser, space, pipe, tmp_path):
    with visitor(browser, space) as page:
        upload(page, write_tone(tmp_path, 25))
        pipe.gate.clear()
        start(page)
        wait_for_status(page, "s left")
        play_button(page).click()
        wait_until(lambda: position(page) > 0.6)
        assert heard_hz(page) == pytest.approx(AFTER_HZ, abs=HZ)
        assert 0 < pipe.pieces < 20 and not page.locator(".dacse-plot img").first.is_visible()
        page.get_by_role("button", name="Cancel").click()
        wait_for_status(page, "Cancelled")
        wait_until(lambda: pipe.running == 0)
        made = pipe.pieces
        page.wait_for_timeout(700)
        assert pipe.pieces == made < 25
        assert page.get_by_role("button", name="Enhance", exact=True).is_visible()
        assert play_button(page, re.compile("Play|Pause")).is_enabled()


def test_work_stops_when_the_browser_is_closed(browser, space, pipe, tmp_path):
    with visitor(browser, space) as page:
        upload(page, write_tone(tmp_path, 25))
        pipe.gate.clear()
        start(page)
        wait_until(lambda: pipe.pieces >= 1)
    wait_until(lambda: pipe.running == 0)
    assert pipe.pieces < 25


def test_bad_recordings_and_failures_are_answered_in_words_and_one_can_go_on(browser, space, pipe, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "long.wav", np.ones(31_000), 1000)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(1000))
    (tmp_path / "disguised.wav").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(1000))
    with visitor(browser, space) as page:
        start(page)
        wait_for_status(page, "There is no recording yet")
        for name, message in {
            "silent.wav": "silent.wav is silent",
            "long.wav": "long.wav lasts longer than the 0.5 minutes that this demo takes",
            "disguised.wav": "disguised.wav cannot be read as audio",
        }.items():
            upload(page, tmp_path / name)
            start(page)
            wait_for_status(page, message)
            assert page.get_by_role("alert").filter(has_text=message).is_visible()
            page.get_by_label("Clear").first.click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "clip.mp4")
        page.get_by_text("Invalid file type").first.wait_for()
        assert not pipe.calls

        upload(page, write_tone(tmp_path, 2))
        pipe.error = RuntimeError("secret of the server")
        start(page)
        wait_for_status(page, "The server failed")
        assert "secret" not in page.content()
        pipe.error = None
        start(page)
        wait_for_status(page, "Done")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_fits_and_can_be_read(browser, space, pipe, scheme):
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with visitor(browser, space, **phone) as page:
        page.get_by_text("machine noise").click()
        page.get_by_label("Clear").first.wait_for()
        start(page)
        wait_for_status(page, "Done")
        start(page)
        wait_for_status(page, "Done")
        page.get_by_text("Advanced").click()
        page.get_by_label("Seed").wait_for()
        page.locator(".dacse-scores").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
        assert page.evaluate(CONTRAST) == []
        for control in page.locator(".dacse-switch label, .dacse-play").all():
            assert control.bounding_box()["height"] >= 40  # pixels: wide enough for a finger
        if "DACSE_SCREENSHOTS" in os.environ:
            page.screenshot(path=f"{os.environ['DACSE_SCREENSHOTS']}/phone_{scheme}.png", full_page=True)


def test_two_visitors_at_once_take_turns(browser, space, pipe, tmp_path):
    with visitor(browser, space) as first, visitor(browser, space) as second:
        upload(first, write_tone(tmp_path, 25))
        upload(second, write_tone(tmp_path, 3))
        pipe.gate.clear()
        start(first)
        wait_for_status(first, "s left")
        start(second)
        wait_for_status(second, "Waiting for the model")
        second.get_by_role("button", name="Cancel").click()
        wait_for_status(second, "Cancelled")
        start(second)
        wait_for_status(second, "Waiting for the model")
        pipe.gate.set()
        for page in (first, second):
            wait_for_status(page, "Done")
    assert pipe.most_running == 1 and len(pipe.calls) == 2
