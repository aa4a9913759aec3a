"""Runs systems over a test set and scores them: one folder per run, resumable, and the summary everything else reads.

FOLDER/run.json        what was compared: test set, versions of the systems
FOLDER/audio/SYSTEM/   aligned output of each clip, 16-bit FLAC
FOLDER/timing.jsonl    one line per system and clip as it was enhanced
FOLDER/scores.jsonl    one line per system, clip and metric as it was scored
FOLDER/clips.parquet   one row per system and clip: scores, time, memory, delay, gain
FOLDER/summary.json    means, intervals and paired differences, per task and overall
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pandas

from .metrics import METRICS, metrics_at_hand, split_metric
from .rivals import RIVALS, rival_version
from .summary import summarize
from .systems import BOUNDS, split_spec
from .testsets import TestSet, write_json
from .workers import enhance_clips, run_here, run_in_workers, score_clip, start_metrics, start_system

Progress = Callable[[str, int, int], None]  # (what, done, of)


def run_benchmark(
    test_set: TestSet,
    systems: Sequence[str],
    folder: str | Path,
    metrics: Sequence[str] | None = None,
    against: str = "noisy",
    processes: int = 1,
    device: str = "cpu",
    batch_size: int = 8,
    progress: Progress = lambda what, done, of: None,
) -> dict:
    """Enhances and scores every clip with every system, skipping what `folder` already holds.

    Args:
        test_set: what to enhance.
        systems: specs as `load_system` takes them.
        folder: of the run.
        metrics: specs as `load_metric` takes them, by default those this machine can compute as it is; those that need
            a reference are left out where there is none.
        against: the system that paired differences are taken against, besides `noisy`.
        processes: workers, one CPU core each; their number changes no value.
        device: where networks of torch run.
        batch_size: clips a DAC-SE1 checkpoint enhances together; its time is then that of a batch.
        progress: called as clips are done.

    Returns:
        the content of `summary.json`, see `summarize`.

    Raises:
        ValueError: `folder` holds another test set, or a system that has changed since; a system cannot be run.
        ImportError: a system's or metric's package is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("timing.jsonl", "scores.jsonl"):
        cut_half_line(folder / name)
    paired = all(clip.clean for clip in test_set.clips)
    if not paired and (needing := [name for name in systems if name.startswith(("clean", "codec"))]):
        raise ValueError(f"{', '.join(needing)} cannot run on {test_set.name}: it has no clean recordings")
    about = {spec: METRICS[split_metric(spec)[0]] for spec in metrics or metrics_at_hand()}
    about = {spec: metric for spec, metric in about.items() if paired or not metric.uses_reference}
    metrics = list(about)
    scales = {
        name: asdict(scale)
        | {"metric": spec, "sampling_rate": metric.sampling_rate, "min_seconds": metric.min_seconds}
        for spec, metric in about.items()
        for name, scale in metric.scales.items()
    }
    run = claim(folder, test_set, systems)
    for system in systems:
        enhance_all(test_set, system, folder, processes, device, batch_size, progress)
    score_all(test_set, systems, metrics, folder, processes, device, progress)
    clips = collect(folder, test_set, systems, metrics)
    clips.to_parquet(folder / "clips.parquet.tmp", index=False)
    (folder / "clips.parquet.tmp").rename(folder / "clips.parquet")
    summary = {**run, "metrics": scales, "systems": summarize(clips, scales, against)}
    write_json(folder / "summary.json", summary)
    return summary


def claim(folder: Path, test_set: TestSet, systems: Sequence[str]) -> dict:
    """Writes what is compared into `run.json`, or checks it against what is written there."""
    path = folder / "run.json"
    described = {
        "name": test_set.name,
        "hub_id": test_set.hub_id,
        "checksum": test_set.checksum,
        "clips": len(test_set.clips),
        "speakers": len({clip.speaker for clip in test_set.clips if clip.speaker}),
        "tasks": dict(Counter(clip.task for clip in test_set.clips)),
    }
    run = json.loads(path.read_text()) if path.exists() else {"test_set": described, "versions": {}, "commits": []}
    if run["test_set"] != described:
        raise ValueError(f"{folder} holds a run on {run['test_set']}, now {described}; give another folder")
    for system in systems:
        version = system_version(system)
        if run["versions"].setdefault(system, version) != version:
            raise ValueError(
                f"system {system!r} was {run['versions'][system]} and is {version} now; give another folder"
            )
    run["environment"] = environment()
    if (commit := code_version()) not in run["commits"]:
        run["commits"].append(commit)
    write_json(path, run)
    return run


def system_version(spec: str) -> str:
    """The version of a rival's package, or a hash: of a checkpoint's weights, settings and code, of recordings."""
    name, model, adapter = split_spec(spec)
    if name in BOUNDS:
        return "-"
    if name in RIVALS:
        return rival_version(name)
    if not Path(model).is_dir():
        return "Hub"
    digest = hashlib.sha256()
    for folder in (model, adapter) if Path(adapter, "adapter_config.json").is_file() else (model,):
        for path in sorted(Path(folder).rglob("*")):
            is_weighty = path.suffix in (".safetensors", ".json", ".py") and path.name != "summary.json"
            if path.is_file() and (is_weighty or name == "folder"):  # the summary is an evaluation of it
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code_version() -> str:
    """The commit this code stands at, with `-dirty` where files differ from it; the package's version if installed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") and git("ls-files", "__init__.py"):
        return git("describe", "--always", "--abbrev=12", "--dirty")
    return metadata.version("dacse")


def environment() -> dict:
    """Hardware and versions, for the table's foot."""
    packages = ("torch", "transformers", "numpy", "onnxruntime", "speechmos", "pesq", "pystoi")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def slug(system: str) -> str:
    """A system's name as a folder's.

    >>> slug("dacse:org/dac-se1+dereverb")
    'dacse-org-dac-se1-dereverb'
    """
    return re.sub(r"[^\w.-]+", "-", system)


def audio_path(folder: Path, system: str, clip: str) -> Path:
    """Where a system's output stands."""
    return folder / "audio" / slug(system) / f"{clip}.flac"


def cut_half_line(path: Path) -> None:
    """Takes off what a killed run had begun to write."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict]:
    """The content of a JSON-lines file, empty where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_lines(path: Path, rows: Sequence[dict]) -> None:
    """Adds lines to a JSON-lines file."""
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def enhance_all(
    test_set: TestSet, system: str, folder: Path, processes: int, device: str, batch_size: int, progress: Progress
) -> None:
    """Enhances the clips that have not been."""
    done = {row["clip"] for row in read_lines(folder / "timing.jsonl") if row["system"] == system}
    missing = [clip for clip in test_set.clips if clip.name not in done]
    audio_path(folder, system, "").parent.mkdir(parents=True, exist_ok=True)
    size = batch_size if split_spec(system)[0] in ("dacse", "generated") else 1
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    jobs = {
        ", ".join(clip.name for clip in batch): (batch, [audio_path(folder, system, clip.name) for clip in batch])
        for batch in batches
    }
    count = 0
    for rows in run_in_workers(processes, start_system, (system, device), enhance_clips, jobs) if jobs else ():
        append_lines(folder / "timing.jsonl", [{"system": system, **row} for row in rows])
        count += len(rows)
        progress(f"enhancing: {system}", count, len(missing))


def score_all(
    test_set: TestSet,
    systems: Sequence[str],
    metrics: Sequence[str],
    folder: Path,
    processes: int,
    device: str,
    progress: Progress,
) -> None:
    """Scores the outputs that have not been."""
    done = {(row["system"], row["clip"], row["metric"]) for row in read_lines(folder / "scores.jsonl")}
    jobs = {}
    for system in systems:
        for clip in test_set.clips:
            missing = [spec for spec in metrics if (system, clip.name, spec) not in done]
            if missing:
                path = audio_path(folder, system, clip.name)
                jobs[f"{clip.name} of {system}"] = system, clip, path, missing
    if jobs:
        work = start_metrics, (metrics, device), score_clip, jobs
        results = run_in_workers(processes, *work) if processes > 1 else run_here(*work)
        for count, rows in enumerate(results, start=1):
            append_lines(folder / "scores.jsonl", rows)
            progress("scoring", count, len(jobs))


def collect(folder: Path, test_set: TestSet, systems: Sequence[str], metrics: Sequence[str]) -> pandas.DataFrame:
    """One row per system and clip, sorted by both, with every score and the reasons of those that are missing."""
    tasks, speakers = {clip.name: clip.task for clip in test_set.clips}, test_set.speakers
    rows = {
        (row["system"], row["clip"]): {"task": tasks[row["clip"]], "speaker": speakers[row["clip"]], **row}
        for row in read_lines(folder / "timing.jsonl")
        if row["system"] in systems
    }
    for row in rows.values():
        fault = row.pop("fault")
        row["reasons"] = {"system": f"returned {fault}"} if fault else {}
    for row in read_lines(folder / "scores.jsonl"):
        if row["system"] in systems and row["metric"] in metrics:
            clip = rows[row["system"], row["clip"]]
            clip.update(row["values"])
            if row["reason"]:
                clip["reasons"][row["metric"]] = row["reason"]
    clips = pandas.DataFrame([{**row, "reasons": json.dumps(row["reasons"])} for row in rows.values()])
    clips["system"] = pandas.Categorical(clips["system"], categories=list(systems), ordered=True)
    return clips.sort_values(["system", "clip"]).astype({"system": str}).reset_index(drop=True)
