"""Recordings, pairs, the token cache and batches: reproducible, resumable, and refused with a reason."""

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, IterableDataset

from tests.tiny import tiny_codec, tiny_config
from tests.tiny_corpus import RATE, voice, write_corpus
from training_dacse.tokens.collate import TokenCollator
from training_dacse.tokens.cache import TokenCache, TokensOnTheFly, build_token_cache, stream_tokens
from training_dacse.clips.pairs import DegradedPairs, PairedFiles, corpus_pairs
from training_dacse.clips.recipe import Recipe
from training_dacse.clips.rooms import SimulatedRooms
from training_dacse.clips.sources import BackgroundClips, find_clips

RECIPE = """
clip_seconds: [0.25, 0.25]
tasks:
  clean: {}
  natural_noise: {steps: [{kind: natural_noise, snr_db: [0, 10]}]}
  reverberation: {steps: [{kind: reverberation}, {kind: babble, probability: 0.5}]}
"""
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
def codec(tmp_path_factory):
    path = tmp_path_factory.mktemp("codec")
    tiny_codec(downsampling_ratios=[8, 8, 4]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pairs(corpus, recipe):
    return corpus_pairs(str(corpus), recipe, RATE, HOP)


def same(left, right):
    return all(np.array_equal(left[side], right[side]) for side in ("noisy", "clean"))


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


def test_splits_and_filters_of_a_manifest_are_kept(corpus):
    clips = find_clips(corpus, "split == 'valid' and kind == 'speech'")
    assert len(clips) == 6 and all("valid" in clips.name(index) for index in range(6))
    with pytest.raises(ValueError, match="no row satisfies"):
        find_clips(corpus, "snr_db > 99")


def test_background_of_its_own_is_of_the_split_as_well(corpus, recipe, tmp_path):
    other = write_corpus(tmp_path / "other")
    own = {"noise": str(other), "rooms": str(other)}
    for split in ("train", "valid"):
        sources = corpus_pairs(str(corpus), recipe, RATE, HOP, split=split, **own).recipe.sources
        for source, kind in (("noise", "noise"), ("room", "rir")):
            clips = sources[source].clips
            assert [clips.name(index) for index in range(len(clips))] == [str(other / kind / f"{split}.flac")]


def test_without_room_responses_rooms_are_simulated(corpus, recipe, tmp_path):
    rows = (corpus / "MANIFEST.tsv").read_text().splitlines()
    rows = [row.replace("speech/", f"{corpus}/speech/").replace("noise/", f"{corpus}/noise/") for row in rows]
    (tmp_path / "MANIFEST.tsv").write_text("\n".join(row for row in rows if "\trir\t" not in row) + "\n")
    pairs = corpus_pairs(str(tmp_path), recipe, RATE, HOP)
    assert isinstance(pairs.recipe.sources["room"], SimulatedRooms)


def test_the_same_clips_come_from_a_folder_and_from_a_data_set(corpus, tmp_path):
    folder = find_clips(corpus / "speech")
    rows = [{"audio": {"bytes": path.read_bytes(), "path": path.name}} for path in folder.files]
    Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    stored = find_clips(tmp_path / "set")
    assert len(stored) == len(folder) == 12
    for index in (0, 11):
        left, right = (clips.crop(index, 0.2, 16000, np.random.default_rng(0)) for clips in (folder, stored))
        np.testing.assert_array_equal(left, right)
    assert stored.fingerprint == folder.fingerprint


def test_short_background_is_repeated_and_silence_refused(tmp_path):
    soundfile.write(tmp_path / "short.wav", voice(0, 0.2), RATE)
    sound, name = BackgroundClips(find_clips(tmp_path))(RATE, RATE, np.random.default_rng(0))
    assert sound.shape == (1, RATE) and name.endswith("short.wav")
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
    with pytest.raises(OSError, match=r"text\.wav"):
        DegradedPairs(find_clips(tmp_path), recipe, RATE, HOP)
    assert len(DegradedPairs(find_clips(tmp_path), recipe, RATE, HOP, skip_broken=True).speech) == 2


def test_clips_are_cut_to_the_context_or_refused(corpus, recipe):
    assert corpus_pairs(str(corpus), recipe, RATE, HOP, max_seconds=0.3)[0]["clean"].shape == (1, 7 * HOP)
    whole = corpus_pairs(str(corpus), recipe, RATE, HOP, max_seconds=11 * HOP / RATE, whole=True)
    assert {whole[index]["clean"].shape[1] for index in range(4)} == {11 * HOP}
    with pytest.raises(ValueError, match="context holds 0.10 s; lower clip_seconds"):
        corpus_pairs(str(corpus), recipe, RATE, HOP, max_seconds=0.1)


def test_a_killed_cache_goes_on_and_equals_an_uninterrupted_one(pairs, codec, tmp_path):
    whole = build_token_cache(tmp_path / "whole", pairs, codec, 12, shard_size=4)
    build_token_cache(tmp_path / "cut", pairs, codec, 8, shard_size=4)
    kept = next((tmp_path / "cut").glob("*.parquet")).stat().st_mtime_ns
    (tmp_path / "cut" / "tokens-00000008-00000012.tmp").write_text("half a shard")
    resumed = build_token_cache(tmp_path / "cut", pairs, codec, 12, shard_size=4)
    assert next((tmp_path / "cut").glob("*.parquet")).stat().st_mtime_ns == kept
    assert len(resumed) == len(whole) == 12
    assert resumed.rows.to_list() == whole.rows.to_list()
    assert set(resumed.rows["task"]) == set(pairs.tasks)
    direct = TokensOnTheFly(pairs, tiny_codec(downsampling_ratios=[8, 8, 4]), 12)
    assert all(torch.equal(direct[3][side], whole[3][side]) for side in ("noisy", "clean"))


def test_several_processes_write_the_same_cache(pairs, codec, tmp_path):
    one = build_token_cache(tmp_path / "one", pairs, codec, 6, shard_size=3)
    two = build_token_cache(tmp_path / "two", pairs, codec, 6, shard_size=3, num_processes=2)
    assert one.rows.to_list() == two.rows.to_list()


def test_a_cache_from_another_codec_or_recipe_is_refused(pairs, corpus, recipe, codec, tmp_path):
    build_token_cache(tmp_path / "cache", pairs, codec, 2)
    tiny_codec(seed=1, downsampling_ratios=[8, 8, 4]).save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="another codec .*delete this one"):
        build_token_cache(tmp_path / "cache", pairs, tmp_path / "codec", 2)
    with pytest.raises(ValueError, match="another pairs"):
        build_token_cache(tmp_path / "cache", corpus_pairs(str(corpus), recipe, RATE, HOP, seed=9), codec, 2)
    noise = str(corpus / "noise")  # both splits' recordings
    with pytest.raises(ValueError, match="another pairs"):
        build_token_cache(tmp_path / "cache", corpus_pairs(str(corpus), recipe, RATE, HOP, noise=noise), codec, 2)


def test_a_cache_gives_fewer_codebooks_and_single_tasks(pairs, codec, tmp_path):
    cache = build_token_cache(tmp_path, pairs, codec, 12)
    assert cache[0]["noisy"].shape == (3, 7)
    assert torch.equal(TokenCache(tmp_path, num_codebooks=2)[5]["clean"], cache[5]["clean"][:2])
    assert set(cache.only("clean").rows["task"]) == {"clean"}
    with pytest.raises(ValueError, match="no clip of task 'dereverb'"):
        cache.only("dereverb")
    parameters = [json.loads(row) for row in cache.rows["parameters"]]
    drawn = [row["natural_noise"]["snr_db"] for row in parameters if "natural_noise" in row]
    assert drawn and all(0 <= snr <= 10 for snr in drawn)


def test_a_stream_sharded_by_rank_gives_every_clip_once(corpus, pairs, tmp_path):
    files = sorted((corpus / "speech").glob("train*.flac"))
    rows = Dataset.from_list([{"audio": {"bytes": path.read_bytes(), "path": path.name}} for path in files])
    codec = tiny_codec(downsampling_ratios=[8, 8, 4])

    def clean(stream: IterableDataset):
        return [tuple(row["clean"].flatten().tolist()) for row in stream_tokens(stream, pairs, codec)]

    whole = clean(rows.to_iterable_dataset(num_shards=6))
    ranks = [clean(rows.to_iterable_dataset(num_shards=6).shard(2, rank)) for rank in range(2)]
    assert len(whole) == len(set(whole)) == 6
    assert sorted(ranks[0] + ranks[1]) == sorted(whole) and not set(ranks[0]) & set(ranks[1])


def test_recordings_of_a_stream_that_have_no_name_are_drawn_by_what_they_hold(corpus, pairs):
    files = sorted((corpus / "speech").glob("train*.flac"))
    rows = Dataset.from_list([{"audio": {"bytes": path.read_bytes(), "path": None}} for path in files])
    codec = tiny_codec(downsampling_ratios=[8, 8, 4])
    clean = [tuple(row["clean"].flatten().tolist()) for row in stream_tokens(rows.to_iterable_dataset(), pairs, codec)]
    assert len(clean) == len(set(clean)) == 6


def test_a_stream_leaves_short_recordings_out_and_skips_broken_ones_only_when_asked(corpus, pairs, recipe):
    good = next((corpus / "speech").glob("train*.flac"))
    short = io.BytesIO()
    soundfile.write(short, voice(0, 0.1), RATE, format="FLAC")
    contents = {"short.flac": short.getvalue(), "good.flac": good.read_bytes(), "text.flac": b"not audio"}
    rows = Dataset.from_list([{"audio": {"bytes": data, "path": name}} for name, data in contents.items()])
    codec = tiny_codec(downsampling_ratios=[8, 8, 4])
    with pytest.raises(OSError, match=r"text\.flac"):
        list(stream_tokens(rows.to_iterable_dataset(), pairs, codec))
    lenient = corpus_pairs(str(corpus), recipe, RATE, HOP, skip_broken=True)
    assert len(list(stream_tokens(rows.to_iterable_dataset(), lenient, codec))) == 1


@pytest.fixture
def paired(tmp_path):
    for name in ("a", "b"):
        for side in ("noisy", "clean"):
            (tmp_path / side).mkdir(exist_ok=True)
            soundfile.write(tmp_path / side / f"{name}.wav", voice(0, 0.5), RATE)
    return tmp_path


def test_pairs_come_from_folders_or_names_and_are_cut_to_the_context(paired, tmp_path):
    clips = PairedFiles(paired, RATE, HOP, max_seconds=0.2)
    assert [clips[index]["clean"].shape[-1] for index in range(len(clips))] == 2 * [6 * HOP, 6 * HOP, 4 * HOP]
    whole = PairedFiles(paired, RATE, HOP, max_seconds=0.2, whole=True)
    assert [whole[index]["clean"].shape[-1] for index in range(len(whole))] == 6 * [6 * HOP]
    samples = soundfile.read(paired / "clean" / "a.wav", dtype="float32")[0]
    np.testing.assert_array_equal(whole[2]["clean"][0, :1280], samples[10 * HOP : 10 * HOP + 1280])
    named = tmp_path / "named"
    named.mkdir()
    for side in ("noisy", "clean"):
        soundfile.write(named / f"x_{side}_1.wav", voice(1, 0.5), RATE)
    assert len(PairedFiles(named, RATE, HOP, max_seconds=1.0)) == 1


def test_a_pair_of_whole_windows_has_no_empty_clip_behind_them(tmp_path):
    rate, hop, frames = 44100, 512, 26
    assert frames * hop / rate * rate / hop > frames  # in floating point
    for side in ("noisy", "clean"):
        soundfile.write(tmp_path / f"{side}.wav", voice(0, frames * hop / rate, rate), rate)
    clips = PairedFiles(tmp_path, rate, hop, max_seconds=13 * hop / rate)
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
        PairedFiles(paired, RATE, HOP, max_seconds=1.0)


def test_bad_pairs_stop_the_run_unless_skipping_was_asked_for(paired):
    late = np.append(np.zeros(RATE // 4), voice(0, 0.25)).astype(np.float32)
    soundfile.write(paired / "clean" / "b.wav", late, RATE)  # silent at first only
    soundfile.write(paired / "clean" / "a.wav", np.zeros(RATE // 2), RATE)
    with pytest.raises(ValueError, match=r"a\.wav: the clean recording is silent"):
        PairedFiles(paired, RATE, HOP, max_seconds=0.2)
    (paired / "noisy" / "a.wav").write_text("not audio")
    with pytest.raises(OSError, match=r"noisy/a\.wav: cannot be read .*remove or convert"):
        PairedFiles(paired, RATE, HOP, max_seconds=0.2)
    lenient = PairedFiles(paired, RATE, HOP, max_seconds=0.2, skip_broken=True)
    assert lenient.skipped == 1 and len(lenient) == 3
    (paired / "noisy" / "b.wav").write_text("not audio")
    with pytest.raises(ValueError, match="none of 2 pairs can be used"):
        PairedFiles(paired, RATE, HOP, max_seconds=0.2, skip_broken=True)


def test_a_batch_is_bos_noisy_start_clean_eos_with_the_prompt_masked():
    config = tiny_config()
    examples = [
        {"noisy": torch.randint(16, (3, frames)), "clean": torch.randint(16, (3, frames)), "task": frames % 2}
        for frames in (2, 4)
    ]
    expected = []
    for example in examples:  # by hand, token by token
        ids = [config.bos_token_id]
        for side, last in (("noisy", config.start_clean_token_id), ("clean", config.eos_token_id)):
            for frame in range(example[side].shape[1]):
                ids += [5 + 16 * book + int(example[side][book, frame]) for book in range(3)]
            ids.append(last)
        expected.append(ids)
    for side in ("right", "left"):
        batch = TokenCollator(config, padding_side=side)(examples)
        for row, ids in enumerate(expected):
            masked = len(ids) // 2 + 1
            fill = batch["input_ids"].shape[1] - len(ids)
            before, after = (0, fill) if side == "right" else (fill, 0)
            assert batch["input_ids"][row].tolist() == before * [1] + ids + after * [1]
            assert batch["labels"][row].tolist() == (before + masked) * [-100] + ids[masked:] + after * [-100]
            assert batch["attention_mask"][row].tolist() == before * [0] + len(ids) * [1] + after * [0]
        assert batch["task"].tolist() == [0, 0]
    assert "attention_mask" not in TokenCollator(config)(examples[:1])
