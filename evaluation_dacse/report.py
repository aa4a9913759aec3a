"""Turns a run's summary into what people read: Markdown tables and plots. Knows no audio."""

import json
import math
from collections.abc import Callable
from pathlib import Path

HIFITTS_2 = "dnsmos_ovrl dnsmos_sig dnsmos_bak dnsmos_p808 pesq speech_bert_score plcmos wer".split()
PAPER = {  # the figures of arXiv 2510.02187: name of the test set -> system -> score
    "hifitts-2": {
        "noisy": dict(zip(HIFITTS_2, [2.44, 3.18, 2.79, 3.11, 2.63, 0.89, 3.84, 0.25], strict=True)),
        "clean": dict(zip(HIFITTS_2, [3.03, 3.41, 3.80, 3.64, 4.50, 1.00, 4.41, 0.00], strict=True)),
        "LLaSE-G1": dict(zip(HIFITTS_2, [2.90, 3.24, 3.83, 3.47, 1.98, 0.86, 4.19, 0.27], strict=True)),
        "VoiceFixer": dict(zip(HIFITTS_2, [2.92, 3.21, 3.90, 3.43, 1.85, 0.81, 4.29, 0.45], strict=True)),
        "DAC-SE1": dict(zip(HIFITTS_2, [2.95, 3.33, 3.70, 3.56, 2.46, 0.89, 4.35, 0.25], strict=True)),
    },
    "plc-2022": {"LLaSE-G1": {"plcmos": 4.30}, "DAC-SE1": {"plcmos": 4.34}},
}
DIGEST = "dnsmos_ovrl dnsmos_sig dnsmos_bak plcmos pesq estoi mel_distance".split()


def write_report(folder: str | Path) -> Path:
    """Writes `report.md` and `plots/` into a run's folder.

    Returns:
        the path of `report.md`.
    """
    from .plots import draw_plots

    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text())
    plots = draw_plots(folder, summary)
    report = folder / "report.md"
    report.write_text(markdown(summary, [plot.relative_to(folder) for plot in plots]))
    return report


def markdown(summary: dict, plots: list[Path] = ()) -> str:
    """The whole report."""
    test_set = summary["test_set"]
    parts = [
        f"# {test_set['name']}",
        f"{test_set['clips']} clips, checksum `{test_set['checksum']}`. Means over clips with 95 % intervals "
        "(percentile bootstrap over clips). Arrows point to the better side; the best of the enhancers is bold.",
        "## All clips",
        score_table(summary, "overall"),
        "## Difference from noisy",
        "Paired by clip. Differences whose interval excludes zero are in bold.",
        difference_table(summary),
        "## Time and memory",
        cost_table(summary),
    ]
    if any(row["unscorable"] for row in summary["systems"].values()):
        parts += ["## Left out", unscorable_table(summary)]
    for task in test_set["tasks"]:
        parts += [f"## {task} ({test_set['tasks'][task]} clips)", score_table(summary, task)]
    for name in PAPER:
        if test_set["name"].startswith(name):
            parts += ["## Published figures (arXiv 2510.02187)", paper_table(summary, name)]
    parts += [f"![{plot.stem}]({plot.as_posix()})" for plot in plots]
    parts.append(footer(summary))
    return "\n\n".join(parts) + "\n"


def score_table(summary: dict, part: str) -> str:
    """Means and intervals of every system, for all clips (`overall`) or one task."""
    return table_of(*scores_of(summary, part, list(summary["metrics"]), cell))


def digest_table(summary: dict) -> str:
    """Means over all clips by some of the scores, and the work that each system takes: short enough for a README."""
    names = [name for name in DIGEST if name in summary["metrics"]]
    header, rows = scores_of(summary, "overall", names, lambda score: cell({**score, "low": None}))
    work = (f"{row['real_time_factor']:.2f}" for row in summary["systems"].values())
    return table_of([*header, "work per second ↓"], [[*row, seconds] for row, seconds in zip(rows, work, strict=True)])


def scores_of(
    summary: dict, part: str, names: list[str], form: Callable[[dict], str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of scores; the best mean of the systems that hear the noisy recording is bold."""
    tables = {
        system: row["overall"] if part == "overall" else row["tasks"][part]
        for system, row in summary["systems"].items()
    }
    best = {}
    for name in names:
        sign = 1 if summary["metrics"][name]["higher_is_better"] else -1
        means = {system: table[name]["mean"] for system, table in tables.items() if is_contender(system)}
        best[name] = max((sign * mean for mean in means.values() if mean is not None), default=math.nan) * sign
    rows = []
    for system, table in tables.items():
        cells = []
        for name in names:
            text = form(table[name])
            cells.append(f"**{text}**" if is_contender(system) and table[name]["mean"] == best[name] else text)
        rows.append([system, *cells])
    return ["system", *(heading(summary, name) for name in names)], rows


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
            sure = difference and difference["low"] is not None and difference["low"] * difference["high"] > 0
            cells.append(f"**{text}**" if sure else text)
        rows.append([system, *cells])
    return table_of(["system", *(heading(summary, name) for name in names)], rows)


def cost_table(summary: dict) -> str:
    """Real-time factor and peak memory."""
    rows = [
        [system, f"{row['real_time_factor']:.3f}", f"{row['peak_memory_mb']:.0f} MB"]
        for system, row in summary["systems"].items()
    ]
    return table_of(["system", "seconds of work per second of audio, one core", "peak memory of the process"], rows)


def unscorable_table(summary: dict) -> str:
    """How many clips have no value, and why."""
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
    return f"{environment['machine']}; Python {environment['python']}, {packages}. Systems: {systems or 'built in'}."


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
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
