"""The page to listen to a run: every clip through every system, as it was."""

import re

import numpy as np
import soundfile

from evaluation_dacse.audio import read_mono, resample
from evaluation_dacse.samples import RATE, write_samples
from tests.tiny_run import SCORES, write_run


def test_every_system_has_a_player_for_every_clip(tmp_path):
    write_run(tmp_path / "run")
    page = write_samples(tmp_path / "page", [tmp_path / "run"], "Rain & rooms", clips=3, credits=["by Ana <CC0>"])
    text = page.read_text()
    files = re.findall(r'src="(.*?)"', text)
    assert len(files) == len(set(files)) == 3 * len(SCORES)
    assert "Rain &amp; rooms" in text and "by Ana &lt;CC0&gt;" in text and "Commit c0ffee" in text
    played, rate = soundfile.read(page.parent / "audio" / "made-up-clip-1-dacse.mp3")
    waveform, own = read_mono(tmp_path / "run" / "audio" / "dacse" / "clip-1.flac")
    expected = resample(waveform, own, RATE)
    assert rate == RATE and len(played) == len(expected)
    assert np.corrcoef(played, expected)[0, 1] > 0.99  # MP3
