"""Builds a MUSHRA test (ITU-R BS.1534-3) from a run: a static page, anonymous recordings, and the key to their names.

RUN/listening/index.html   the test: open it in a browser, or put the folder on any web server
RUN/listening/audio/       recordings under names that say nothing
RUN/listening/key.json     which recording is which: keep it from the assessors
"""

import hashlib
import json
from collections import defaultdict
from importlib import resources
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas
import soundfile
from scipy.signal import ellip, sosfiltfilt

from .audio import read_mono
from .benchmark import audio_path
from .testsets import write_json

REFERENCE, LOW_ANCHOR, MID_ANCHOR = "reference", "low anchor", "mid anchor"
ANCHOR_HZ = {LOW_ANCHOR: 3500, MID_ANCHOR: 7000}  # BS.1534-3, section 5.1


def low_pass(waveform: np.ndarray, sampling_rate: int, cutoff: float) -> np.ndarray:
    """The reference (sample,) without what lies above `cutoff` Hz: an anchor.

    Raises:
        ValueError: there is nothing above, so that the anchor would be the reference.
    """
    if sampling_rate < 2.2 * cutoff:
        raise ValueError(
            f"clips of {sampling_rate} Hz have no band above {cutoff} Hz to take away for an anchor; a listening test "
            "needs clips of 16 kHz or more"
        )
    sections = ellip(8, 0.1, 60, cutoff, fs=sampling_rate, output="sos")
    return sosfiltfilt(sections, waveform).astype(np.float32)


def build_listening_test(run: str | Path, trials: int = 12, seed: int = 0) -> Path:
    """Writes a test of every system of a run into its folder `listening/`.

    Args:
        run: folder of a finished run; its system `clean` is the reference.
        trials: pages of the test, one clip each, taken from the tasks in turn.
        seed: of the recordings' names.

    Returns:
        the page.

    Raises:
        FileNotFoundError: `run` holds no finished run.
        ValueError: it did not run `clean`, so there is no reference, or its clips are too narrow for the anchors.
    """
    run = Path(run)
    if not (run / "summary.json").exists():
        raise FileNotFoundError(f"{run} holds no finished run (no summary.json)")
    summary = json.loads((run / "summary.json").read_text())
    systems = [system for system in summary["systems"] if system != "clean"]
    if len(systems) == len(summary["systems"]):
        raise ValueError(f"{run} has no reference: run the benchmark with the system 'clean' as well")
    table = pandas.read_parquet(run / "clips.parquet")
    folder = run / "listening"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pages, key = [], {}
    for clip in choose_clips(table, trials):
        clean, rate = read_mono(audio_path(run, "clean", clip))
        recordings = {REFERENCE: clean}
        recordings |= {anchor: low_pass(clean, rate, cutoff) for anchor, cutoff in ANCHOR_HZ.items()}
        recordings |= {system: read_mono(audio_path(run, system, clip))[0] for system in systems}
        names = {stimulus: rng.bytes(6).hex() for stimulus in ["open", *recordings]}
        for stimulus, name in names.items():
            waveform = recordings[REFERENCE if stimulus == "open" else stimulus]
            soundfile.write(folder / "audio" / f"{name}.wav", waveform, rate, subtype="PCM_16")
        trial, opened = names["open"][:6], names.pop("open")
        pages.append({"id": trial, "reference": opened, "stimuli": sorted(names.values())})
        key[trial] = {"clip": clip, "stimuli": {name: stimulus for stimulus, name in names.items()}}
    digest = hashlib.sha256(json.dumps([summary["test_set"]["checksum"], key]).encode()).hexdigest()[:8]
    test = {"id": f"{summary['test_set']['name']}-{digest}", "trials": pages}  # of another key, another test
    template = resources.files(__package__).joinpath("pages/mushra.html").read_text()
    # "</" would end the script the text stands in
    text = template.replace("/*TEST*/null", json.dumps(test).replace("</", "<\\/"))
    (folder / "index.html").write_text(text)
    write_json(folder / "key.json", {"id": test["id"], "trials": key})
    return folder / "index.html"


def choose_clips(table: pandas.DataFrame, count: int) -> list[str]:
    """The first clips of every task in turn.

    >>> table = pandas.DataFrame({"task": ["a", "a", "b", "a"], "clip": ["a2", "a1", "b1", "a1"]})
    >>> choose_clips(table, 3)
    ['a1', 'b1', 'a2']
    """
    by_task = defaultdict(set)
    for task, clip in zip(table["task"], table["clip"], strict=True):
        by_task[task].add(clip)
    in_turn = chain.from_iterable(zip_longest(*(sorted(by_task[task]) for task in sorted(by_task))))
    return [clip for clip in in_turn if clip is not None][:count]
