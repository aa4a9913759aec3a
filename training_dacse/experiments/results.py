"""What came out of an experiment: a file for each arm and seed, a table and a plot with intervals over the seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student
from tabulate import tabulate

from ..files import write_json

LEVEL = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of what the seeds gave, and how far the interval of Student's t reaches to either side (nan for one seed).

    >>> mean, reach = interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(reach, 3)
    (2.0, 2.484)
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), math.nan
    reach = student.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(reach)


class Results:
    """Figures of arms and seeds in a folder; what is there is not made again.

    Args:
        folder: created when missing.
        title: of table and plot.
        best: for each figure that is drawn, "high" or "low", whichever is better, or "none".
    """

    def __init__(self, folder: str | Path, title: str, best: dict[str, str]):
        self.folder, self.title, self.best = Path(folder), title, best
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, arm: str, seed: int) -> Path:
        """Where the figures of an arm and seed are."""
        return self.folder / f"{''.join(letter if letter.isalnum() else '_' for letter in arm)}-{seed}.json"

    def has(self, arm: str, seed: int) -> bool:
        """Whether an arm was run with a seed."""
        return self.path(arm, seed).exists()

    def add(self, arm: str, seed: int, figures: dict[str, float], **remarks) -> None:
        """Writes the figures of an arm and seed, whole or not at all."""
        write_json(self.path(arm, seed), {"arm": arm, "seed": seed, "figures": figures, **remarks})

    def read(self) -> dict[str, dict[str, list[float]]]:
        """What the seeds gave for every figure of every arm."""
        rows = sorted(
            (json.loads(path.read_text()) for path in self.folder.glob("*-*.json")), key=lambda row: row["seed"]
        )
        found: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            for name, value in row["figures"].items():
                found.setdefault(row["arm"], {}).setdefault(name, []).append(value)
        return found

    def write(self, arms: Sequence[str], remarks: Sequence[str] = ()) -> None:
        """Writes `results.md`, a row for each arm, and `results.png`.

        Args:
            arms: in the order they are shown.
            remarks: lines under the table: what it was made with.
        """
        found = {arm: figures for arm, figures in self.read().items() if arm in arms}
        shown, nothing = [arm for arm in arms if arm in found], [math.nan]
        rows = {arm: {name: interval(found[arm].get(name, nothing)) for name in self.best} for arm in shown}
        seeds = {arm: max(len(values) for values in found[arm].values()) for arm in shown}
        signs = {"high": " ↑", "low": " ↓", "none": ""}
        columns = [f"{name}{signs[best]}" for name, best in self.best.items()]
        cells = [[arm, seeds[arm], *(cell(*row[name]) for name in self.best)] for arm, row in rows.items()]
        table = tabulate(cells, ["arm", "seeds", *columns], tablefmt="github", disable_numparse=True)
        spread = f"Means over the seeds, ± {LEVEL:.0%} intervals of Student's t where there are several."
        lines = [f"# {self.title}", "", table, "", spread, *remarks]
        (self.folder / "results.md").write_text("\n".join(lines) + "\n")
        self.draw(rows).savefig(self.folder / "results.png", dpi=110)

    def draw(self, rows: dict[str, dict[str, tuple[float, float]]]) -> Figure:
        """A panel for each figure: a dot for each arm, and its interval where there is one."""
        figure = Figure(figsize=(2 + 1.9 * len(self.best), 1.4 + 0.32 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(self.best), sharey=True, squeeze=False)[0]
        places = range(len(rows), 0, -1)  # the first arm on top
        for panel, (name, best) in zip(panels, self.best.items(), strict=True):
            means, reaches = zip(*(row[name] for row in rows.values()), strict=True)
            panel.errorbar(means, places, xerr=reaches, fmt="o", capsize=3, markersize=4)
            panel.set_title(f"{name}{'' if best == 'none' else f' ({best} is good)'}", fontsize=8)
            panel.grid(axis="x", alpha=0.3)
            panel.tick_params(labelsize=8)
        panels[0].set_yticks(places, list(rows))
        figure.suptitle(self.title, fontsize=10)
        return figure


def cell(mean: float, reach: float) -> str:
    """
    >>> cell(2.0, 0.25), cell(1234.5, float("nan")), cell(float("nan"), float("nan"))
    ('2.00 ± 0.25', '1.23e+03', '')
    """
    if math.isnan(mean):
        return ""
    shown = f"{mean:.3g}" if abs(mean) >= 1000 or 0 < abs(mean) < 0.01 else f"{mean:.2f}"
    return shown if math.isnan(reach) or reach == 0 else f"{shown} ± {reach:.2g}"
