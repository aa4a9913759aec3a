"""Tokens and speech on a Hub: trained on from there, streamed from there, and a broken connection is named."""

import os
import subprocess
import sys

import pytest
import torch
from datasets import Audio, Dataset
from huggingface_hub import constants

from tests.loopback_hub import LoopbackHub
from tests.training.tiny_tokens import make_tokens, write_place
from training_dacse.tokens.cache import TokenCache

TOKENS, SPEECH = "org/tokens", "org/speech"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = write_place(tmp_path_factory.mktemp("hub"))
    make_tokens(folder)
    return folder


@pytest.fixture(scope="module")
def hub(place):
    """Tokens as they are uploaded, and speech in two files and a held-out one."""
    with LoopbackHub() as server:
        tokens = place / "tokens"
        files = {str(path.relative_to(tokens)): path.read_bytes() for path in tokens.rglob("*") if path.is_file()}
        server.add(TOKENS, files, kind="dataset")
        paths, speech = sorted((place / "corpus" / "speech").glob("*.flac")), {}
        for split, number, name in (("train", 0, "train"), ("train", 1, "train"), ("valid", 0, "validation")):
            own = [path for path in paths if path.name.startswith(split)][number::2]
            rows = [{"audio": {"bytes": path.read_bytes(), "path": "audio.flac"}} for path in own]
            file = place / "rows.parquet"
            Dataset.from_list(rows).cast_column("audio", Audio(decode=False)).to_parquet(file)
            speech[f"data/{name}-0000{number}-of-00002.parquet"] = file.read_bytes()
        server.add(SPEECH, speech, kind="dataset")
        yield server


def run(hub, home, *argv):
    environment = os.environ | hub.environment(home)
    done = subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_trains_on_tokens_from_the_hub(hub, place, tmp_path):
    script = ["examples/train_stage1.py", f"--tokens={TOKENS}", "--codec", str(place / "codec"), "--max_steps", "2"]
    shape = "hidden_size=32,num_hidden_layers=1,num_attention_heads=4,num_key_value_heads=4,intermediate_size=64"
    script += ["--model_overrides", f"{shape},max_position_embeddings=128", "--report_to", "none"]
    run(hub, tmp_path, *script, "--output", str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()
    fetched = {path.name for path in tmp_path.rglob("snapshots/*/train/*")}
    assert "cache.json" in fetched and len(fetched) == 4


def test_shards_are_fetched_when_they_are_read_and_a_broken_stream_is_named(hub, place, tmp_path, monkeypatch):
    hub.attach(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache, local = TokenCache(TOKENS, "train"), TokenCache(place / "tokens", "train")
    assert len(cache) == 24 and torch.equal(cache[20]["noisy"], local[20]["noisy"])
    fetched = {path.name for path in tmp_path.rglob("snapshots/*/train/*")}
    assert fetched == {"cache.json", "tokens-000002-8.arrow"}  # the shard that was read, no other
    hub.fail("HEAD", "tokens-000001", status=503, times=100)
    with pytest.raises(OSError, match=f"the stream of tokens from {TOKENS} broke at tokens-000001-8.arrow"):
        cache[8]


def test_a_hub_that_is_away_and_tokens_that_are_not_there_are_named(hub, monkeypatch):
    hub.attach(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"org/none: no such folder, nor a data set .*`dacse tokenize`"):
        TokenCache("org/none", "train")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(OSError, match=f"the stream of tokens from {TOKENS} broke at its revision .*started again"):
        TokenCache(TOKENS, "train")


def test_speech_on_the_hub_is_tokenized_as_a_stream(hub, place, tmp_path):
    command = ["-m", "dacse", "tokenize", SPEECH, "-o", str(tmp_path / "tokens"), "--stream", "--valid-clips", "2"]
    command += ["--recipe", str(place / "recipe.yaml"), "--codec", str(place / "codec")]
    run(hub, tmp_path / "home", *command)
    assert TokenCache(tmp_path / "tokens", "train").shards.rows() == {0: 3, 1: 3}
    description = TokenCache(tmp_path / "tokens", "train").shards.description
    assert description["pairs"]["speech"].startswith(f"{SPEECH} at ")
