"""The robustness suite: what each slice holds, and the example that runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation_dacse.audio import read_mono
from evaluation_dacse.robustness import SLICES, pluck_chords, render_suite
from evaluation_dacse.testsets import read_clip
from tests.tiny_corpus import RATE, write_corpus

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four test speakers, two of whom speak English."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), speech=4, seconds=36.0)
    lines = [line.split("\t") for line in (folder / "MANIFEST.tsv").read_text().splitlines()]
    columns = ["speaker\tlanguage", *(f"{number}\t{('en', 'fr')[number % 2]}" for number in range(len(lines) - 1))]
    rows = ["\t".join([*line, column]) for line, column in zip(lines, columns, strict=True)]
    (folder / "MANIFEST.tsv").write_text("\n".join(rows).replace("valid", "test") + "\n")
    for path in list(folder.rglob("*valid*")):
        path.rename(path.with_name(path.name.replace("valid", "test")))
    return folder


def test_every_slice_has_its_clips_its_speech_and_its_length(corpus, tmp_path):
    suite = render_suite(str(corpus), tmp_path, clips=3, sampling_rate=RATE)
    assert suite.tasks == list(SLICES) and len(suite.clips) == 3 * len(SLICES) and suite.checksum
    english = {clip.speaker for clip in suite.clips if clip.task == "english"}
    others = {clip.speaker for clip in suite.clips if clip.task == "other_languages"}
    assert len(english) == len(others) == 2 and not english & others
    for clip in suite.clips:
        noisy, clean, rate = read_clip(clip)
        assert rate == RATE and not np.array_equal(noisy, clean)
        assert (len(clean) == 35 * RATE) == (clip.task == "over_30_s")


def test_pieces_of_music_differ_and_can_be_made_again():
    one, again, other = (pluck_chords(np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert len(one) > 10 * 44100 and len(one) != len(other) and 0.01 < one.std() < np.abs(one).max() <= 1


def test_the_example_runs_every_slice(corpus, tmp_path):
    example = ROOT / "examples" / "evaluate_robustness.py"
    options = ["-o", tmp_path / "run", "--systems", "noisy", "--clips", "1", "--metrics", "si_sdr"]
    command = [sys.executable, example, corpus, *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert {line[3:].split(" (")[0] for line in done.stdout.splitlines() if "(1 clips)" in line} == set(SLICES)
    joined, rate = read_mono(tmp_path / "run" / "test_set" / "over_30_s" / "noisy" / "over_30_s-000.flac")
    assert len(joined) == 35 * rate
