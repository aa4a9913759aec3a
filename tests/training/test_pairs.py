"""Recordings and the pairs made from them: the same for the same seed, lazily read, refused with a reason."""

import io
import os
import pickle

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, IterableDataset
from huggingface_hub.utils import httpx

from tests.tiny_corpus import RATE, voice, write_corpus
from training_dacse.clips.backgrounds import BackgroundClips
from training_dacse.clips.corpus import corpus_pairs
from training_dacse.clips.digests import Digests
from training_dacse.clips.pairs import DegradedPairs, StreamedPairs
from training_dacse.clips.recipe import Recipe
from training_dacse.clips.rooms import SimulatedRooms
from training_dacse.clips.sources import find_clips

RECIPE = """
clip_seconds: [0.25, 0.25]
tasks:
  clean: {}
  natural_noise: {steps: [{kind: natural_noise, snr_db: [0, 10]}]}
  reverberation: {steps: [{kind: reverberation}, {kind: babble, probability: 0.5}]}
"""
NOISY = {"clip_seconds": [0.1, 0.1], "tasks": {task: {"steps": [{"kind": "white_noise"}]} for task in "abcd"}}
HOP = 256


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def pairs(corpus, recipe):
    return corpus_pairs(str(corpus), recipe, RATE, HOP)


def same(left, right):
    return all(np.array_equal(left[side], right[side]) for side in ("noisy", "clean"))


def wav(seed, seconds=0.3):
    content = io.BytesIO()
    soundfile.write(content, voice(seed, seconds), RATE, format="WAV")
    return content.getvalue()


def dataset_of(names):
    return Dataset.from_list([{"audio": {"bytes": wav(number), "path": name}} for number, name in enumerate(names)])


def test_a_pair_depends_on_seed_and_index_only(corpus, recipe, pairs):
    again, other = corpus_pairs(str(corpus), recipe, RATE, HOP), corpus_pairs(str(corpus), recipe, RATE, HOP, seed=1)
    forward = [pairs[index] for index in range(8)]
    backward = [again[index] for index in reversed(range(8))][::-1]
    assert all(same(left, right) for left, right in zip(forward, backward, strict=True))
    assert not same(forward[0], other[0])
    assert {pair["clean"].shape for pair in forward} == {(1, 7 * HOP)}  # the whole frames of 0.25 s


def test_a_recording_is_cropped_anywhere_and_a_broken_source_is_drawn_anew(tmp_path):
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.linspace(0.1 + 0.2 * number, 0.29 + 0.2 * number, RATE), RATE)
    clean = Recipe({"clip_seconds": [0.25, 0.25], "tasks": {"clean": {}}})
    drawn = DegradedPairs(find_clips(tmp_path), clean, RATE, 1)
    starts = np.array([drawn[index]["clean"][0, 0] for index in range(200)])
    for number in range(4):  # of every recording, crops from its first to its last possible place
        place = (starts[(starts > 0.09 + 0.2 * number) & (starts < 0.3 + 0.2 * number)] - 0.1 - 0.2 * number) / 0.19
        assert place.min() < 0.1 and place.max() > 0.65 and len(np.unique(place)) > 10

    def sometimes_broken(num_samples, sampling_rate, rng):
        if rng.random() < 0.5:
            raise ValueError("noise.wav: silent; remove the file")
        return np.ones((1, num_samples), np.float32), "noise"

    description = {"clip_seconds": [0.25, 0.25], "tasks": {"noise": {"steps": [{"kind": "natural_noise"}]}}}
    noisy = Recipe(description, {"noise": sometimes_broken})
    lenient = DegradedPairs(find_clips(tmp_path), noisy, RATE, 1, skip_broken=True)
    assert len([lenient[index] for index in range(20)]) == 20 and lenient.skipped > 5


def test_without_room_responses_rooms_are_simulated(corpus, recipe, tmp_path):
    rows = (corpus / "MANIFEST.tsv").read_text().splitlines()
    rows = [row.replace("speech/", f"{corpus}/speech/").replace("noise/", f"{corpus}/noise/") for row in rows]
    (tmp_path / "MANIFEST.tsv").write_text("\n".join(row for row in rows if "\trir\t" not in row) + "\n")
    pairs = corpus_pairs(str(tmp_path), recipe, RATE, HOP)
    assert isinstance(pairs.recipe.sources["room"], SimulatedRooms)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("snr_db > 99", "no row satisfies 'snr_db > 99'"),
        ("snr > 3", "cannot be filtered by 'snr > 3' .*; its columns are path, kind"),
        ("snr_db >", "cannot be filtered by 'snr_db >'"),
        ("snr_db > 'a'", "cannot be filtered"),
    ],
)
def test_a_filter_that_leaves_nothing_or_is_none_is_named(corpus, where, message):
    with pytest.raises(ValueError, match=f"MANIFEST.tsv: {message}"):
        find_clips(corpus, where)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a manifest"),
        ("name\na", "a manifest needs a 'path'"),
        ("path,kind\n,x", "row 1 has no"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=f"list.csv: {message}"):
        find_clips(tmp_path / "list.csv")


def test_the_same_clips_come_from_a_folder_and_from_a_data_set(corpus, tmp_path):
    folder = find_clips(corpus / "speech")
    rows = [{"audio": {"bytes": open(path, "rb").read(), "path": path.split("/")[-1]}} for path in folder.files]
    Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    stored = find_clips(tmp_path / "set")
    assert len(stored) == len(folder) == 12
    for index in (0, 11):
        left, right = (clips.crop(index, 0.2, 16000, np.random.default_rng(0)) for clips in (folder, stored))
        np.testing.assert_array_equal(left, right)
    assert Digests().fingerprint(stored) == Digests().fingerprint(folder)


def test_a_data_set_stays_on_disk_and_a_worker_gets_a_handle(tmp_path):
    names = ["audio.wav"] * 200
    dataset_of(names).save_to_disk(tmp_path)
    pairs = DegradedPairs(find_clips(tmp_path), Recipe(NOISY), RATE, 16)
    assert len(pairs.speech) == 200
    handle = pickle.dumps(pairs)
    assert len(handle) < 20_000 < len(wav(0)) * 200
    assert same(pickle.loads(handle)[3], pairs[3])


def test_digests_change_with_contents_names_and_order_and_are_read_once(tmp_path, monkeypatch):
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", voice(number, 0.3), RATE)
    memory = tmp_path / "recordings.parquet"
    first = Digests(memory).fingerprint(find_clips(tmp_path))
    monkeypatch.setattr("training_dacse.clips.digests.open", None, raising=False)  # nothing is read again
    assert Digests(memory).fingerprint(find_clips(tmp_path)) == first
    monkeypatch.undo()
    turned = Digests().fingerprint(find_clips(tmp_path).select([1, 0, 2, 3]))
    samples = voice(2, 0.3)
    samples[len(samples) // 2] += 0.01  # of the same length, in the middle
    before = os.stat(tmp_path / "2.wav")
    soundfile.write(tmp_path / "2.wav", samples, RATE)
    os.utime(tmp_path / "2.wav", ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying tools do
    changed = Digests(memory).fingerprint(find_clips(tmp_path))
    (tmp_path / "3.wav").rename(tmp_path / "5.wav")
    assert len({first, turned, changed, Digests(memory).fingerprint(find_clips(tmp_path))}) == 4


def test_the_order_of_a_manifest_means_nothing(tmp_path):
    pairs = []
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", voice(number, 0.3), RATE)
    for name, order in (("a.csv", [0, 1, 2, 3, 4, 5]), ("b.csv", [5, 2, 0, 1, 4, 3])):
        (tmp_path / name).write_text("\n".join(["path", *(f"{number}.wav" for number in order)]) + "\n")
        pairs.append(DegradedPairs(find_clips(tmp_path / name), Recipe(NOISY), RATE, 16))
    assert pairs[0].describe(Digests()) == pairs[1].describe(Digests())
    assert all(same(pairs[0][index], pairs[1][index]) for index in range(6))


def test_short_background_is_repeated_and_silence_refused(tmp_path):
    soundfile.write(tmp_path / "short.wav", voice(0, 0.2), RATE)
    sound, name = BackgroundClips(find_clips(tmp_path))(RATE, RATE, np.random.default_rng(0))
    assert sound.shape == (1, RATE) and name == "short.wav"
    soundfile.write(tmp_path / "short.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match=r"short\.wav.*silent"):
        BackgroundClips(find_clips(tmp_path))(RATE, RATE, np.random.default_rng(0))


def test_broken_and_silent_recordings_stop_the_run_unless_skipping_was_asked_for(tmp_path):
    soundfile.write(tmp_path / "good.wav", voice(0), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    clips, recipe = find_clips(tmp_path), Recipe({"clip_seconds": [0.2, 0.2], "tasks": {"clean": {}}})
    strict = DegradedPairs(clips, recipe, RATE, HOP)
    with pytest.raises(ValueError, match=r"silent\.wav.*remove"):
        [strict[index] for index in range(20)]
    lenient = DegradedPairs(clips, recipe, RATE, HOP, skip_broken=True)
    assert len([lenient[index] for index in range(20)]) == 20
    assert lenient.skipped > 0
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(OSError, match=r"text\.wav: cannot be read as audio .*remove or convert"):
        DegradedPairs(find_clips(tmp_path), recipe, RATE, HOP)
    assert len(DegradedPairs(find_clips(tmp_path), recipe, RATE, HOP, skip_broken=True).speech) == 2


def test_a_recording_that_vanishes_is_named_whatever_is_skipped(tmp_path):
    soundfile.write(tmp_path / "here.wav", voice(0), RATE)
    pairs = DegradedPairs(find_clips(tmp_path), Recipe(NOISY), RATE, HOP, skip_broken=True)
    (tmp_path / "here.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"here\.wav: this recording has vanished .*put it back"):
        pairs[0]


def test_clips_are_cut_to_the_context_or_refused(corpus, recipe):
    assert corpus_pairs(str(corpus), recipe, RATE, HOP, max_seconds=0.3)[0]["clean"].shape == (1, 7 * HOP)
    whole = corpus_pairs(str(corpus), recipe, RATE, HOP, max_seconds=11 * HOP / RATE, whole=True)
    assert {whole[index]["clean"].shape[1] for index in range(4)} == {11 * HOP}
    assert whole.window_frames == 11
    with pytest.raises(ValueError, match="context holds 0.10 s; lower clip_seconds"):
        corpus_pairs(str(corpus), recipe, RATE, HOP, max_seconds=0.1)


def streamed(names, num_shards=1, description=NOISY, **options) -> StreamedPairs:
    rows = dataset_of(names).cast_column("audio", Audio(decode=False))
    stream: IterableDataset = rows.to_iterable_dataset(num_shards=num_shards)
    return StreamedPairs(stream, "v1", Recipe(description), RATE, 16, **options)


@pytest.mark.parametrize("names", [["audio.wav"] * 40, [f"{number}.wav" for number in range(40)], [None] * 40])
def test_recordings_of_a_stream_are_drawn_by_their_places_not_their_names(names):
    pairs = list(streamed(names).shard(0))
    assert {pair["task"] for pair in pairs} == set("abcd")
    assert len({pair["parameters"]["white_noise"]["snr_db"] for pair in pairs}) == 40


def test_files_of_a_stream_are_its_shards_and_meet_new_draws_every_turn():
    pairs = streamed([f"{number}.wav" for number in range(12)], num_shards=3)
    shards = [list(pairs.shard(number)) for number in range(6)]
    names = [[pair["recording"] for pair in shard] for shard in shards]
    assert sorted(sum(names[:3], [])) == sorted(f"{number}.wav" for number in range(12))
    assert names[:3] == names[3:]
    assert all(same(*pair) for pair in zip(shards[1], pairs.shard(1), strict=True))
    assert not any(same(*pair) for pair in zip(shards[1], shards[4], strict=True))


def test_a_stream_leaves_short_recordings_out_and_skips_broken_ones_only_when_asked():
    contents = [wav(0, 0.05), wav(1), b"not audio"]
    rows = Dataset.from_list([{"audio": {"bytes": content, "path": f"{i}.wav"}} for i, content in enumerate(contents)])
    stream = rows.cast_column("audio", Audio(decode=False)).to_iterable_dataset()
    with pytest.raises(OSError, match=r"2\.wav"):
        list(StreamedPairs(stream, "v1", Recipe(NOISY), RATE, 16).shard(0))
    assert len(list(StreamedPairs(stream, "v1", Recipe(NOISY), RATE, 16, skip_broken=True).shard(0))) == 1


@pytest.mark.parametrize("error", [ConnectionError, httpx.ReadError])
def test_a_stream_that_breaks_is_named_with_the_remedy(error):
    def rows():
        yield {"audio": {"bytes": wav(0), "path": "a.wav"}}
        raise error("the server went away")

    pairs = StreamedPairs(IterableDataset.from_generator(rows), "v1", Recipe(NOISY), RATE, 16)
    with pytest.raises(OSError, match="broke in file 1 of 1, at row 1 .*went away.*run the same command again"):
        list(pairs.shard(0))
