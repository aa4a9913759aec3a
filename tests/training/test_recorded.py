"""Pairs of recordings: found by folders or names, scanned by their headers, cut into clips, refused with a reason."""

import numpy as np
import pytest
import soundfile

from tests.tiny_corpus import RATE, voice
from training_dacse.clips import recorded
from training_dacse.clips.digests import Digests
from training_dacse.clips.recorded import RecordedPairs

HOP = 256


@pytest.fixture
def paired(tmp_path):
    for name in ("a", "b"):
        for side in ("noisy", "clean"):
            (tmp_path / side).mkdir(exist_ok=True)
            soundfile.write(tmp_path / side / f"{name}.wav", voice(0, 0.5), RATE)
    return tmp_path


def test_pairs_come_from_folders_or_names_and_are_cut_to_the_context(paired, tmp_path):
    clips = RecordedPairs(paired, RATE, HOP, max_seconds=0.2)
    assert [clips[index]["clean"].shape[-1] for index in range(len(clips))] == 2 * [6 * HOP, 6 * HOP, 4 * HOP]
    whole = RecordedPairs(paired, RATE, HOP, max_seconds=0.2, whole=True)
    assert [whole[index]["clean"].shape[-1] for index in range(len(whole))] == 6 * [6 * HOP]
    samples = soundfile.read(paired / "clean" / "a.wav", dtype="float32")[0]
    np.testing.assert_array_equal(whole[2]["clean"][0, :1280], samples[10 * HOP : 10 * HOP + 1280])
    named = tmp_path / "named"
    named.mkdir()
    for side in ("noisy", "clean"):
        soundfile.write(named / f"x_{side}_1.wav", voice(1, 0.5), RATE)
    assert len(RecordedPairs(named, RATE, HOP, max_seconds=1.0)) == 1


def test_a_pair_of_whole_windows_has_no_empty_clip_after_them(tmp_path):
    rate, hop, frames = 44100, 512, 26
    assert frames * hop / rate * rate / hop > frames  # in floating point
    for side in ("noisy", "clean"):
        soundfile.write(tmp_path / f"{side}.wav", voice(0, frames * hop / rate, rate), rate)
    clips = RecordedPairs(tmp_path, rate, hop, max_seconds=13 * hop / rate)
    assert [clips[index]["noisy"].shape for index in range(len(clips))] == 2 * [(1, 13 * hop)]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: (d / "clean" / "a.wav").unlink(), FileNotFoundError, r"a\.wav: its clean partner .* is missing"),
        (lambda d: (d / "noisy" / "a.wav").unlink(), FileNotFoundError, r"a\.wav: its noisy partner is missing"),
        (lambda d: soundfile.write(d / "clean" / "a.wav", voice(0, 0.4), RATE), ValueError, "cut both to one length"),
        (lambda d: soundfile.write(d / "clean" / "a.wav", voice(0), RATE // 2), ValueError, "resample one"),
        (lambda d: [path.unlink() for path in d.rglob("*.wav")], FileNotFoundError, "no pairs"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_by_name(paired, spoil, error, message):
    spoil(paired)
    with pytest.raises(error, match=message):
        RecordedPairs(paired, RATE, HOP, max_seconds=1.0)


def test_bad_pairs_stop_the_run_unless_skipping_was_asked_for(paired):
    late = np.append(np.zeros(RATE // 4), voice(0, 0.25)).astype(np.float32)
    soundfile.write(paired / "clean" / "b.wav", late, RATE)  # silent at first only
    soundfile.write(paired / "clean" / "a.wav", np.zeros(RATE // 2), RATE)
    strict = RecordedPairs(paired, RATE, HOP, max_seconds=0.2)
    with pytest.raises(ValueError, match=r"a\.wav: the clean recording is silent; remove the pair"):
        list(strict.shard(range(len(strict))))
    lenient = RecordedPairs(paired, RATE, HOP, max_seconds=0.2, skip_broken=True)
    assert {pair["recording"] for pair in lenient.shard(range(len(lenient)))} == {"noisy/b.wav"}
    assert lenient.skipped == 3  # clips
    (paired / "noisy" / "a.wav").write_text("not audio")
    with pytest.raises(OSError, match=r"noisy/a\.wav: cannot be read .*remove or convert"):
        RecordedPairs(paired, RATE, HOP, max_seconds=0.2)
    lenient = RecordedPairs(paired, RATE, HOP, max_seconds=0.2, skip_broken=True)
    assert lenient.skipped == 1 and len(lenient) == 3
    (paired / "noisy" / "b.wav").write_text("not audio")
    with pytest.raises(ValueError, match="none of 2 pairs can be used"):
        RecordedPairs(paired, RATE, HOP, max_seconds=0.2, skip_broken=True)


def test_a_corpus_of_pairs_is_scanned_by_its_headers_alone(tmp_path, monkeypatch):
    for side in ("noisy", "clean"):
        (tmp_path / side).mkdir()
        for number in range(20):
            waveform = np.zeros(RATE, np.float32)
            waveform[-1] = 0.5  # silent up to the last sample
            soundfile.write(tmp_path / side / f"{number}.wav", waveform, RATE)
    decoded, looked_at = [], []
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, *args, **kwargs: decoded.append(self.name))
    info = soundfile.info
    monkeypatch.setattr(recorded.soundfile, "info", lambda path: looked_at.append(path) or info(path))
    for part in ("train", "valid"):
        RecordedPairs(tmp_path, RATE, HOP, 1.0, part=part)
    assert not decoded and len(looked_at) == len(set(looked_at)) == 40


def test_what_pairs_are_made_from_is_told_by_their_contents(paired):
    before, again = (RecordedPairs(paired, RATE, HOP, max_seconds=0.2).describe(Digests()) for _ in range(2))
    assert before == again
    soundfile.write(paired / "noisy" / "b.wav", voice(7, 0.5), RATE)  # of the same length
    assert RecordedPairs(paired, RATE, HOP, max_seconds=0.2).describe(Digests()) != before
