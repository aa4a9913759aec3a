"""What the command reads and writes elsewhere, lists of files, data sets in parquet, shards and reports."""

import csv
import io
import json
import os
import socket

import fsspec
import numpy as np
import pyarrow
import pytest
import soundfile
from datasets import Audio, Dataset, load_dataset
from pyarrow import parquet
from typer.testing import CliRunner

from command_dacse.cards import enhanced_card
from command_dacse.cli import app
from command_dacse.cluster import _check_answers
from command_dacse.files import Job, plan_jobs
from command_dacse.options import parse_shard
from command_dacse.outputs import existing, remove_leftovers, written_when_done
from command_dacse.remote import RemoteFile, find_remote, upload
from tests.loopback_hub import LoopbackHub
from tests.tiny import tiny_pipeline

RATE = 8000  # of the tiny codec
SPEECH = 0.3 * np.random.default_rng(0).standard_normal(400).astype(np.float32)


def wav(seconds: float = 0.02, subtype: str = "FLOAT") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, SPEECH[: round(seconds * RATE)], RATE, subtype, format="WAV")
    return content.getvalue()


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return str(tiny_checkpoint)


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """`dacse enhance` with the tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(app, ["enhance", "--model", model, "--device", "cpu", *map(str, arguments)])

    return run


@pytest.fixture
def elsewhere():
    """A place that is no disk."""
    files = fsspec.filesystem("memory")
    for name in ("a.wav", "sub/b.wav", "notes.txt", ".hidden/c.wav"):
        files.pipe(f"/bucket/in/{name}", wav())
    yield files
    files.rm("/bucket", recursive=True)


def test_a_folder_elsewhere_is_searched_and_written_to_like_one_here(run, elsewhere):
    result = run("memory://bucket/in", "-o", "memory://bucket/out", "--report", "memory://bucket/report.parquet")
    assert result.exit_code == 0, result.output
    assert "left out other kinds: 1 (1 .txt); hidden: 1 (.hidden/c.wav)" in result.stderr
    assert [path.removeprefix("/bucket/out/") for path in elsewhere.find("/bucket/out")] == ["a.wav", "sub/b.wav"]
    audio, _ = soundfile.read(io.BytesIO(elsewhere.cat("/bucket/out/sub/b.wav")), dtype="float32")
    np.testing.assert_array_equal(audio, tiny_pipeline()({"bytes": wav(), "path": None})["audio"])
    again = run("memory://bucket/in", "-o", "memory://bucket/out", "--skip-existing")
    assert "0 enhanced, 2 skipped, 0 failed" in again.stderr
    refused = run("memory://bucket/in/a.wav", "-o", "memory://bucket/out/a.wav")
    assert refused.exit_code == 1 and "memory://bucket/out/a.wav exists" in refused.stderr
    assert len(parquet.read_table(io.BytesIO(elsewhere.cat("/bucket/report.parquet")))) == 2


def test_a_pattern_and_a_file_elsewhere(elsewhere):
    jobs = plan_jobs(["memory://bucket/in/*.wav", "memory://bucket/in/sub/b.wav"], "out", None).jobs
    assert jobs == [
        Job("memory://bucket/in/a.wav", "out/a.wav"),
        Job("memory://bucket/in/sub/b.wav", "out/b.wav"),
    ]
    assert plan_jobs(["memory://bucket/in/a.wav"], "b.flac", None).jobs == [Job("memory://bucket/in/a.wav", "b.flac")]
    with pytest.raises(ValueError, match="no file that a result could lie beside"):
        plan_jobs(["memory://bucket/in/a.wav"], None, None)


@pytest.mark.parametrize(
    ("address", "message"),
    [("memory://nowhere", "folder without audio files"), ("nonsense://a", "Protocol not known: nonsense")],
)
def test_a_place_that_gives_nothing_is_one_line(run, address, message):
    result = run(address, "-o", "out")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert result.exit_code == 1 and address in line and message in line


def test_a_file_that_is_gone_elsewhere_is_its_own_failure(run, elsewhere, tmp_path):
    (tmp_path / "list.txt").write_text("memory://bucket/in/a.wav\nmemory://bucket/in/gone.wav\n")
    result = run("list.txt", "-o", "out")
    assert "1 enhanced, 0 skipped, 1 failed" in result.stderr
    assert "failed: memory://bucket/in/gone.wav: No such file or directory" in result.stderr
    assert os.listdir("out") == ["a.wav"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "x/a.wav\n\nx/y/b.flac\n../c.wav\n/d.wav\n"),
        ("list.csv", "split,path\ntrain,x/a.wav\ntest,x/y/b.flac\ntest,../c.wav\ntest,/d.wav\n"),
        ("list.tsv", "\ufefffile_name\tn\nx/a.wav\t1\nx/y/b.flac\t2\n../c.wav\t3\n/d.wav\t4\n"),
        (
            "list.jsonl",
            "".join(json.dumps({"audio_filepath": p}) + "\n" for p in ("x/a.wav", "x/y/b.flac", "../c.wav", "/d.wav")),
        ),
    ],
)
def test_a_list_names_files_from_its_folder_on_and_results_keep_their_names(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    plan = plan_jobs([str(tmp_path / name)], "out", None)
    assert not plan.problems
    assert plan.jobs == [
        Job(f"{tmp_path}/x/a.wav", "out/x/a.wav"),
        Job(f"{tmp_path}/x/y/b.flac", "out/x/y/b.wav"),
        Job(f"{tmp_path}/../c.wav", "out/c.wav"),
        Job("/d.wav", "out/d.wav"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"name,size\na.wav,3\n", "has the columns name, size; paths are in one called 'path'"),
        ("a.txt", b"\xff\xfe", "is no list of files"),
        ("a.jsonl", b"{", "is no list of files"),
        ("a.tsv", b"", "it lists no files"),
        ("missing.csv", None, "No such file or directory"),
    ],
)
def test_what_is_no_list_is_said(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    plan = plan_jobs([str(tmp_path / name)], "out", None)
    assert not plan.jobs and message in plan.problems[str(tmp_path / name)]


def test_shards_are_the_whole_and_draw_what_the_whole_draws(run):
    os.mkdir("in")
    for number in range(5):
        soundfile.write(f"in/{number}.wav", SPEECH, RATE, "FLOAT")
    options = ["--sample", "--seed", "3"]
    assert run("in", "-o", "whole", *options).exit_code == 0
    assert run("in", "-o", "parts", *options, "--shard", "1/2").exit_code == 0
    assert sorted(os.listdir("parts")) == ["0.wav", "2.wav", "4.wav"]
    os.remove("parts/2.wav")
    assert run("in", "-o", "parts", *options, "--shard", "2/2").exit_code == 0
    assert run("in", "-o", "parts", *options, "--skip-existing").exit_code == 0
    whole, parts = (
        {name: soundfile.read(f"{folder}/{name}")[0].tobytes() for name in os.listdir(folder)}
        for folder in ("whole", "parts")
    )
    assert whole == parts and len(set(whole.values())) == 5


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="give N/M with N from 1 to M"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "-o", "out.wav"], "standard input and output are this process's; with --ray give files"),
        (["in.wav", "-o", "out.wav", "--device", "cuda:1"], "every worker has one of its own: give cuda"),
    ],
)
def test_what_a_cluster_cannot_share_is_refused(run, arguments, message):
    result = run(*arguments, "--ray", "local")
    assert result.exit_code == 2 and message in result.stderr


def test_without_ray_the_command_says_what_brings_it(run, monkeypatch):
    monkeypatch.setattr("command_dacse.cluster.find_spec", lambda name: None)
    soundfile.write("in.wav", SPEECH, RATE)
    result = run("in.wav", "-o", "out.wav", "--ray", "local")
    assert result.exit_code == 1 and result.stderr.startswith("error: --ray needs Ray; pip install 'dacse[ray]'")


def test_without_pyarrow_the_command_says_so_before_it_works(run, monkeypatch):
    monkeypatch.setattr("command_dacse.options.find_spec", lambda name: None)
    soundfile.write("in.wav", SPEECH, RATE)
    open("in.parquet", "w").close()
    for arguments in (["in.wav", "-o", "out.wav", "--report", "r.parquet"], ["in.parquet", "-o", "out.parquet"]):
        result = run(*arguments)
        assert result.exit_code == 2 and "tables and --report need pyarrow; pip install" in result.stderr


def test_tokens_are_shared_out_by_one_of_cluster_and_processes():
    for options in (["--processes", "2"], ["--follow"]):
        command = ["tokenize", "corpus", "-o", "out", "--recipe", "r.yaml", "--ray", "local", *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1 and "--processes and --follow are this machine's" in result.stderr


def test_the_report_has_a_row_for_each_input(run):
    os.mkdir("in")
    soundfile.write("in/good.wav", SPEECH, RATE)
    name = os.fsdecode(b"in/bad \xe9.wav")
    open(name, "w").write("no audio")
    soundfile.write("in/done.wav", SPEECH, RATE)
    os.mkdir("out")
    open("out/done.wav", "w").close()
    result = run("in", "missing.wav", "-o", "out", "--skip-existing", "--report", "r/report.parquet")
    assert result.exit_code == 1
    rows = {row["input"]: row for row in parquet.read_table("r/report.parquet").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "missing.wav": "failed",
        "in/done.wav": "skipped",
        "in/good.wav": "enhanced",
        "in/bad \\xe9.wav": "failed",
    }
    assert rows["in/good.wav"]["seconds"] == 0.05 and rows["in/good.wav"]["output"] == "out/good.wav"
    assert rows["missing.wav"]["error"] == "no such file or folder" and rows["in/good.wav"]["error"] is None


def test_a_report_called_csv_is_one(run):
    soundfile.write("good.wav", SPEECH, RATE)
    with open("cut.wav", "wb") as file:
        file.write(wav(subtype="PCM_16")[:-9])
    result = run("good.wav", "cut.wav", 'no "such", thing.wav', "-o", "out", "--report", "r.CSV")
    assert result.exit_code == 1
    with open("r.CSV", newline="") as file:
        rows = {row["input"]: row for row in csv.DictReader(file)}
    good, cut, missing = rows["good.wav"], rows["cut.wav"], rows['no "such", thing.wav']
    assert good == {"input": "good.wav", "output": "out/good.wav", "status": "enhanced", "error": ""} | {
        "seconds": "0.05",
        "warnings": "",
    }
    assert cut["warnings"].startswith("cut.wav promises 320 bytes and has 311: it was cut")
    assert missing["error"] == "no such file or folder" and missing["seconds"] == "0"


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("r.xlsx", "--report is 'r.xlsx'; end it in .csv or .parquet"),
        ("report", "--report is 'report'; end it in .csv or .parquet"),
        ("files.csv", "--report 'files.csv' would replace an input or a result; give it a name of its own"),
        ("/proc/r.csv", "cannot write /proc/r.csv (No such file or directory); write somewhere else"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_done(run, report, message):
    soundfile.write("in.wav", SPEECH, RATE)
    with open("files.csv", "w") as file:
        file.write("path\nin.wav\n")
    result = run("files.csv", "-o", "out", "--report", report)
    assert result.exit_code == 2 and result.stderr == f"error: {message}\n"
    assert sorted(os.listdir()) == ["files.csv", "in.wav"]


def table(path, rows: int, bad: int | None = None, **columns) -> None:
    """A data set's file: `rows` recordings of growing length, one of them broken if asked for."""
    audio = [{"bytes": wav((index + 1) / 1000), "path": f"clip {index}.wav"} for index in range(rows)]
    if bad is not None:
        audio[bad]["bytes"] = b"no audio"
    made = Dataset.from_dict({"id": list(range(rows)), "audio": audio, "text": ["said"] * rows} | columns)
    made.cast_column("audio", Audio(sampling_rate=16_000, decode=False)).to_parquet(path)


def test_a_data_set_keeps_its_files_columns_rows_and_their_order(run):
    os.makedirs("in/data")
    table("in/data/train-00000-of-00002.parquet", 70)
    table("in/data/train-00001-of-00002.parquet", 3)
    table("in/data/test-00000-of-00001.parquet", 2)
    open("in/README.md", "w").write("---\nlicense: mit\npretty_name: Mine\n---\n# Mine")
    result = run("in", "-o", "out", "--batch-size", "8", "--format", "flac")
    assert result.exit_code == 0 and "75 enhanced, 0 skipped, 0 failed" in result.stderr, result.output
    before, after = (load_dataset(folder, cache_dir="cache") for folder in ("in", "out"))
    assert {split: len(rows) for split, rows in after.items()} == {"train": 73, "test": 2}
    assert after["train"].features["audio"] == Audio(decode=False)
    for split, rows in after.items():
        assert rows["id"] == before[split]["id"] and rows["text"] == before[split]["text"]
        for row, given in zip(rows["audio"], before[split]["audio"], strict=True):
            audio, rate = soundfile.read(io.BytesIO(row["bytes"]))
            assert (len(audio), rate) == (soundfile.info(io.BytesIO(given["bytes"])).frames, RATE)
            assert row["path"] == given["path"].replace("wav", "flac")
    assert open("out/README.md").read().startswith("---\nlicense: mit\n---\n\nThe audio of `in`, enhanced with")
    assert "0 enhanced, 3 skipped" in run("in", "-o", "out", "--skip-existing").stderr


def test_a_row_of_a_table_is_enhanced_as_a_file_is(run):
    table("a.parquet", 3)
    assert run("a.parquet", "-o", "b.parquet").exit_code == 0
    for index, row in enumerate(parquet.read_table("b.parquet")["audio"].to_pylist()):
        audio, _ = soundfile.read(io.BytesIO(row["bytes"]), dtype="float32")
        expected = tiny_pipeline()({"bytes": wav((index + 1) / 1000), "path": "x"})["audio"]
        np.testing.assert_array_equal(audio, expected)


def test_a_row_that_is_no_audio_is_reported_and_keeps_its_place(run):
    table("a.parquet", 66, bad=65)
    result = run("a.parquet", "--report", "r.parquet")
    assert result.exit_code == 1 and "65 enhanced, 0 skipped, 1 failed" in result.stderr
    assert "failed: a.parquet#65 cannot be read as audio" in result.stderr
    rows = parquet.read_table("a.enhanced.parquet").to_pylist()
    assert [row["audio"] is None for row in rows] == [False] * 65 + [True]
    assert [row["id"] for row in rows] == list(range(66))
    again = run("a.enhanced.parquet", "-o", "c.parquet")
    assert again.exit_code == 0 and "65 enhanced, 1 skipped, 0 failed" in again.stderr


def test_audio_that_lies_beside_a_table_is_found(run):
    os.mkdir("in")
    soundfile.write("in/x.wav", SPEECH, RATE)
    made = pyarrow.table({"audio": [{"bytes": None, "path": "x.wav"}, {"bytes": None, "path": "gone.wav"}]})
    parquet.write_table(
        made.cast(pyarrow.schema({"audio": pyarrow.struct({"bytes": "binary", "path": "string"})})), "in/t.parquet"
    )
    result = run("in/t.parquet", "-o", "out.parquet")
    assert "1 enhanced, 0 skipped, 1 failed" in result.stderr and "gone.wav: No such file" in result.stderr
    first, second = parquet.read_table("out.parquet")["audio"].to_pylist()
    assert first["path"] == "x.wav" and soundfile.info(io.BytesIO(first["bytes"])).frames == 400 and second is None


def test_tables_that_cannot_be_read_fail_alone(run):
    table("a good.parquet", 2)
    table("cut.parquet", 200)
    content = bytearray(open("cut.parquet", "rb").read())
    content[4:4000] = bytes(3996)  # the header of a page among them
    open("cut.parquet", "wb").write(content)
    open("no.parquet", "w").write("no table")
    parquet.write_table(pyarrow.table({"text": ["a"]}), "text.parquet")
    table("two.parquet", 1, clean=[{"bytes": wav(), "path": "c.wav"}])
    table("z empty.parquet", 0)
    soundfile.write("z.wav", SPEECH, RATE)
    result = run(*sorted(os.listdir(".")), "-o", "out")
    assert result.exit_code == 1 and "3 enhanced, 0 skipped, 4 failed" in result.stderr, result.stderr
    for said in (
        "cut.parquet cannot be read to its end",
        "no.parquet is no parquet table",
        "text.parquet has no column of audio as `datasets` stores it, only text",
        "two.parquet has the columns of audio audio, clean; say which one with --column",
    ):
        assert f"failed: {said}" in result.stderr
    assert sorted(os.listdir("out")) == ["a good.parquet", "z empty.parquet", "z.wav"]
    assert len(parquet.read_table("out/z empty.parquet")) == 0
    assert run("two.parquet", "-o", "two", "--column", "clean").exit_code == 2  # a table becomes a table
    assert run("two.parquet", "-o", "clean.parquet", "--column", "clean").exit_code == 0
    (row,) = parquet.read_table("clean.parquet").to_pylist()
    (given,) = parquet.read_table("two.parquet").to_pylist()
    assert soundfile.info(io.BytesIO(row["clean"]["bytes"])).frames == 160 and row["audio"] == given["audio"]


def test_tables_beside_recordings_are_left_out(tmp_path):
    for name in ("a.wav", "b.parquet"):
        (tmp_path / name).touch()
    plan = plan_jobs([str(tmp_path)], "out", None)
    assert [job.target for job in plan.jobs] == ["out/a.wav"] and "1 .parquet" in plan.notes[0]


def test_a_data_set_on_the_hub_becomes_one_there(run, tmp_path, monkeypatch):
    table(tmp_path / "t.parquet", 3)
    content = (tmp_path / "t.parquet").read_bytes()
    with LoopbackHub() as hub:
        hub.attach(monkeypatch)
        files = {"data/train-00000-of-00001.parquet": content, "README.md": b"---\nlanguage: [en]\n---\n"}
        hub.add("org/noisy", files, "dataset")
        arguments = "hf://datasets/org/noisy", "-o", "hf://datasets/org/clean"
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        made = hub.files("org/clean", "dataset")
        assert hub.repositories["dataset", "org/clean"].private
        assert {"data/train-00000-of-00001.parquet", "README.md"} <= made.keys()
        assert b"source_datasets:\n- org/noisy" in made["README.md"]
        assert parquet.read_table(io.BytesIO(made["data/train-00000-of-00001.parquet"]))["id"].to_pylist() == [0, 1, 2]
        assert "0 enhanced, 1 skipped" in run(*arguments, "--skip-existing").stderr


def test_who_is_turned_away_by_a_busy_hub_tries_again(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(wav())
    with LoopbackHub() as hub:
        hub.attach(monkeypatch)
        hub.add("org/clean", {}, "dataset")
        hub.fail("POST", "/commit/", 412, times=3)
        upload(str(tmp_path / "a.wav"), "hf://datasets/org/clean/a.wav")
        assert hub.files("org/clean", "dataset")["a.wav"] == wav()
        hub.fail("POST", "/commit/", 403, times=9)
        with pytest.raises(OSError, match="hf://datasets/org/clean/b.wav: .*403"):
            upload(str(tmp_path / "a.wav"), "hf://datasets/org/clean/b.wav")


def test_cards_keep_what_is_still_true():
    card = enhanced_card("---\nconfigs: [{config_name: default}]\ndataset_info: {}\n---\n", "s3://b/x", "m")
    assert card.startswith("---\nconfigs:\n- config_name: default\n---\n") and "`s3://b/x`" in card


def test_what_a_killed_process_has_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    (tmp_path / ".dacse-1-00000000.part").write_text("left")
    with written_when_done(str(tmp_path / "a.wav")) as file:
        remove_leftovers(str(tmp_path))
        assert os.listdir(tmp_path) == [os.path.basename(file.name)]
        file.write(b"new")
    assert os.listdir(tmp_path) == ["a.wav"]
    remove_leftovers(str(tmp_path / "nowhere"))


def test_a_file_elsewhere_is_opened_when_it_is_read(elsewhere):
    file = RemoteFile("memory://bucket/gone.wav")
    with pytest.raises(OSError, match="memory://bucket/gone.wav"):
        file.read()
    assert RemoteFile("memory://bucket/in/a.wav", "row 3").read() == elsewhere.cat("/bucket/in/a.wav")
    assert existing(["memory://bucket/in/a.wav", "memory://bucket/in/z.wav", "-"]) == {"memory://bucket/in/a.wav"}
    assert find_remote("memory://bucket/in/sub/b.wav") == ["memory://bucket/in/sub/b.wav"]


def test_a_cluster_that_does_not_listen_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _check_answers(f"127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ConnectionRefusedError):
            _check_answers(address)
