"""A finished benchmark run of three systems on four clips, made up in code: what the tests of its readers read."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import soundfile

from evaluation_dacse.benchmark import audio_path
from evaluation_dacse.metrics import METRICS
from evaluation_dacse.summary import summarize
from evaluation_dacse.testsets import write_json
from tests.tiny_corpus import RATE, voice

RATE_AND_LENGTH = {"metric": "pesq", "sampling_rate": 16000, "min_seconds": 0.25}
SCORES = {"noisy": 1.5, "clean": 3.5, "dacse": 2.5}


def write_run(folder: Path) -> dict:
    """Writes the run's files and returns its summary; one reference is silent, and one output of `noisy`."""
    rows = []
    for system, level in SCORES.items():
        for number in range(4):
            clip = f"clip-{number}"
            path = audio_path(folder, system, clip)
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, level / 10 * voice(number, 0.5, 2 * RATE), 2 * RATE)
            score, reasons = level + number / 10, "{}"
            if number == 0:
                score, reasons = np.nan, '{"pesq": "reference silent: left out"}'
            elif (system, number) == ("noisy", 1):
                score, reasons = 1.0, '{"pesq": "output silent: worst value"}'
            rows.append({"system": system, "clip": clip, "task": ("rain", "room")[number % 2], "pesq": score})
            rows[-1].update(speaker=clip, seconds=0.5, work_seconds=0.1, peak_memory_mb=99.0, reasons=reasons)
    clips = pandas.DataFrame(rows)
    clips.to_parquet(folder / "clips.parquet")
    summary = {
        "test_set": {
            "name": "made-up",
            "hub_id": None,
            "checksum": "abc",
            "clips": 4,
            "speakers": 3,
            "tasks": {"rain": 2, "room": 2},
        },
        "commits": ["c0ffee"],
        "versions": {"noisy": "-", "clean": "-", "dacse": "f00"},
        "environment": {"machine": "a computer", "python": "3", "packages": {"torch": "2"}},
        "metrics": {"pesq": {**asdict(METRICS["pesq"].scales["pesq"]), **RATE_AND_LENGTH}},
        "systems": summarize(clips, {"pesq": asdict(METRICS["pesq"].scales["pesq"])}),
    }
    write_json(folder / "summary.json", summary)
    return summary
