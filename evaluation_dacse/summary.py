"""Condenses a run's table of clips: means, intervals over speakers, paired differences, reasons. Knows no audio."""

import json
from collections import Counter
from collections.abc import Mapping

import pandas

from .statistics import compare, interval


def summarize(clips: pandas.DataFrame, scales: Mapping[str, dict], against: str = "noisy") -> dict:
    """Condenses the table of clips.

    A clip without a value from one system (its reference cannot be scored) is left out for all of them.

    Args:
        clips: `system`, `clip`, `task`, `speaker`, the scores, `seconds`, `work_seconds`, `peak_memory_mb` and
            `reasons`, a row for each system and clip.
        scales: `lowest` and `highest` of each score.
        against: what differences are taken from, besides `noisy`.

    Returns:
        for each system `{"overall": scores, "tasks": {task: scores}, "real_time_factor", "peak_memory_mb",
        "unscorable"}`, where `scores` holds for each name an `interval` and under `"difference"`, by system, what
        `compare` finds of the paired differences from `noisy` and `against`.
    """
    systems = list(clips["system"].unique())
    rivals = [name for name in dict.fromkeys(("noisy", against)) if name in systems]
    parts = {task: rows for task, rows in clips.groupby("task", sort=False)}
    tables = {task: score_tables(rows, systems, scales, rivals) for task, rows in parts.items()}
    overall = score_tables(clips, systems, scales, rivals)
    return {
        system: {
            "overall": overall[system],
            "tasks": {task: table[system] for task, table in tables.items()},
            "real_time_factor": float(rows["work_seconds"].sum() / rows["seconds"].sum()),
            "peak_memory_mb": float(rows["peak_memory_mb"].max()),
            "unscorable": dict(
                Counter(f"{name}: {reason}" for cell in rows["reasons"] for name, reason in json.loads(cell).items())
            ),
        }
        for system, rows in ((system, clips[clips["system"] == system]) for system in systems)
    }


def score_tables(clips: pandas.DataFrame, systems: list[str], scales: Mapping[str, dict], rivals: list[str]) -> dict:
    """For each system the interval and the differences of every score, over the clips that all systems have it for."""
    tables = {system: {} for system in systems}
    speakers = clips.drop_duplicates("clip").set_index("clip")["speaker"]
    for name, scale in scales.items():
        values = clips.pivot(index="clip", columns="system", values=name).astype(float).dropna()
        labels = speakers[values.index].to_numpy()
        bounds = scale["lowest"], scale["highest"]
        for system in systems:
            found = interval(values[system].to_numpy(), labels, bounds=bounds)
            tables[system][name] = {**rounded(found), "difference": {}}
        for rival in rivals:
            differences = {
                system: (values[system] - values[rival]).to_numpy() for system in systems if system != rival
            }
            for system, found in compare(differences, labels).items():
                tables[system][name]["difference"][rival] = rounded(found)
    return tables


def rounded(found: dict) -> dict:
    """An interval with numbers of six digits.

    >>> rounded({"mean": 1.23456789, "low": None, "count": 12})
    {'mean': 1.23457, 'low': None, 'count': 12}
    """
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in found.items()}
