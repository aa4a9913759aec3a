"""Analyses what assessors answered in a MUSHRA test: post-screening, means, intervals. Knows no audio."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .listening import REFERENCE
from .statistics import interval

# ITU-R BS.1534-3, section 4.1.2: who rates the hidden reference below 90 in more than 15 % of the trials is left out
LOWEST_REFERENCE = 90
MOST_MISSED = 0.15


def analyse(run: str | Path, files: Sequence[str | Path]) -> dict:
    """Resolves and sums up the answers to the test of a run.

    Args:
        run: folder with `listening/key.json`.
        files: results the page wrote, one per assessor.

    Returns:
        `{"assessors", "left_out": {assessor: share of trials with the hidden reference below 90}, "systems": {system:
        interval over all ratings, best first}}`.

    Raises:
        ValueError: results of another test, or everyone is left out.
    """
    key = json.loads((Path(run) / "listening" / "key.json").read_text())
    left_out, ratings, assessors = {}, defaultdict(list), 0
    for path in files:
        answers = json.loads(Path(path).read_text())
        if answers["test"] != key["id"]:
            raise ValueError(f"{path} answers the test {answers['test']}, but {run} holds {key['id']}")
        named = [
            {key["trials"][page["trial"]]["stimuli"][name]: value for name, value in page["ratings"].items()}
            for page in answers["trials"]
        ]
        missed = float(np.mean([page[REFERENCE] < LOWEST_REFERENCE for page in named]))
        if missed > MOST_MISSED:
            left_out[answers["assessor"]] = missed
            continue
        assessors += 1
        for page in named:
            for system, value in page.items():
                ratings[system].append(value)
    if not assessors:
        raise ValueError(f"nobody is left after post-screening: {left_out} rated the hidden reference below 90")
    systems = {system: interval(np.array(values, dtype=float)) for system, values in ratings.items()}
    best_first = dict(sorted(systems.items(), key=lambda item: -item[1]["mean"]))
    return {"assessors": assessors, "left_out": left_out, "systems": best_first}


def ratings_table(analysis: dict) -> str:
    """The analysis as Markdown."""
    from .report import cell, table_of

    rows = [[system, cell(item), str(item["count"])] for system, item in analysis["systems"].items()]
    note = f"{analysis['assessors']} assessors; {len(analysis['left_out'])} left out by post-screening."
    return f"{table_of(['system', 'MUSHRA, 95 % interval', 'ratings'], rows)}\n\n{note}"
