"""What is held out is held out: speakers, noise and rooms of one split are in no other."""

import numpy as np
import pytest
import soundfile
import yaml
from datasets import Dataset, DatasetDict

from tests.tiny_corpus import RATE, voice, write_corpus
from training_dacse.clips.corpus import Source, corpus_pairs
from training_dacse.clips.recorded import RecordedPairs
from training_dacse.clips.rooms import SimulatedRooms
from training_dacse.clips.sources import find_clips
from training_dacse.clips.splits import SPLITS, assign_splits, groups_of

RECIPE = {
    "clip_seconds": [0.2, 0.2],
    "tasks": {"noise": {"steps": [{"kind": "natural_noise"}, {"kind": "reverberation"}, {"kind": "small_room"}]}},
}


def write_folder(folder, count, speakers=0):
    for number in range(count):
        path = folder / (f"speaker{number % speakers}" if speakers else "") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, voice(number, 0.5), RATE)
    return folder


def names_of(source, split, kind="speech"):
    clips = Source(str(source)).clips(split, kind)
    return {clips.short_name(index) for index in range(len(clips))}


def drawn(place, split, **sources):
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    pairs = corpus_pairs(str(place / "speech"), recipe, RATE, 16, split=split, **sources)
    made = [pairs[index] for index in range(40)]
    parameters = [pair["parameters"] for pair in made]
    return {
        "speech": {pair["recording"] for pair in made},
        "noise": {drawn["natural_noise"]["sound"] for drawn in parameters},
        "room": {drawn["reverberation"]["room"] for drawn in parameters},
        "small_room": {drawn["small_room"]["room"] for drawn in parameters},
    }


@pytest.mark.parametrize("rooms", [True, False])
def test_nothing_that_is_drawn_is_in_two_splits_of_folders(tmp_path, rooms):
    write_folder(tmp_path / "speech", 30, speakers=10)
    sources = {"noise": str(write_folder(tmp_path / "noise", 3))}
    if rooms:
        sources["rooms"] = str(write_folder(tmp_path / "rooms", 12))
    parts = {split: drawn(tmp_path, split, **sources) for split in SPLITS}
    for what in ("speech", "noise", "room", "small_room"):
        found = [parts[split][what] for split in SPLITS]
        assert all(found) and len(set.union(*found)) == sum(map(len, found)), what
    speakers = [{name.split("/")[0] for name in parts[split]["speech"]} for split in SPLITS]
    assert list(map(len, speakers)) == [8, 1, 1]


def test_the_splits_of_folders_do_not_depend_on_what_else_is_there(tmp_path):
    write_folder(tmp_path, 100)
    before = {split: names_of(tmp_path, split) for split in SPLITS}
    assert {split: len(names) for split, names in before.items()} == {"train": 80, "valid": 10, "test": 10}
    write_folder(tmp_path, 104)
    after = names_of(tmp_path, "train")
    assert len(before["train"] - after) <= 2  # of the four that came, at most two are held out in others' stead


def test_recordings_of_one_speaker_stay_together(tmp_path):
    write_folder(tmp_path, 12)
    rows = [f"{number}.wav\tspeaker {number // 3}" for number in range(12)]
    (tmp_path / "MANIFEST.tsv").write_text("\n".join(["path\tspeaker", *rows]) + "\n")
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        numbers = sorted(int(name.split(".")[0]) // 3 for name in names_of(tmp_path, split))
        assert len(numbers) == count and all(numbers.count(number) == 3 for number in numbers)


def test_one_folder_of_all_is_no_speaker(tmp_path):
    write_folder(tmp_path / "all" / "of" / "them", 5)
    assert groups_of(find_clips(tmp_path))[1] == "recording"


def test_too_few_to_hold_out_is_said(tmp_path):
    write_folder(tmp_path / "speech", 12)
    write_folder(tmp_path / "noise", 2)
    with pytest.raises(ValueError, match="noise of .*noise: 2 cannot be split among train, valid, test; add"):
        drawn(tmp_path, "train", noise=str(tmp_path / "noise"))


def test_every_split_has_something_and_one_in_ten_is_held_out():
    for count in (3, 4, 11, 30):
        splits = assign_splits([f"speaker {number}" for number in range(count)])
        sizes = {split: int((splits == split).sum()) for split in SPLITS}
        assert sizes["valid"] == sizes["test"] == -(-count // 10) and sum(sizes.values()) == count


def test_splits_of_a_manifest_are_kept_to(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    assert names_of(corpus, "valid") == {f"speech/valid{number}.flac" for number in range(6)}
    assert names_of(corpus, "train", "noise") == {"noise/train.flac"}
    with pytest.raises(ValueError, match="has splits train, valid but no 'test'; add it"):
        names_of(corpus, "test")
    rows = (corpus / "MANIFEST.tsv").read_text().splitlines()
    (corpus / "MANIFEST.tsv").write_text("\n".join([*rows, rows[1].replace("\ttrain\t", "\tvalid\t")]) + "\n")
    with pytest.raises(ValueError, match=r"train0\.flac is in more than one split"):
        names_of(corpus, "train")


def test_splits_of_a_data_set_are_kept_to_and_others_are_made(tmp_path):
    rows = [{"audio": {"bytes": b"RIFF", "path": f"{number}.wav"}, "speaker_id": number // 2} for number in range(20)]
    parts = {"train": Dataset.from_list(rows[:15]), "validation": Dataset.from_list(rows[15:])}
    DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert names_of(tmp_path / "two", "valid") == {f"{number}.wav" for number in range(15, 20)}
    with pytest.raises(ValueError, match="has splits train, validation but no 'test'"):
        names_of(tmp_path / "two", "test")
    Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    parts = [names_of(tmp_path / "one", split) for split in SPLITS]
    assert list(map(len, parts)) == [16, 2, 2] and len(set.union(*parts)) == 20
    assert len({int(name.split(".")[0]) // 2 for name in parts[1]}) == 1  # one speaker's two


def test_simulated_rooms_of_two_splits_differ(tmp_path):
    rng = np.random.default_rng
    train, valid = (SimulatedRooms(count=4, seed=seed) for seed in (0, 1))
    responses = [rooms(8000, rng(number))[0] for rooms in (train, valid) for number in range(8)]
    assert not any(np.array_equal(one, other) for one in responses[:8] for other in responses[8:])


def test_pairs_of_recordings_are_trained_on_or_held_out(tmp_path):
    for side in ("noisy", "clean"):
        write_folder(tmp_path / side, 20)
    parts = {part: RecordedPairs(tmp_path, RATE, 16, 1.0, part=part) for part in ("train", "valid", "all")}
    names = {part: {pairs[index]["recording"] for index in range(len(pairs))} for part, pairs in parts.items()}
    assert len(names["valid"]) == 2 and len(names["train"]) == 18
    assert names["valid"] | names["train"] == names["all"]
    (tmp_path / "one" / "noisy").mkdir(parents=True)
    (tmp_path / "one" / "clean").mkdir()
    for side in ("noisy", "clean"):
        soundfile.write(tmp_path / "one" / side / "a.wav", voice(0, 0.5), RATE)
    with pytest.raises(ValueError, match="one pair cannot be both trained on and held out"):
        RecordedPairs(tmp_path / "one", RATE, 16, 1.0, part="train")
