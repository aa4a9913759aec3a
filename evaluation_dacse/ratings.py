"""Analyses what assessors answered in a MUSHRA test: post-screening, means, intervals. Knows no audio."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from .listening import MID_ANCHOR, REFERENCE
from .statistics import compare, interval

# ITU-R BS.1534-3, section 4.1.2: who, in more than 15 % of the trials, rates the hidden reference below 90 or the
# mid-range anchor above 90 is left out
LIMIT = 90
SCALE = (0, 100)
MOST_MISSED = 0.15


def analyse(run: str | Path, files: Sequence[str | Path], against: str = "noisy") -> dict:
    """Resolves and sums up the answers to the test of a run.

    Intervals take both the assessors and the trials for a sample of those there could be.

    Args:
        run: folder with `listening/key.json`.
        files: results the page wrote, one per assessor.
        against: the system that differences are taken from.

    Returns:
        `{"assessors", "trials", "left_out": {assessor: why}, "systems": {system: interval over all ratings with
        "difference" from `against`, best first}}`.

    Raises:
        ValueError: results of another test, two of one assessor, or everyone is left out.
    """
    key = json.loads((Path(run) / "listening" / "key.json").read_text())
    tables, left_out = {}, {}
    for path in files:
        answers = json.loads(Path(path).read_text())
        if answers["test"] != key["id"]:
            raise ValueError(f"{path} answers the test {answers['test']}, but {run} holds {key['id']}")
        assessor = answers["assessor"]
        if assessor in tables or assessor in left_out:
            raise ValueError(f"{path}: there are two results of {assessor!r}; give one of each assessor")
        table = resolve(answers, key["trials"])
        if reason := screen(table):
            left_out[assessor] = reason
        else:
            tables[assessor] = table
    if not tables:
        raise ValueError(f"nobody is left after post-screening: {left_out}")
    ratings = pandas.concat(tables, names=["assessor", "trial"])  # a column for each system
    factors = [ratings.index.get_level_values(level) for level in ("assessor", "trial")]
    differences = {
        system: (ratings[system] - ratings[against]).to_numpy()
        for system in ratings
        if against in ratings and system != against
    }
    found = compare(differences, *factors)
    systems = {
        system: interval(ratings[system].to_numpy(), *factors, bounds=SCALE) | {"difference": found.get(system)}
        for system in ratings
    }
    best_first = dict(sorted(systems.items(), key=lambda item: -item[1]["mean"]))
    return {"assessors": len(tables), "trials": len(key["trials"]), "left_out": left_out, "systems": best_first}


def resolve(answers: dict, trials: dict) -> pandas.DataFrame:
    """An assessor's ratings: a row for each trial, a column for each system."""
    rows = {
        page["trial"]: {
            trials[page["trial"]]["stimuli"][name]: float(value) for name, value in page["ratings"].items()
        }
        for page in answers["trials"]
    }
    return pandas.DataFrame.from_dict(rows, orient="index").sort_index(axis=1)


def screen(table: pandas.DataFrame) -> str | None:
    """Why an assessor is left out, None who is not."""
    missed = {
        f"rated the hidden reference below {LIMIT}": np.mean(table[REFERENCE] < LIMIT),
        f"rated the mid-range anchor above {LIMIT}": np.mean(table[MID_ANCHOR] > LIMIT),
    }
    reasons = [f"{what} in {share:.0%} of the trials" for what, share in missed.items() if share > MOST_MISSED]
    return " and ".join(reasons) or None


def ratings_table(analysis: dict) -> str:
    """The analysis as Markdown."""
    from .report import SURE, cell, table_of

    rows = []
    for system, item in analysis["systems"].items():
        difference = item["difference"]
        text = cell(difference, signed=True) if difference else "–"
        sure = difference and difference["p"] is not None and difference["p"] < SURE
        rows.append([system, cell(item), f"**{text}**" if sure else text])
    notes = [f"{analysis['assessors']} assessors, {analysis['trials']} trials."]
    notes += [f"{assessor} is left out: {reason}." for assessor, reason in analysis["left_out"].items()]
    header = ["system", "MUSHRA, 95 % interval", "difference from noisy, together"]
    return "\n\n".join([table_of(header, rows), *notes])
