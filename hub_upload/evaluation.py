"""Evaluations as a repository shows them: a run's `summary.json` as a table, as a model index, for a leaderboard.

Knows no metric and no audio.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from tabulate import tabulate

from .facts import Evaluation, Facts


def read_summary(run: Path, system: str) -> dict:
    """The summary that `dacse evaluate` wrote into the folder `run`.

    Raises:
        ValueError: there is none, or `system` was not part of the run.
    """
    path = run / "summary.json"
    if not path.is_file():
        raise ValueError(f"{run} is no evaluation: there is no summary.json; give the folder of `dacse evaluate -o`")
    summary = json.loads(path.read_text())
    if system not in summary["systems"]:
        raise ValueError(f"{path}: no system {system!r}; there are {', '.join(summary['systems'])}")
    return summary


def stage_evaluations(origin: Path, folder: Path, facts: Facts) -> Facts:
    """Takes the runs that `facts` name, relative to `origin`, into `folder`; returns the facts relative to that."""
    runs = [Evaluation(stage_run(origin / run.run, run.system, folder), run.system) for run in facts.evaluations]
    return replace(facts, evaluations=runs)


def stage_run(run: Path, system: str, folder: Path) -> str:
    """Takes a run into a repository: its summary, and for a test set on the Hub what its leaderboard reads.

    Returns:
        where the repository keeps it.
    """
    summary = read_summary(run, system)
    test_set = summary["test_set"]
    kept = f"evaluation/{test_set['name']}"
    (folder / kept).mkdir(parents=True)
    shutil.copy(run / "summary.json", folder / kept)
    if test_set["hub_id"]:
        notes = f"{test_set['clips']} clips, checksum {test_set['checksum']}"
        entries = [  # a benchmark of the Hub shows those whose metric is the id of one of its tasks
            EvalResultEntry(test_set["hub_id"], result.metric_type, result.metric_value, notes=notes)
            for result in eval_results(summary, system)
        ]
        path = folder / ".eval_results" / f"{test_set['name']}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
    return kept


def score_table(summary: dict, system: str, title: str) -> str:
    """Mean scores over all clips with their intervals, a row for each system; `system` goes by `title`, in bold."""
    scales = summary["metrics"]
    arrows = {True: "↑", False: "↓"}
    header = ["system", *(f"{scale['label']} {arrows[scale['higher_is_better']]}" for scale in scales.values())]
    rows = []
    for name, scores in summary["systems"].items():
        cells = [name, *(interval(scores["overall"][metric]) for metric in scales)]
        rows.append([f"**{cell}**" for cell in [title, *cells[1:]]] if name == system else cells)
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def interval(score: dict) -> str:
    """
    >>> interval({"mean": 2.5, "low": 2.0, "high": 3.0}), interval({"mean": None, "low": None, "high": None})
    ('2.50 [2.00, 3.00]', '–')
    """
    if score["mean"] is None:
        return "–"
    if score["low"] is None:
        return f"{score['mean']:.2f}"
    return f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"


def eval_results(summary: dict, system: str) -> list[EvalResult]:
    """Every mean of `system`, as an entry of a model index."""
    test_set = summary["test_set"]
    return [
        EvalResult(
            task_type="audio-to-audio",
            task_name="Speech enhancement",
            dataset_type=test_set["hub_id"] or test_set["name"],
            dataset_name=f"{test_set['name']} ({test_set['clips']} clips, checksum {test_set['checksum']})",
            metric_type=metric,
            metric_name=summary["metrics"][metric]["label"],
            metric_value=round(score["mean"], 4),
        )
        for metric, score in summary["systems"][system]["overall"].items()
        if score["mean"] is not None
    ]
