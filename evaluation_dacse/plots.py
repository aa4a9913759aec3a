"""Plots of a run: bars per task, quality against speed, spectrograms before and after. Knows files, runs no system."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import NullFormatter  # noqa: E402

from .audio import read_mono  # noqa: E402
from .benchmark import audio_path  # noqa: E402
from .systems import BOUNDS  # noqa: E402

# one without a reference, which generated speech pleases, and two that ask what is left of the recording
PLOTTED = "dnsmos_ovrl", "pesq", "estoi"
FFT_SIZE = 1024
FLOOR_DB = -90


def draw_plots(folder: Path, summary: dict) -> list[Path]:
    """Draws every plot a run gives material for, into `plots/`; returns their paths."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    scores = [name for name in PLOTTED if name in summary["metrics"]] or list(summary["metrics"])
    return [
        draw_tasks(summary, scores, plots / "tasks.png"),
        draw_speed(summary, scores, plots / "speed.png"),
        draw_spectrograms(folder, summary, plots / "spectrograms.jpg"),
    ]


def draw_tasks(summary: dict, scores: list[str], path: Path) -> Path:
    """Bars of some scores per task and system, with their intervals, a row for each score."""
    tasks, systems = list(summary["test_set"]["tasks"]), list(summary["systems"])
    width = 0.8 / len(systems)
    size = (max(6, 1.2 * len(tasks)), 2.5 * len(scores) + 1)
    figure, grid = plt.subplots(len(scores), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for axes, score in zip(grid[:, 0], scores, strict=True):
        for number, system in enumerate(systems):
            places = np.arange(len(tasks)) + (number - (len(systems) - 1) / 2) * width
            draw_bars(
                axes, places, [summary["systems"][system]["tasks"][task][score] for task in tasks], width, system
            )
        axes.set_ylabel(summary["metrics"][score]["label"])
    grid[-1, 0].set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    grid[0, 0].legend(fontsize="small", ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return save(figure, path)


def draw_bars(axes, places: np.ndarray, intervals: list[dict], width: float, label: str) -> None:
    """The bars of a system; none where there is no mean, no whisker where there is no interval."""
    drawn = [(place, item) for place, item in zip(places, intervals, strict=True) if item["mean"] is not None]
    means = np.array([item["mean"] for _, item in drawn])
    ends = [[item[end] if item[end] is not None else item["mean"] for _, item in drawn] for end in ("low", "high")]
    whiskers = np.abs(np.array(ends) - means)
    axes.bar([place for place, _ in drawn], means, width, yerr=whiskers, label=label, capsize=2)


def draw_speed(summary: dict, scores: list[str], path: Path) -> Path:
    """Some scores against the real-time factor, a column for each; dotted lines are noisy and clean."""
    figure, grid = plt.subplots(1, len(scores), figsize=(4.5 * len(scores), 4), squeeze=False, layout="constrained")
    for axes, score in zip(grid[0], scores, strict=True):
        for system, row in summary["systems"].items():
            mean = row["overall"][score]["mean"]
            if mean is None:
                continue
            if system in BOUNDS:
                axes.axhline(mean, linestyle=":", color="gray")
                continue
            axes.scatter(row["real_time_factor"], mean)
            axes.annotate(system, (row["real_time_factor"], mean), fontsize="small")
        axes.set_xscale("log")
        axes.margins(x=0.25)  # room for the names
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("seconds of work per second of audio, one core")
        axes.set_ylabel(summary["metrics"][score]["label"])
    return save(figure, path)


def draw_spectrograms(folder: Path, summary: dict, path: Path) -> Path:
    """The first clip of every task (at most four), a row each, through every system."""
    clips = pandas.read_parquet(folder / "clips.parquet")
    examples = clips.groupby("task", sort=False)["clip"].min().to_dict()
    examples = {task: examples[task] for task in list(summary["test_set"]["tasks"])[:4]}
    systems = list(summary["systems"])
    figure, grid = plt.subplots(
        len(examples),
        len(systems),
        figsize=(2.6 * len(systems), 2 * len(examples)),
        squeeze=False,
        layout="constrained",
    )
    for row, (task, clip) in enumerate(examples.items()):
        for column, system in enumerate(systems):
            waveform, rate = read_mono(audio_path(folder, system, clip))
            axes = grid[row, column]
            axes.imshow(
                decibels(waveform),
                origin="lower",
                aspect="auto",
                vmin=FLOOR_DB,
                vmax=0,
                cmap="magma",
                extent=(0, len(waveform) / rate, 0, rate / 2000),
            )
            axes.set_title(system if row == 0 else "", fontsize="small")
            axes.set_ylabel(f"{task}\nkHz" if column == 0 else "", fontsize="small")
            axes.tick_params(labelsize="x-small")
    return save(figure, path)


def decibels(waveform: np.ndarray) -> np.ndarray:
    """Spectrogram (bin, frame) in dB below its maximum."""
    padded = np.pad(waveform, (0, FFT_SIZE))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[:: FFT_SIZE // 4] * np.hanning(FFT_SIZE)
    spectrum = np.abs(np.fft.rfft(frames)).T
    return 20 * np.log10(np.maximum(spectrum / max(spectrum.max(), 1e-12), 10 ** (FLOOR_DB / 20)))


def save(figure, path: Path) -> Path:
    """Writes a figure and lets go of it."""
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
