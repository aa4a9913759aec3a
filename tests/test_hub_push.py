"""A folder becomes one commit of a repository, or nothing changes there; against a Hub on loopback."""

import io
import json
import logging
import pickle
import random
import zipfile

import huggingface_hub.constants
import pytest

import tests.loopback_xet  # noqa: F401  (its routes)
from hub_upload import push as room
from hub_upload.push import push
from hub_upload.remote import ADAPTER, MANIFEST_NAME, MODEL, SPACE
from tests.loopback_hub import READ_TOKEN, TOKEN, LoopbackHub

CARD = b"---\ntags: [dacse]\n---\nA card.\n"
WEIGHTS = "model-00001-of-00001.safetensors"


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as server:
        server.attach(monkeypatch)
        yield server


def writes(**files: bytes):
    """Stands for staging a model: writes `files` (README is README.md, weights a shard)."""
    names = {"README": "README.md", "weights": WEIGHTS}

    def prepare(folder):
        for name, content in files.items():
            path = folder / names.get(name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return prepare


def test_a_folder_is_published_as_one_commit(hub):
    done = push(
        "user/model", MODEL, writes(README=CARD, weights=b"w" * 1000, **{"audio_tokenizer/config.json": b"{}"})
    )
    assert hub.log("user/model") == ["initial commit", "Publish with dacse"]
    assert hub.files("user/model")[WEIGHTS] == b"w" * 1000
    files = {"README.md": len(CARD), "audio_tokenizer/config.json": 2, WEIGHTS: 1000}
    assert [file for file in done.files if file[0] != MANIFEST_NAME] == sorted(files.items())
    manifest = json.loads(hub.files("user/model")[MANIFEST_NAME])
    assert manifest == {"kind": "model", "files": sorted([MANIFEST_NAME, *files])}
    assert done.removed == done.kept == []
    assert done.url.startswith(f"{hub.url}/user/model/commit/")
    assert not hub.repositories["model", "user/model"].private


def test_a_new_repository_is_private_on_demand_and_of_its_type(hub):
    push("org/space", SPACE, writes(README=CARD, **{"app.py": b""}), private=True)
    assert hub.repositories["space", "org/space"].private


def test_publishing_the_same_again_makes_no_commit(hub):
    for _ in range(2):
        push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    assert len(hub.log("user/model")) == 2


def test_a_new_version_takes_all_that_the_old_one_brought_and_leaves_and_names_what_was_added_by_hand(hub):
    old = [
        "model-00002-of-00002.safetensors",
        "samples/a.flac",
        "evaluation/rain/summary.json",
        ".eval_results/rain.yaml",
    ]
    push("user/model", MODEL, writes(README=CARD, weights=b"w", **dict.fromkeys(old, b"old")))
    by_hand = {"picture.png": b"p", "adapters/a/adapter_model.safetensors": b"a", "samples/mine.flac": b"m"}
    hub.add("user/model", by_hand)
    done = push("user/model", MODEL, writes(README=CARD, weights=b"v"))
    assert (done.removed, done.kept) == (sorted(old), sorted(by_hand))
    assert set(hub.files("user/model")) == {".gitattributes", MANIFEST_NAME, "README.md", WEIGHTS, *by_hand}
    assert len(hub.log("user/model")) == 4
    assert push("user/model", MODEL, writes(README=CARD, weights=b"v")).kept == sorted(by_hand)
    assert len(hub.log("user/model")) == 4


def test_what_was_added_by_hand_is_not_overwritten_but_by_force(hub):
    push("user/model", MODEL, writes(README=CARD))
    hub.add("user/model", {"samples/a.flac": b"mine"})
    new = writes(README=CARD, weights=b"v", **{"samples/a.flac": b"new"})
    before = hub.state()
    with pytest.raises(FileExistsError, match=r"samples/a\.flac in user/model .* --force"):
        push("user/model", MODEL, new)
    assert hub.state() == before
    assert push("user/model", MODEL, new, force=True).kept == []
    assert push("user/model", MODEL, new).kept == []  # now it is of dacse
    assert hub.files("user/model")["samples/a.flac"] == b"new"


def test_what_was_removed_by_hand_is_not_missed(hub):
    push("user/model", MODEL, writes(README=CARD, **{"samples/a.flac": b"a"}))
    del hub.files("user/model")["samples/a.flac"]
    assert push("user/model", MODEL, writes(README=CARD, weights=b"v")).removed == []


def test_a_damaged_manifest_is_named(hub):
    push("user/model", MODEL, writes(README=CARD))
    hub.add("user/model", {MANIFEST_NAME: b"[]"})
    with pytest.raises(ValueError, match=r"the manifest \.dacse\.json .* is damaged"):
        push("user/model", MODEL, lambda folder: pytest.fail("prepared"))


def test_foreign_content_is_refused_before_anything_is_prepared(hub):
    hub.add("user/model", {"README.md": b"# Mine", "config.json": b"{}"})
    before = hub.state()
    with pytest.raises(FileExistsError, match=r"user/model exists .*config\.json.* --force"):
        push("user/model", MODEL, lambda folder: pytest.fail("prepared"))
    assert hub.state() == before


def test_force_replaces_foreign_content(hub):
    hub.add("user/model", {"README.md": b"# Mine", "pytorch_model.bin": b"b"})
    push("user/model", MODEL, writes(README=CARD), force=True)
    assert set(hub.files("user/model")) == {".gitattributes", MANIFEST_NAME, "README.md"}


def test_an_adapter_does_not_land_on_a_model(hub):
    push("user/model", MODEL, writes(README=CARD))
    with pytest.raises(FileExistsError, match="holds something else"):
        push("user/model", ADAPTER, lambda folder: pytest.fail("prepared"))


def test_a_repository_that_appears_while_preparing_is_not_touched(hub):
    def prepare(folder):
        hub.add("user/model", {"README.md": b"# Mine"})
        writes(README=CARD)(folder)

    with pytest.raises(FileExistsError, match="user/model exists"):
        push("user/model", MODEL, prepare)
    assert hub.files("user/model")["README.md"] == b"# Mine"


@pytest.mark.parametrize("repo_id", ["model", "user/", "user/a b", "user/deep/model"])
def test_a_repository_without_owner_or_with_a_bad_name_is_refused(hub, repo_id):
    with pytest.raises(ValueError, match=repo_id):
        push(repo_id, MODEL, lambda folder: pytest.fail("prepared"))
    assert hub.requests == []


def test_a_dry_run_lists_the_files_and_asks_the_hub_nothing(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = push("user/model", MODEL, writes(README=CARD), dry_run=True)
    (manifest, _), card = done.files
    assert (manifest, card) == (MANIFEST_NAME, ("README.md", len(CARD)))
    assert done.num_bytes > len(CARD) and done.url is None
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "no Hugging Face token found; run `hf auth login`"),
        ("hf_never given", "stray characters"),
        ('"hf_quoted"', "stray characters"),
        ("hf_unknown", "does not accept the token"),
        (READ_TOKEN, "may only read"),
    ],
)
def test_a_missing_malformed_wrong_or_reading_token_is_refused_before_anything_is_prepared(
    hub, monkeypatch, tmp_path, token, message
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=message):
        push("user/model", MODEL, lambda folder: pytest.fail("prepared"))
    assert hub.state() == {}


def test_another_ones_namespace_is_refused(hub):
    with pytest.raises(PermissionError, match="rights to write under the namespace"):
        push("stranger/model", MODEL, writes(README=CARD))
    assert hub.state() == {}


def zipped_pickle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


def test_variables_of_a_space_are_set_beside_those_it_has(hub):
    push("org/space", SPACE, writes(README=CARD), variables={"DACSE_MODELS": "org/a"})
    space = hub.repositories["space", "org/space"]
    assert space.variables == {"DACSE_MODELS": "org/a"}
    space.variables["DACSE_MAX_MINUTES"] = "2"
    push("org/space", SPACE, writes(README=CARD), variables={"DACSE_MODELS": "org/b"})
    assert space.variables == {"DACSE_MODELS": "org/b", "DACSE_MAX_MINUTES": "2"}


@pytest.mark.parametrize("step", [("POST", "/commit/"), ("POST", "/variables")])
def test_variables_are_as_they_were_after_a_failure(hub, step):
    push("org/space", SPACE, writes(README=CARD), variables={"A": "1"})
    hub.fail(*step, status=403, times=1)
    with pytest.raises(PermissionError):
        push("org/space", SPACE, writes(README=b"new"), variables={"A": "2", "B": "2"})
    assert hub.repositories["space", "org/space"].variables == {"A": "1"}
    hub.fail(*step, status=403, times=1)
    with pytest.raises(PermissionError):
        push("org/new", SPACE, writes(README=CARD), variables={"A": "2"})
    assert ("space", "org/new") not in hub.repositories


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), zipped_pickle()], ids=["pickle", "torch.save"])
def test_pickles_are_refused_whatever_their_name(hub, content):
    with pytest.raises(ValueError, match=r"extra\.dat is a pickle"):
        push("user/model", MODEL, writes(README=CARD, **{"extra.dat": content}))
    assert hub.state() == {}


STEPS = {
    "making the repository": ("POST", "/api/repos/create"),
    "asking how to upload": ("POST", "/preupload/"),
    "asking where to upload": ("POST", "/objects/batch"),
    "uploading a large file": ("PUT", "/_large/"),
    "committing": ("POST", "/commit/"),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_that_lasts_leaves_the_remote_as_it_was(hub, step, existing):
    if existing:
        push("user/model", MODEL, writes(README=CARD, weights=b"old"))
    before = hub.state()
    hub.fail(*STEPS[step], status=503, times=100)
    if existing and step == "making the repository":
        push("user/model", MODEL, writes(README=CARD, weights=b"new"))  # nothing to be made
        return
    with pytest.raises(ConnectionError, match=r"publishing user/model: the Hub answered 503 \(broken\); nothing was"):
        push("user/model", MODEL, writes(README=CARD, weights=b"new"))
    assert hub.state() == before
    hub.faults.clear()
    push("user/model", MODEL, writes(README=CARD, weights=b"new"))
    assert hub.files("user/model")[WEIGHTS] == b"new"


@pytest.mark.parametrize("status", [500, 503, 0], ids=["500", "503", "connection lost"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_that_passes_is_tried_again(hub, step, status):
    hub.fail(*STEPS[step], status=status, times=2)
    push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    assert hub.log("user/model") == ["initial commit", "Publish with dacse"]


def test_a_commit_whose_answer_was_lost_is_not_repeated(hub):
    hub.fail("POST", "/commit/", status=504, after=True)
    push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    assert hub.log("user/model") == ["initial commit", "Publish with dacse"]


def test_a_file_that_was_uploaded_before_the_failure_is_not_uploaded_again(hub):
    push("user/model", MODEL, writes(README=CARD))
    hub.fail("POST", "/commit/", status=503, times=100)
    with pytest.raises(ConnectionError):
        push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    hub.faults.clear()
    hub.requests.clear()
    push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    assert not [path for method, path in hub.requests if method == "PUT"]


@pytest.fixture
def xet(hub, monkeypatch):
    """The Hub with the storage that `hf_xet`, the real one, uploads to."""
    pytest.importorskip("hf_xet", reason="huggingface_hub brings it on most machines")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    return hub


def test_large_files_go_through_xet_where_the_client_has_it(xet):
    weights = random.Random(0).randbytes(5000)
    for _ in range(2):
        push("user/model", MODEL, writes(README=CARD, weights=weights))
    assert xet.files("user/model")[WEIGHTS] == weights
    assert xet.log("user/model") == ["initial commit", "Publish with dacse"]
    paths = [path for _, path in xet.requests]
    assert sum(path.startswith("/v1/xorbs/") for path in paths) == 1 and "/v1/shards" in paths
    assert not [path for path in paths if "/_large/" in path]


@pytest.mark.parametrize("step", [("GET", "/xet-write-token/"), ("POST", "/v1/xorbs/")])
def test_an_upload_through_xet_that_breaks_off_publishes_nothing_and_says_so(xet, step):
    xet.fail(*step, status=404, times=100)  # 5xx is tried again by `hf_xet` itself, for minutes
    with pytest.raises(ConnectionError, match="publishing user/model: the upload broke off .*; nothing was published"):
        push("user/model", MODEL, writes(README=CARD, weights=random.Random(1).randbytes(5000)))
    assert xet.state() == {}
    xet.faults.clear()
    push("user/model", MODEL, writes(README=CARD, weights=random.Random(1).randbytes(5000)))
    assert WEIGHTS in xet.files("user/model")


def test_a_full_quota_is_an_error_that_names_it_and_nothing_is_published(hub):
    hub.fail("POST", "/objects/batch", status=403, times=100, message="Private repository storage limit reached")
    with pytest.raises(PermissionError, match="storage limit reached.*quota"):
        push("user/model", MODEL, writes(README=CARD, weights=b"w"), private=True)
    assert hub.state() == {}


def test_a_commit_by_somebody_else_in_between_is_not_overwritten(hub, monkeypatch):
    push("user/model", MODEL, writes(README=CARD))
    commit = room.commit

    def late(*args):
        hub.add("user/model", {"notes.md": b"theirs"})
        return commit(*args)

    monkeypatch.setattr(room, "commit", late)
    with pytest.raises(ConnectionError, match="somebody else committed meanwhile"):
        push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    assert WEIGHTS not in hub.files("user/model")


def test_no_network_is_a_clear_error(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="the Hub cannot be reached .* check the network"):
        push("user/model", MODEL, writes(README=CARD))


def test_offline_mode_is_a_clear_error(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited for what will not change"))
    with pytest.raises(ConnectionError, match="unset HF_HUB_OFFLINE"):
        push("user/model", MODEL, writes(README=CARD))


def test_the_token_is_never_logged_nor_shown(hub, caplog, capfd, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    hub.fail("POST", "/commit/", status=503, times=100)
    with pytest.raises(ConnectionError) as caught:
        push("user/model", MODEL, writes(README=CARD, weights=b"w"))
    shown = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert len(caplog.records) > 10
    assert TOKEN not in shown
