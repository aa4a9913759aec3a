"""Test sets: the same clips wherever they are rendered or read, and recordings that are none refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from evaluation_dacse.audio import read_mono
from evaluation_dacse.rendering import LONG_SECONDS, render_test_set
from evaluation_dacse.testsets import Clip, TestSet, open_test_set, read_clip
from tests.tiny_corpus import RATE, render_corpus, voice, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def rendered(corpus, tmp_path_factory):
    return render_corpus(corpus, tmp_path_factory.mktemp("rendered"))


def test_a_rendered_test_set_is_the_same_wherever_it_is_rendered(corpus, rendered, tmp_path):
    again = render_corpus(corpus, tmp_path / "again")
    assert again.checksum == rendered.checksum
    assert again.tasks == ["white_noise", "packet_loss"] and len(again.clips) == 4
    assert render_corpus(corpus, tmp_path / "again").checksum == rendered.checksum  # read back, not rendered
    assert render_corpus(corpus, tmp_path / "other", seed=1).checksum != rendered.checksum
    with pytest.raises(ValueError, match="holds another test set"):
        render_corpus(corpus, tmp_path / "again", seed=1)


def test_each_task_gets_its_clips_and_its_degradation(rendered):
    lost = set()
    for clip in rendered.clips:
        noisy, clean = read_mono(clip.noisy)[0], read_mono(clip.clean)[0]
        assert len(noisy) == len(clean) == RATE // 2
        lost |= {clip.task} if np.mean(noisy == 0) > 0.2 else set()
    assert lost == {"packet_loss"}


def corpus_of_speakers(folder: Path, **seconds: float) -> Path:
    """A manifest of recordings of 1 s, so many seconds of each speaker."""
    rows = ["path\tsplit\tseconds\tspeaker"]
    for number, (speaker, whole) in enumerate(seconds.items()):
        for part in range(round(whole)):
            soundfile.write(folder / f"{speaker}{part}.wav", voice(100 * number + part), RATE)
            rows.append(f"{speaker}{part}.wav\ttest\t1.0\t{speaker}")
    (folder / "MANIFEST.tsv").write_text("\n".join(rows) + "\n")
    (folder / "recipe.yaml").write_text(
        "clip_seconds: [1.0, 1.0]\ntasks: {clean: {}, noise: {steps: [{kind: white_noise}]}}"
    )
    return folder


def test_speakers_take_turns_in_every_task_and_no_recording_comes_twice(tmp_path):
    folder = corpus_of_speakers(tmp_path, ana=7, ben=2, eva=1)
    test_set = render_test_set(str(folder), folder / "recipe.yaml", tmp_path / "set", 10, sampling_rate=RATE)
    listed = json.loads((tmp_path / "set" / "clips.json").read_text())["clips"]
    for task in ("clean", "noise"):
        speakers = [clip.speaker for clip in test_set.clips if clip.task == task]
        assert sorted(speakers[:3]) == ["ana", "ben", "eva"] and sorted(speakers[3:5]) == ["ana", "ben"]
        assert len({clip["recording"] for clip in listed if clip["task"] == task}) == 10


def test_long_clips_are_sentences_of_one_speaker_with_pauses(tmp_path):
    folder = corpus_of_speakers(tmp_path, ana=36, ben=3)
    options = {"sampling_rate": RATE, "long": True}
    test_set = render_test_set(str(folder), folder / "recipe.yaml", tmp_path / "set", 2, **options)
    assert {clip.speaker for clip in test_set.clips} == {"ana"} and len(test_set.clips) == 4
    for clip in test_set.clips:
        clean = read_mono(clip.clean)[0]
        assert len(clean) == LONG_SECONDS * RATE
        quiet = np.abs(clean.reshape(-1, RATE // 20)).max(axis=1) == 0  # by 50 ms
        assert 20 < np.sum(np.diff(quiet.astype(int)) == 1) < 40  # a pause after each of about 22 sentences
    (folder / "MANIFEST.tsv").write_text("path\tsplit\tseconds\nana0.wav\ttest\t1.0\n")
    with pytest.raises(ValueError, match="no speaker has 35 s of recordings"):
        render_test_set(str(folder), folder / "recipe.yaml", tmp_path / "nobody", 2, **options)


def test_folders_of_pairs_and_of_recordings(tmp_path):
    for side in ("noisy", "clean"):
        for task in ("rain", "wind"):
            (tmp_path / "pairs" / side / task).mkdir(parents=True)
            soundfile.write(tmp_path / "pairs" / side / task / "a.wav", voice(0), RATE)
    pairs = open_test_set(str(tmp_path / "pairs"), tmp_path / "unused")
    assert [(clip.name, clip.task) for clip in pairs.clips] == [("rain-a", "rain"), ("wind-a", "wind")]
    assert all(clip.clean.exists() for clip in pairs.clips)
    wild = open_test_set(str(tmp_path / "pairs" / "noisy"), tmp_path / "unused")
    assert [clip.clean for clip in wild.clips] == [None, None] and wild.tasks == ["rain", "wind"]
    assert not (tmp_path / "unused").exists()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_test_set(str(tmp_path / "nowhere"), tmp_path)


def test_a_clip_that_is_there_twice_is_refused(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", voice(0), RATE)
    clips = [Clip(name, task, tmp_path / f"{name}.wav") for name, task in (("a", "rain"), ("b", "wind"))]
    assert TestSet("other tasks", clips).checksum
    with pytest.raises(ValueError, match="twins: a and b hold the same samples.*remove one"):
        TestSet("twins", [Clip(clip.name, "rain", clip.noisy) for clip in clips]).checksum  # noqa: B018


def test_clips_know_their_speakers(tmp_path):
    path = tmp_path / "test" / "noisy" / "p102" / "00000_1.3dB.wav"
    for file in (path, tmp_path / "test" / "clean" / "p102" / "00000.wav"):
        file.parent.mkdir(parents=True)
        soundfile.write(file, voice(0), RATE)
    assert open_test_set(f"ears-wham-v2:{tmp_path}", tmp_path).speakers == {"00000": "p102"}
    assert open_test_set(str(path.parent), tmp_path).speakers == {"00000_1.3dB": "00000_1.3dB"}  # nobody says


def test_clips_of_one_name_are_refused(tmp_path):
    for name in ("a/b.wav", "a-b.wav"):
        (tmp_path / "wild" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "wild" / name, voice(0), RATE)
    with pytest.raises(ValueError, match="wild: a-b and a-b stand for two recordings"):
        open_test_set(str(tmp_path / "wild"), tmp_path)


LAYOUTS = {  # what the archive of a public test set holds -> its clips as (name, task, paired)
    "ears-wham-v2": (
        ["test/noisy/p102/00000_1.3dB.wav", "test/clean/p102/00000.wav", "train/noisy/p001/00000_2.0dB.wav"],
        [("00000", "all", True)],
    ),
    "dns5-blind": (
        ["Track1_Headset/noisy/a.wav", "Track1_Headset/enrol/a.wav", "Track2_Speakerphone/noisy/a.wav"],
        [("Track1_Headset-a", "Track1_Headset", False), ("Track2_Speakerphone-a", "Track2_Speakerphone", False)],
    ),
    "plc-2022": (["blind/lossy_signals/7.wav", "X_CleanReference/7.wav"], [("7", "all", True)]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_public_test_sets_are_read_as_their_authors_lay_them_out(name, tmp_path):
    files, clips = LAYOUTS[name]
    for file in files:
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name / file, voice(0), RATE)
    test_set = open_test_set(f"{name}:{tmp_path / name}", tmp_path)
    assert [(clip.name, clip.task, clip.clean is not None) for clip in test_set.clips] == clips
    assert test_set.name == name and test_set.checksum
    with pytest.raises(ValueError, match=f"get it from github.com/.* and give {name}:FOLDER"):
        open_test_set(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="get the test set from"):
        open_test_set(f"{name}:{tmp_path / 'nowhere'}", tmp_path)


def test_a_recording_without_its_reference_is_named(tmp_path):
    for file in ("lossy_signals/1.wav", "lossy_signals/2.wav", "X_CleanReference/1.wav"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / file, voice(0), RATE)
    with pytest.raises(FileNotFoundError, match="2.wav: its reference '2' is not among"):
        open_test_set(f"plc-2022:{tmp_path}", tmp_path)


def test_hifitts_2_is_spoiled_by_a_recipe_after_its_own_list_of_test_speech(corpus, tmp_path):
    rows = []
    for number, subset in enumerate(("train", "test_seen", "test_unseen")):
        rows.append(
            {"audio_filepath": f"{number}/a{number}.flac", "duration": 1.0, "set": subset, "speaker": 90 + number}
        )
        path = tmp_path / "corpus" / "audio_44khz" / rows[-1]["audio_filepath"]
        path.parent.mkdir(parents=True)
        soundfile.write(path, voice(number, 1.0), RATE)
    listing = tmp_path / "corpus" / "manifest_filtered_44khz.json"
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"hifitts-2:{tmp_path / 'corpus'}"
    test_set = render_test_set(source, corpus / "recipe.yaml", tmp_path / "run", 1, sampling_rate=RATE)
    assert (test_set.name, test_set.hub_id) == ("hifitts-2-recipe", "nvidia/hifitts-2")
    assert [clip.task for clip in test_set.clips] == ["white_noise", "packet_loss"]
    chosen = (tmp_path / "run" / "speech.csv").read_text().splitlines()[1:]
    assert [Path(line.split(",")[0]).stem for line in chosen] == ["a1", "a2"]
    assert {clip.speaker for clip in test_set.clips} <= {"91", "92"}
    with pytest.raises(ValueError, match="give a recipe"):
        open_test_set(source, tmp_path)
    listing.unlink()
    with pytest.raises(FileNotFoundError, match="get the corpus from huggingface.co/datasets/nvidia/hifitts-2"):
        render_test_set(source, corpus / "recipe.yaml", tmp_path / "other")


def test_data_sets(tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(0), RATE)
    content = (tmp_path / "a.wav").read_bytes()
    audio = {"bytes": content, "path": None}
    Dataset.from_list([{"id": "a/p1", "noisy": audio, "clean": audio, "task": "hum", "speaker": "ana"}]).save_to_disk(
        tmp_path / "pairs"
    )
    pairs = open_test_set(str(tmp_path / "pairs"), tmp_path / "clips")
    assert [(clip.name, clip.task, clip.speaker) for clip in pairs.clips] == [("a-p1", "hum", "ana")]
    np.testing.assert_allclose(read_mono(pairs.clips[0].clean)[0], voice(0), atol=2**-15)
    Dataset.from_list([{"speech": audio}]).save_to_disk(tmp_path / "odd")
    with pytest.raises(ValueError, match="needs noisy and clean, or audio"):
        open_test_set(str(tmp_path / "odd"), tmp_path / "odd_clips")


def test_stereo_and_unequal_pairs_are_refused(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.zeros((10, 2)), RATE)
    soundfile.write(tmp_path / "mono.wav", np.zeros(10), RATE)
    soundfile.write(tmp_path / "short.wav", np.zeros(9), RATE)
    with pytest.raises(ValueError, match="2 channels"):
        read_mono(tmp_path / "stereo.wav")
    with pytest.raises(ValueError, match="the same length and rate"):
        read_clip(Clip("a", "all", tmp_path / "mono.wav", tmp_path / "short.wav"))
