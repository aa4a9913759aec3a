"""Tokens in numbered shards: the same whoever makes them, resumed, and refused when they are others'."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow
import pytest
import soundfile
import torch
import yaml
from datasets import Audio, Dataset, load_dataset
from typer.testing import CliRunner

from command_dacse.cli import app
from tests.tiny import tiny_codec
from tests.tiny_corpus import RATE, voice
from tests.training.tiny_tokens import RECIPE, TASKS, make_tokens, write_place
from training_dacse.clips.corpus import corpus_pairs
from training_dacse.tokens.cache import TokenCache
from training_dacse.tokens.encode import codec_fingerprints, encode_pairs, find_processor, first_codebooks
from training_dacse.tokens.rolling import RollingTokens
from training_dacse.tokens.shards import Shards
from training_dacse.tokens.stream import TokenStream
from training_dacse.tokens.tokenize import write_shards

HOP = 256


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def tokens(place):
    return make_tokens(place)


def contents(folder):
    """Name and bytes of every shard."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))}


def test_four_machines_of_two_processes_make_what_one_makes(place, tokens):
    for number in (3, 1, 4, 2):
        make_tokens(place, "four", shard=(number, 4), processes=2 if number == 1 else 1)
    assert contents(place / "four") == contents(tokens)
    names = ["train/tokens-000000-8.arrow", "train/tokens-000001-8.arrow", "train/tokens-000002-8.arrow"]
    assert sorted(contents(tokens)) == [*names, "valid/tokens-000000-6.arrow"]


def test_a_row_is_what_its_pair_is_encoded_to(place, tokens):
    pairs = corpus_pairs(str(place / "corpus"), place / "recipe.yaml", RATE, HOP)
    cache, processor = TokenCache(tokens, "train"), find_processor(place / "codec")
    for index in (0, 9, 23):
        pair = pairs[index]
        (noisy, clean), row = encode_pairs(processor, [pair])[0], cache[index]
        assert torch.equal(row["noisy"], noisy) and torch.equal(row["clean"], clean)
        assert TASKS[row["task"]] == pair["task"] == cache.column("task")[index]
        assert cache.column("recording")[index] == pair["recording"]
        assert json.loads(cache.column("parameters")[index]) == pair["parameters"]
        assert cache.difficulty[index] == pytest.approx((noisy != clean).float().mean().item())
        assert cache.num_frames[index] == 7
    valid = TokenCache(tokens, "valid")
    assert valid.task_numbers.bincount().tolist() == [2, 2, 2]
    assert all("valid" in name for name in valid.column("recording"))
    assert all("train" in name for name in cache.column("recording"))


def test_a_killed_run_goes_on_with_the_shards_it_had(place, tokens):
    command = [sys.executable, "-m", "dacse", "tokenize", str(place / "corpus"), "-o", str(place / "killed")]
    command += ["--recipe", str(place / "recipe.yaml"), "--codec", str(place / "codec"), "--shard-size", "8"]
    command += ["--valid-clips", "2", "--clips"]
    process = subprocess.Popen([*command, "8000"])
    try:
        deadline = time.monotonic() + 120
        while not (place / "killed" / "train" / "tokens-000001-8.arrow").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (place / "killed").rglob("*.arrow")}
    (place / "killed" / "train" / "tokens-000001-8.arrow.9.tmp").write_text("half a shard")
    assert CliRunner().invoke(app, [*command[3:], "24"]).exit_code == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    made = {name: content for name, content in contents(place / "killed").items() if name in contents(tokens)}
    assert made == contents(tokens)


def test_a_cache_that_grows_keeps_its_rows_and_has_none_twice(place):
    small = TokenCache(make_tokens(place, "growing", clips=12), "train")
    rows = [small[index] for index in range(12)]
    (place / "growing" / "train" / "tokens-000001-4.arrow.9.tmp").write_text(
        "half a shard of a process that was killed"
    )
    grown = TokenCache(make_tokens(place, "growing", clips=20), "train")
    assert len(small) == 12 and len(grown) == 20
    assert not list((place / "growing").rglob("*.tmp"))
    assert all(torch.equal(row["noisy"], grown[index]["noisy"]) for index, row in enumerate(rows))


def test_shards_of_something_else_are_refused_and_the_difference_is_named(place, tokens):
    def refused(message, **settings):
        with pytest.raises(ValueError, match=f"{message}.*give another folder or delete this one"):
            make_tokens(place, **settings)

    tiny_codec(seed=1, downsampling_ratios=[8, 8, 4]).save_pretrained(place / "other_codec")
    refused("another codec", codec=str(place / "other_codec"))
    refused("another pairs.seed", seed=9)
    other = place / "other.yaml"
    other.write_text(yaml.safe_dump(RECIPE | {"level_db": [-3, 0]}, sort_keys=False))
    refused("another pairs.recipe", recipe=str(other))
    refused("another shard_size", shard_size=4)
    shutil.copytree(place / "corpus", place / "corpus2")
    path = place / "corpus2" / "speech" / "train3.flac"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate)  # the same name, length and level
    refused("another pairs.speech", corpus=str(place / "corpus2"))
    description = tokens / "train" / "cache.json"
    before = description.read_text()
    description.write_text(before.replace('"scipy": "', '"scipy": "0.'))
    refused("another versions.scipy")
    description.write_text(before)
    make_tokens(place)  # and these are the same


def test_what_is_held_out_is_not_trained_on_under_another_name(place):
    shutil.copytree(place / "corpus", place / "leaky")
    speech = place / "leaky" / "speech"
    shutil.copy(speech / "train0.flac", speech / "valid0.flac")
    with pytest.raises(ValueError, match=r"valid0\.flac is held out, but .*train0\.flac is the same recording"):
        make_tokens(place, "leaky_tokens", corpus=str(place / "leaky"))


def test_a_full_disk_is_said_and_nothing_is_half_written(place, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.ipc.RecordBatchStreamWriter, "write_table", full)
    with pytest.raises(OSError, match="the disk is full; make room and run the same command again"):
        make_tokens(place, "full")
    assert not list((place / "full").rglob("tokens-*"))
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="cache.json: the disk is full; make room"):
        make_tokens(place, "fuller")
    assert not [path for path in (place / "fuller").rglob("*") if path.suffix in (".json", ".tmp")]


def test_a_process_that_is_killed_is_said(monkeypatch):
    def pool(*options):
        return ProcessPoolExecutor(1)

    monkeypatch.setattr("training_dacse.tokens.tokenize.ProcessPoolExecutor", pool)
    monkeypatch.setattr("training_dacse.tokens.tokenize.work", os._exit)
    with pytest.raises(OSError, match="same command again with fewer --processes than 2: finished shards stay"):
        write_shards({}, [1], processes=2)


def test_missing_and_damaged_shards_are_named(place, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    train = tmp_path / "tokens" / "train"
    (train / "tokens-000002-8.arrow").write_bytes(b"broken")
    with pytest.raises(OSError, match=r"tokens-000002-8\.arrow: this shard is damaged .*delete it and make it again"):
        TokenCache(tmp_path / "tokens", "train")[20]
    other = make_tokens(place, "of_another_seed", seed=9)
    shutil.copy(other / "train" / "tokens-000002-8.arrow", train)
    with pytest.raises(ValueError, match="2-8.arrow: this shard was made from something else than cache"):
        TokenCache(tmp_path / "tokens", "train").column("task")
    for number in (2, 1):  # the last one too
        (train / f"tokens-00000{number}-8.arrow").unlink()
        with pytest.raises(FileNotFoundError, match=rf"shards {number}.* are missing; run `dacse tokenize` again"):
            TokenCache(tmp_path / "tokens", "train")
    with pytest.raises(FileNotFoundError, match="no such folder; make tokens with `dacse tokenize"):
        TokenCache(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no tokens \(no cache\.json\)"):
        TokenCache(tmp_path)


def test_rows_are_picked_by_task_and_by_number_and_cut_to_codebooks(tokens):
    cache = TokenCache(tokens, "train")
    assert cache[0]["noisy"].shape == (3, 7)
    assert torch.equal(TokenCache(tokens, "train", num_codebooks=2)[5]["clean"], cache[5]["clean"][:2])
    only = cache.only("clean", "packet_loss")
    assert set(only.column("task")) == {"clean", "packet_loss"}
    assert (only.difficulty == cache.difficulty[cache.task_numbers != 1]).all()
    assert torch.equal(cache.pick([20, 3])[1]["clean"], cache[20]["clean"])
    with pytest.raises(ValueError, match="no clip of task 'dereverb'; there are clean"):
        cache.only("dereverb")


def test_shards_are_read_by_the_datasets_library(tokens):
    files = sorted(map(str, (tokens / "train").glob("*.arrow")))
    rows = load_dataset("arrow", data_files=files, split="train")
    assert len(rows) == 24
    cache = TokenCache(tokens, "train")
    assert rows[9]["noisy"] == cache[9]["noisy"].T.flatten().tolist()


def test_the_first_codebooks_make_a_codec_of_their_own(place, tokens):
    processor = find_processor(place / "codec")
    first = type(processor).from_codec(first_codebooks(processor.audio_tokenizer, 2))
    waveform = voice(0, 0.5)[None]
    assert torch.equal(first.encode(waveform), processor.encode(waveform)[:, :2])
    assert first.decode_codes(first.encode(waveform)).shape == (1, 4096)
    assert processor.num_codebooks == 3
    known = codec_fingerprints(processor.audio_tokenizer)
    assert codec_fingerprints(first.audio_tokenizer) == known[:2] and len(set(known)) == 3
    assert TokenCache(tokens, "train").shards.description["codec_of_first"] == known


def test_a_stream_is_tokenized_file_by_file(place):
    folder = place / "streamed" / "data"
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "train", "validation")):
        paths = sorted((place / "corpus" / "speech").glob("train*.flac" if split == "train" else "valid*.flac"))
        rows = [{"audio": {"bytes": path.read_bytes(), "path": "audio.flac"}} for path in paths[number % 2 :: 2]]
        dataset = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
        dataset.to_parquet(folder / f"{split}-0000{number % 2}-of-00002.parquet")
    made = make_tokens(place, "from_stream", corpus=str(place / "streamed"), stream=True)
    rows = TokenCache(made, "train")
    assert Shards(made, "train").rows() == {0: 3, 1: 3} and len(TokenCache(made, "valid")) == 6
    assert len({tuple(row["clean"].flatten().tolist()) for row in rows}) == 6
    before = contents(made)
    make_tokens(place, "from_stream", corpus=str(place / "streamed"), stream=True)
    assert contents(made) == before


def test_new_clips_are_made_while_a_run_reads_them_and_old_ones_go(place):
    settings = ["--recipe", str(place / "recipe.yaml"), "--codec", str(place / "codec"), "--shard-size", "4"]
    command = [sys.executable, "-m", "dacse", "tokenize", str(place / "corpus"), *settings, "--valid-clips", "1"]
    folder = place / "rolling"
    follower = subprocess.Popen([*command, "-o", str(folder), "--follow", "--ahead", "1"])
    try:
        while not (folder / "train" / "cache.json").exists():
            assert follower.poll() is None
            time.sleep(0.05)
        rolling = RollingTokens(folder, "train", window=3, fresh=2)
        met = []
        for epoch in range(4):
            rows = rolling.of_epoch(epoch)
            assert len(rows) == 12
            met.append([tuple(rows[index]["noisy"].flatten().tolist()) for index in range(12)])
        assert met[0][8:] == met[1][:4] and not set(met[0][:8]) & set(met[1])
        while min(Shards(folder, "train").rows()) < 4:  # the epoch before may still be read
            time.sleep(0.05)
        again = rolling.of_epoch(1)  # a run goes on from a checkpoint: what was removed is made again
        assert [tuple(again[index]["noisy"].flatten().tolist()) for index in range(12)] == met[1]
        fixed = TokenCache(make_tokens(place, "fixed", clips=36, shard_size=4), "train")
        assert [tuple(fixed[index]["noisy"].flatten().tolist()) for index in range(24, 36)] == met[3]
        rolling.end()
        assert follower.wait(60) == 0
    finally:
        follower.kill()


def test_a_shard_that_does_not_come_is_named(place, tokens, monkeypatch):
    monkeypatch.setattr("training_dacse.tokens.rolling.LONGEST_WAIT", 0.3)
    with pytest.raises(TimeoutError, match="shard 3 has not come .*is `dacse tokenize --follow` running"):
        RollingTokens(tokens, "train", window=4, fresh=1).of_epoch(0)
    (tokens / "train" / "reading.json").unlink()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clips": 0}, "clips is 0; it must be at least 1"),
        ({"shard": (5, 4)}, "shard is 5/4; the first of four machines is 1/4"),
        ({"whole": True}, "give max_seconds"),
        ({"recipe": None, "stream": True}, "give a recipe for clean speech"),
        ({"tasks": ["dereverb"]}, "unknown task 'dereverb'; the recipe has clean, white_noise"),
        ({"corpus": "/nowhere"}, "/nowhere"),
        ({"recipe": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"where": "snr_db > 99"}, "no row satisfies"),
        ({"max_seconds": 0.1}, "the context holds 0.10 s"),
    ],
)
def test_what_cannot_be_made_says_why(place, tmp_path, settings, message):
    with pytest.raises((ValueError, OSError)) as error:
        make_tokens(place, str(tmp_path / "refused"), **settings)
    assert message in str(error.value)


def test_the_command_says_what_it_made_and_one_line_of_what_it_could_not(place, tmp_path):
    options = ["--recipe", str(place / "recipe.yaml"), "--codec", str(place / "codec"), "--clips", "8", "--json"]
    options += ["--valid-clips", "1", "--task", "clean", "-o", str(tmp_path / "tokens")]
    result = CliRunner().invoke(app, ["tokenize", str(place / "corpus"), *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "valid": {"shards": 1, "clips": 1, "tokens": 42},
        "train": {"shards": 1, "clips": 8, "tokens": 336},
    }
    result = CliRunner().invoke(app, ["tokenize", str(place / "corpus"), *options, "--shard", "half"])
    assert result.exit_code == 1 and result.stderr.startswith("error: shard is 'half'; give N/M with N from 1 to M")


def test_a_run_s_source_is_the_same_over_a_cache_of_shards(tokens):
    cache = TokenCache(tokens, "train")
    batches = iter(TokenStream(cache, 5, seed=3))
    rows = [place for _ in range(5) for place in next(batches)]
    assert sorted(rows) == sorted(cache.places(range(24)))
    assert torch.equal(cache.storage[rows[0]]["clean"], cache[cache.places(range(24)).index(rows[0])]["clean"])
