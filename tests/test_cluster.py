"""Work on Ray: what dies, what is damaged and what is full, and that nothing is lost, done twice or told wrong.

One cluster of two workers serves all tests; what is killed are its workers and the commands that use it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from pyarrow import parquet

from tests.training.tiny_tokens import make_tokens, write_place

ray = pytest.importorskip("ray", reason="needs the extra ray")

ROOT = Path(__file__).parents[1]
RATE = 8000  # of the tiny codec
BROKEN = (37, 141)
PATIENCE = 900  # seconds for what takes a few where there is nothing else to do


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two cores on this machine."""
    for _ in range(3):
        with contextlib.suppress(
            Exception
        ):  # which is all that Ray says where a busy machine takes over 30 s to start
            ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            break
        ray.shutdown()
    else:
        pytest.skip("Ray does not start within 30 s here")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return str(tiny_checkpoint)


def path_of(number: int) -> str:
    return f"in/{'sub/' if number % 2 else ''}{number:03}.wav"


@pytest.fixture
def recordings(tmp_path):
    """200 recordings, two of which are none."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(1400).astype(np.float32)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(200):
        soundfile.write(tmp_path / path_of(number), noise[: 1200 + number], RATE)
    for number in BROKEN:
        (tmp_path / path_of(number)).write_text("no audio")
    return tmp_path


@pytest.fixture
def start(cluster, model, tmp_path):
    """Starts `dacse enhance in -o out` on the cluster, or in one process."""
    running = []

    def start(*options: str, shared: bool = True) -> subprocess.Popen:
        command = [sys.executable, "-m", "dacse", "enhance", "in", "-o", "out", "--model", model, "--device", "cpu"]
        command += ["--report", "report.parquet", *options, *(["--ray", cluster] if shared else [])]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def made(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "out")) for path in folder.glob("out/**/*.wav"))


def wait_for(count: int, folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(made(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers() -> list[psutil.Process]:
    found = (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])
    return [process for process in found if process.info["cmdline"][0].startswith("ray::MapWorker")]


def check_results(folder: Path, count: int, statuses: dict[str, int]) -> None:
    """Every recording has its result, whole, and one row of the report."""
    broken = {number for number in BROKEN if number < count}
    good = {path_of(number).removeprefix("in/"): number for number in range(count) if number not in broken}
    assert made(folder) == sorted(good)
    for name, number in good.items():
        assert soundfile.info(folder / "out" / name).frames == 1200 + number
    rows = parquet.read_table(folder / "report.parquet").to_pylist()
    assert sorted(row["input"] for row in rows) == sorted(
        str(path.relative_to(folder)) for path in folder.glob("in/**/*.wav")
    )
    assert Counter(row["status"] for row in rows) == statuses
    failed = {row["input"]: row["error"] for row in rows if row["status"] == "failed"}
    assert set(failed) == {path_of(number) for number in broken}
    assert all("cannot be read as audio" in error for error in failed.values())
    enhanced = [row for row in rows if row["status"] == "enhanced"]
    assert all(row["seconds"] == (1200 + int(row["input"][-7:-4])) / RATE for row in enhanced)
    assert not list(folder.glob("out/**/.*"))


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing_and_broken_files_fail_alone(start, recordings):
    process = start("--json")
    wait_for(20, recordings, process)
    workers()[0].kill()
    output, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    check_results(recordings, 200, {"enhanced": 198, "failed": 2})
    report = json.loads(output)
    assert (report["enhanced"], report["failed"], report["error"]) == (198, 2, None)
    lines = [line for line in said.splitlines() if line.strip()]
    assert lines.count("a worker died; what it was at is done again") >= 1
    assert [line.split(":")[0] for line in lines if line.startswith(("failed", "error"))] == ["failed", "failed"]
    assert len(lines) <= 6, said


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_a_worker_dies_and_then_the_command_and_nothing_is_lost_or_done_twice(count, start, recordings):
    for number in range(count, 200):
        (recordings / path_of(number)).unlink()
    process = start()
    wait_for(count // 10, recordings, process)
    workers()[0].kill()
    wait_for(count // 4, recordings, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while workers():  # they end with the command
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = {name: (recordings / "out" / name).stat().st_mtime_ns for name in made(recordings)}
    good = count - len([number for number in BROKEN if number < count])
    assert count // 4 <= len(before) < good
    process = start("--skip-existing")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, said
    check_results(recordings, count, {"skipped": len(before), "enhanced": good - len(before), "failed": count - good})
    assert {name: (recordings / "out" / name).stat().st_mtime_ns for name in before} == before


@pytest.fixture
def small_disk(tmp_path):
    """A folder `out` on a disk of 256 kB."""
    (tmp_path / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path / "out")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may mount no small disk")
    yield
    subprocess.run(["umount", str(tmp_path / "out")], check=True)


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_command_with_a_true_report(shared, start, recordings, small_disk):
    process = start(shared=shared)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "(No space left on device); make room there" in line
    rows = parquet.read_table(recordings / "report.parquet").to_pylist()
    assert len(rows) == 200
    done = sorted(row["output"].removeprefix("out/") for row in rows if row["status"] == "enhanced")
    assert done == made(recordings) and 20 < len(done) < 198
    assert all(row["error"] for row in rows if row["status"] == "failed")
    assert not list(recordings.glob("out/**/.*"))


NO_WORKER_SURVIVES = """
import os, sys
from command_dacse.cluster import WorkerDied, run_on_ray

class Double:
    def __call__(self, chunk):
        if 17 in chunk:
            os.kill(os.getpid(), 9)
        return [2 * number for number in chunk]

class Broken:
    def __call__(self, chunk):
        raise KeyError("a fault of ours")

doubles = {}
for chunk, answer in run_on_ray(sys.argv[1], Double(), list(range(70)), use_gpus=True):
    doubles |= {chunk[0]: str(answer)} if isinstance(answer, WorkerDied) else dict(zip(chunk, answer, strict=True))
assert doubles.pop(17) == "3 workers died over this"
assert doubles == {number: 2 * number for number in range(70) if number != 17}
try:
    list(run_on_ray(sys.argv[1], Broken(), [1], use_gpus=False))
except KeyError as error:
    sys.stderr.write(f"{error} came through")
"""


def test_an_item_that_no_worker_survives_is_given_up_and_what_is_raised_comes_through(cluster):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NO_WORKER_SURVIVES, cluster]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert process.returncode == 0, process.stderr
    assert process.stderr.endswith("'a fault of ours' came through") and process.stdout == ""


def test_shards_of_tokens_made_on_a_cluster_are_those_of_one_process(cluster, tmp_path):
    place = write_place(tmp_path)
    alone = make_tokens(place)
    command = [sys.executable, "-m", "dacse", "tokenize", "corpus", "-o", "shared", "--ray", cluster]
    command += ["--recipe", "recipe.yaml", "--codec", "codec", "--clips", "24", "--valid-clips", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [*command, "--shard-size", "8"], cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == 0, process.stderr
    expected = {path.relative_to(alone): path.read_bytes() for path in alone.rglob("*.arrow")}
    assert len(expected) == 4
    assert {
        path.relative_to(place / "shared"): path.read_bytes() for path in place.glob("shared/*/*.arrow")
    } == expected
