"""Builds a page to listen to runs: clips of every task through every system, each with a player. Runs no system."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas
import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined

from .audio import read_mono, resample
from .benchmark import audio_path, slug
from .listening import choose_clips
from .report import footer

RATE = 44100  # of MP3, which knows no rate above 48 kHz
PAGES = Environment(
    loader=PackageLoader(__package__, "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_samples(folder: Path, runs: Sequence[Path], title: str, clips: int = 9, credits: Sequence[str] = ()) -> Path:
    """Writes a page and the recordings it plays, as MP3.

    Args:
        folder: for `index.html` and `audio/`.
        runs: folders of finished runs, in the order they are shown.
        title: of the page.
        clips: of each run, from its tasks in turn.
        credits: whose recordings these are.

    Returns:
        the page.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    shown, notes = [], list(credits)
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        table = pandas.read_parquet(run / "clips.parquet")
        for clip in choose_clips(table, clips):
            players = []
            for system in summary["systems"]:
                file = f"audio/{summary['test_set']['name']}-{clip}-{slug(system)}.mp3"
                waveform, rate = read_mono(audio_path(run, system, clip))
                soundfile.write(folder / file, resample(waveform, rate, RATE), RATE)
                players.append({"system": system, "file": file})
            shown.append({"title": f"{summary['test_set']['name']}: {clip}", "players": players})
        notes.append(f"{summary['test_set']['name']}: {footer(summary)}")
    page = folder / "index.html"
    page.write_text(PAGES.get_template("samples.html").render(title=title, clips=shown, notes=notes))
    return page
