"""Turns a run's summary into what people read and hear: Markdown tables, plots, players. Knows no audio."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from .published import PAPER
from .statistics import places

DIGEST = "dnsmos_ovrl", "dnsmos_bak", "plcmos", "pesq", "estoi", "mel_distance", "per", "wer", "speaker_similarity"
SURE = 0.05  # probability below which a difference is called one


def write_report(folder: str | Path) -> Path:
    """Writes `report.md`, `plots/` and `samples/index.html` into a run's folder.

    Returns:
        the path of `report.md`.
    """
    from .plots import draw_plots
    from .samples import write_samples

    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text())
    plots = draw_plots(folder, summary)
    write_samples(folder / "samples", [folder], f"Samples: {summary['test_set']['name']}")
    report = folder / "report.md"
    report.write_text(markdown(summary, [plot.relative_to(folder) for plot in plots]))
    return report


def markdown(summary: dict, plots: Sequence[Path] = ()) -> str:
    """The whole report."""
    test_set = summary["test_set"]
    parts = [
        f"# Evaluation on {test_set['name']}",
        f"{about(summary)} Means over clips with 95 % intervals, which take clips of one speaker for alike. Arrows "
        "point to the better side; the best of the enhancers is bold.",
        "## All clips",
        score_table(summary, "overall"),
        counts(summary, "overall"),
        "## Difference from noisy",
        "Paired by clip. The intervals hold for all systems together; differences that Holm's test calls sure at "
        f"{SURE:.0%} are bold.",
        difference_table(summary),
        "## Time and memory",
        cost_table(summary),
        "## Scores",
        "Values beyond the ends of a scale count as its ends. A clip whose reference is silent, or shorter than a "
        "metric looks at, is left out for every system; a silent output gets the worse end.",
        scale_table(summary),
    ]
    if any(row["unscorable"] for row in summary["systems"].values()):
        parts += ["### Clips without a value of their own", unscorable_table(summary)]
    for task in test_set["tasks"]:
        parts += [f"## {task} ({test_set['tasks'][task]} clips)", score_table(summary, task)]
    for name in PAPER:
        if test_set["name"].startswith(name):
            parts += ["## Published figures (arXiv 2510.02187)", paper_table(summary, name)]
    parts.append("## Listen\n\n[Clips of every task through every system](samples/index.html).")
    parts += [f"![{plot.stem}]({plot.as_posix()})" for plot in plots]
    parts.append(footer(summary))
    return "\n\n".join(parts) + "\n"


def about(summary: dict) -> str:
    """What was measured on, in a sentence."""
    test_set = summary["test_set"]
    speakers = f"{test_set['speakers']} speakers" if test_set["speakers"] else "speakers that nobody names"
    tasks = f"{len(test_set['tasks'])} task{'s'[: len(test_set['tasks']) > 1]}"
    return f"{test_set['clips']} clips of {speakers} in {tasks}, checksum `{test_set['checksum']}`."


def counts(summary: dict, part: str) -> str:
    """How many clips the ranking stands on: the same for all systems, not for all scores."""
    numbers = {
        name: max(table[name]["count"] for table in part_of(summary, part).values()) for name in summary["metrics"]
    }
    largest = max(numbers.values())
    fewer = ", ".join(f"{summary['metrics'][name]['label']} {n}" for name, n in numbers.items() if n < largest)
    return f"Every score is over the same {largest} clips for all systems{f', but: {fewer}' if fewer else ''}."


def score_table(summary: dict, part: str) -> str:
    """Means and intervals of every system, for all clips (`overall`) or one task."""
    return table_of(*scores_of(summary, part, list(summary["metrics"]), cell))


def digest_table(summary: dict) -> str:
    """Means over all clips by some of the scores, and the work that each system takes: short enough for a README."""
    names = [name for name in DIGEST if name in summary["metrics"]] or list(summary["metrics"])
    header, rows = scores_of(summary, "overall", names, lambda score: cell({**score, "low": None}))
    work = (f"{row['real_time_factor']:.2f}" for row in summary["systems"].values())
    return table_of([*header, "work per second ↓"], [[*row, seconds] for row, seconds in zip(rows, work, strict=True)])


def scores_of(
    summary: dict, part: str, names: list[str], form: Callable[[dict], str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of scores; the best of the systems that hear the noisy recording is bold.

    A system that has a score for fewer clips than another has no place, and its cell says so.
    """
    tables, placed = part_of(summary, part), {}
    for name in names:
        scores = {system: table[name] for system, table in tables.items()}
        contenders = {system: score for system, score in scores.items() if is_contender(system)}
        placed[name] = places(contenders, summary["metrics"][name]["higher_is_better"])
    most = {name: max(table[name]["count"] for table in tables.values()) for name in names}
    rows = []
    for system, table in tables.items():
        cells = []
        for name in names:
            text, count = form(table[name]), table[name]["count"]
            text = f"**{text}**" if placed[name].get(system) == 1 else text
            cells.append(text if count == most[name] else f"{text} ({count} of {most[name]} clips)")
        rows.append([system, *cells])
    return ["system", *(heading(summary, name) for name in names)], rows


def part_of(summary: dict, part: str) -> dict[str, dict]:
    """The scores of every system over all clips (`overall`) or those of one task."""
    return {
        system: row["overall"] if part == "overall" else row["tasks"][part]
        for system, row in summary["systems"].items()
    }


def difference_table(summary: dict, other: str = "noisy") -> str:
    """Paired differences from another system."""
    names = list(summary["metrics"])
    rows = []
    for system, row in summary["systems"].items():
        if system == other:
            continue
        cells = []
        for name in names:
            difference = row["overall"][name]["difference"].get(other)
            text = cell(difference, signed=True) if difference else "–"
            sure = difference and difference["p"] is not None and difference["p"] < SURE
            cells.append(f"**{text}**" if sure else text)
        rows.append([system, *cells])
    return table_of(["system", *(heading(summary, name) for name in names)], rows)


def cost_table(summary: dict) -> str:
    """Real-time factor and peak memory."""
    rows = [
        [system, f"{row['real_time_factor']:.3f}", f"{row['peak_memory_mb']:.0f} MB"]
        for system, row in summary["systems"].items()
    ]
    header = ["system", "seconds of work per second of audio, one core", "peak memory over a process that reads audio"]
    return table_of(header, rows)


def scale_table(summary: dict) -> str:
    """How to read the scores."""
    rows = [
        [
            heading(summary, name),
            scale["metric"],
            f"{scale['lowest']:g} to {scale['highest']:g}",
            f"{scale['sampling_rate']} Hz",
            f"{scale['min_seconds']:.2g} s",
        ]
        for name, scale in summary["metrics"].items()
    ]
    return table_of(["score", "metric", "scale", "rate", "shortest clip"], rows)


def unscorable_table(summary: dict) -> str:
    """How many clips have no value of their own, and why."""
    rows = [
        [system, reason, str(count)]
        for system, row in summary["systems"].items()
        for reason, count in row["unscorable"].items()
    ]
    return table_of(["system", "reason", "clips"], rows)


def paper_table(summary: dict, test_set: str) -> str:
    """The published figures for a test set, in the columns of this run."""
    published = PAPER[test_set]
    names = [name for name in summary["metrics"] if name in next(iter(published.values()))]
    rows = [[system, *(f"{scores[name]:.2f}" for name in names)] for system, scores in published.items()]
    return table_of(["published", *(heading(summary, name) for name in names)], rows)


def footer(summary: dict) -> str:
    """What the numbers were made with."""
    environment = summary["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    systems = ", ".join(f"{name} {version}" for name, version in summary["versions"].items() if version != "-")
    made = f"Commit {', '.join(summary['commits'])}; {environment['machine']}; Python {environment['python']}"
    return f"{made}, {packages}. Systems: {systems or 'built in'}."


def is_contender(system: str) -> bool:
    """Whether a system enhances noisy recordings, rather than showing a bound."""
    return system != "noisy" and not system.startswith(("clean", "codec"))


def heading(summary: dict, name: str) -> str:
    """A score's label with an arrow to its better side."""
    scale = summary["metrics"][name]
    return f"{scale['label']} {'↑' if scale['higher_is_better'] else '↓'}"


def cell(interval: dict, signed: bool = False) -> str:
    """A mean with its interval.

    >>> cell({"mean": 2.5, "low": 2.0, "high": 3.0, "count": 9}), cell({"mean": None, "low": None, "high": None})
    ('2.50 [2.00, 3.00]', '–')
    """
    if interval["mean"] is None:
        return "–"
    form = "+.2f" if signed else ".2f"
    if interval["low"] is None:
        return f"{interval['mean']:{form}}"
    return f"{interval['mean']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"


def table_of(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its cells as they are."""
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)
