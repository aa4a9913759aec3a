"""Takes the README's two pictures of the Space, with the embedded model: a wide light page, a dark one on a phone.

Each shows two takes of an example, the second with other settings.

python benchmarks/space_pictures.py docs      # needs Debian's chromium and the package playwright
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

PORT = 7899
WIDE = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "color_scheme": "dark",
    "is_mobile": True,
    "has_touch": True,
}


def few_candidates(page: Page) -> None:
    page.get_by_label("number input for Candidates").fill("2")


def all_generated(page: Page) -> None:
    page.get_by_label("All of it generated").check()


def take(browser: Browser, path: Path, example: str, change: Callable[[Page], None], **options) -> None:
    """Hears an example as it was prepared, then enhances it with the settings that `change` chooses under Advanced.

    Takes the whole page, or the screen at its end on a phone.
    """
    page = browser.new_page(**options)
    page.set_default_timeout(600_000)
    page.goto(f"http://127.0.0.1:{PORT}")
    prepared = page.get_by_text("enhanced when the page was started")
    while not prepared.is_visible():  # the server enhances its examples as it starts
        page.get_by_text(example).click()
        page.wait_for_timeout(2000)
    page.get_by_text("Advanced").click()
    change(page)
    page.get_by_role("button", name="Enhance", exact=True).click()
    page.get_by_text("Done").wait_for()
    page.locator("table.dacse-scores").wait_for()
    page.get_by_label("Position").fill("1.5")
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(1000)  # colours fade
    page.screenshot(path=path, full_page="is_mobile" not in options)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where space.png and space_phone.png go")
    folder = parser.parse_args().folder
    command = [sys.executable, "-m", "dacse", "app", "--port", str(PORT)]
    app = subprocess.Popen(command, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}, start_new_session=True)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox"])
            while subprocess.run(["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{PORT}"]).returncode:
                time.sleep(1)
            take(browser, folder / "space.png", "address of 1961", few_candidates, **WIDE)
            take(browser, folder / "space_phone.png", "machine noise", all_generated, **PHONE)
    finally:
        os.killpg(app.pid, 15)


if __name__ == "__main__":
    main()
