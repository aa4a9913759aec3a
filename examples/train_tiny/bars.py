"""Holds the packaged model to bars that were set before it was trained. Knows evaluations and the pipeline.

Most bars are read off the summary of `dacse evaluate`; what the model makes of silence, noise and music, what it
leaves alone between lost packets, and its speed are measured here.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from settings import HERE, Run

from evaluation_dacse.metrics import load_metric
from hub_upload.facts import Goal
from hub_upload.stage import open_checkpoint
from pipeline_dacse import AudioEnhancementPipeline
from processing_dacse.audio_dacse import load_audio, resample
from training_dacse.clips.sources import find_clips

RATE = 44100
NOTHING = 1e-3  # RMS below which nothing is heard: -60 dB
CHECKED = 5  # noises listened to


@dataclass(frozen=True)
class Bar:
    """One figure that must not fall below (or rise above) a bound."""

    what: str
    bound: float
    figure: Callable[["Scores"], float]
    reach: float | None = None  # what one would like to see
    lower_is_better: bool = False

    def goal(self, scores: "Scores") -> Goal:
        """The bar with what was reached."""
        figure = self.figure(scores)
        passed = figure <= self.bound if self.lower_is_better else figure >= self.bound
        sign = "≤" if self.lower_is_better else "≥"
        wish = f" (reach for {self.reach:g})" if self.reach is not None else ""
        return Goal(self.what, f"{sign} {self.bound:g}{wish}", f"{figure:.3g}", bool(passed))


class Scores:
    """Means out of a run's `summary.json`.

    Args:
        summary: its content.
        package: the model's name in it.
        measured: figures that were measured beside the run, by name.
    """

    def __init__(self, summary: dict, package: str, measured: dict[str, float]):
        self.systems, self.measured = summary["systems"], measured
        ours = {"codec": f"codec:{package}", "dacse": f"dacse:{package}"}
        self.names = ours | {"noisy": "noisy", "deepfilternet": "deepfilternet"}

    def mean(self, system: str, task: str, score: str) -> float:
        """Over the clips of a task."""
        return self.systems[self.names[system]]["tasks"][task][score]["mean"]

    def over(self, other: str, task: str, score: str) -> float:
        """How far the model stands above another system."""
        return self.mean("dacse", task, score) - self.mean(other, task, score)


def noise_bars(what: str, task: str) -> tuple[Bar, ...]:
    """What noise asks for: nothing lost of the speech, and as little of the noise left as the best rival leaves."""
    rival = "DeepFilterNet 3"
    return (
        Bar(f"{what}: STOI over noisy", 0.0, lambda s: s.over("noisy", task, "stoi")),
        Bar(f"{what}: PESQ over noisy", 0.0, lambda s: s.over("noisy", task, "pesq")),
        Bar(f"{what}: DNSMOS OVRL over {rival}", -0.15, lambda s: s.over("deepfilternet", task, "dnsmos_ovrl"), 0.0),
        Bar(f"{what}: DNSMOS BAK over {rival}", -0.15, lambda s: s.over("deepfilternet", task, "dnsmos_bak"), 0.0),
    )


BARS = (
    Bar("codec alone, clean speech: STOI", 0.90, lambda s: s.mean("codec", "clean", "stoi"), 0.94),
    Bar("codec alone, clean speech: PESQ", 2.0, lambda s: s.mean("codec", "clean", "pesq"), 2.6),
    Bar(
        "codec alone, clean speech: DNSMOS OVRL over the recordings",
        -0.15,
        lambda s: s.mean("codec", "clean", "dnsmos_ovrl") - s.mean("noisy", "clean", "dnsmos_ovrl"),
        -0.05,
    ),
    Bar("codec alone, clean speech: PLCMOS", 3.0, lambda s: s.mean("codec", "clean", "plcmos"), 3.6),
    *noise_bars("natural noise", "natural_noise"),
    *noise_bars("white noise", "white_noise"),
    Bar("packet loss: PLCMOS over noisy", 0.4, lambda s: s.over("noisy", "packet_loss", "plcmos")),
    Bar("packet loss: STOI over noisy", 0.05, lambda s: s.over("noisy", "packet_loss", "stoi")),
    Bar("packet loss with `regions`: PLCMOS over noisy", 0.4, lambda s: s.measured["plcmos_with_regions"]),
    Bar(
        "packet loss with `regions`: largest change of a sample outside",
        1e-6,
        lambda s: s.measured["outside_regions"],
        lower_is_better=True,
    ),
    Bar(
        "down-sampled to 4-8 kHz: log-spectral distance, of the noisy one's",
        0.5,
        lambda s: s.mean("dacse", "down_sampling", "lsd") / s.mean("noisy", "down_sampling", "lsd"),
        0.35,
        lower_is_better=True,
    ),
    Bar("reverberation: DNSMOS OVRL over noisy", 0.15, lambda s: s.over("noisy", "reverberation", "dnsmos_ovrl"), 0.3),
    Bar("reverberation: STOI over noisy", 0.0, lambda s: s.over("noisy", "reverberation", "stoi")),
    Bar("clean in: PESQ", 3.5, lambda s: s.mean("dacse", "clean", "pesq"), 4.2),
    Bar("silence in: dB above -60 dBFS", 0.0, lambda s: s.measured["silence_db"], lower_is_better=True),
    Bar("pure noise in: dB above the input", 0.0, lambda s: s.measured["noise_db"], lower_is_better=True),
    Bar("music in: dB above the input", 0.0, lambda s: s.measured["music_db"], lower_is_better=True),
    Bar("real-time factor of a long file", 1.0, lambda s: s.measured["real_time_factor"], 0.6, lower_is_better=True),
    Bar("weights: MB", 40.0, lambda s: s.measured["weights_mb"], 25.0, lower_is_better=True),
)


def evaluate(run: Run) -> None:
    """`package` -> `evaluation`: the test clips, the example recordings, and `bars.json`."""
    wanted, package = run.settings["evaluate"], run.package_name
    recipe = ["--recipe", HERE / "evaluate_recipe.yaml", "--split", wanted["split"], "--seed", wanted["seed"]]
    recipe += ["--clips-per-task", wanted["clips_per_task"]] + (
        ["--where", wanted["where"]] if wanted["where"] else []
    )
    sources = {
        "test": (
            [run.data, *recipe],
            ["noisy", "clean", f"codec:{package}", f"generated:{package}", f"dacse:{package}", "deepfilternet"],
            [],
        ),
        "examples": ([HERE.parent / "audio"], ["noisy", f"dacse:{package}"], ["-m", "dnsmos"]),
    }
    for name, (source, systems, metrics) in sources.items():
        options = ["-t", *source, "-s", ",".join(systems), *metrics, "-o", run.output / "evaluation" / name]
        options += ["-p", wanted["processes"], "--batch-size", wanted["batch_size"], "--device", run.device]
        subprocess.run([sys.executable, "-m", "dacse", "evaluate", *map(str, options)], check=True)
    summary = json.loads((run.output / "evaluation/test/summary.json").read_text())
    scores = Scores(summary, package, measure(run))
    goals = [asdict(bar.goal(scores)) for bar in BARS]
    (run.output / "evaluation/bars.json").write_text(json.dumps(goals, indent=2, ensure_ascii=False) + "\n")
    for goal in goals:
        print(f"{'passed' if goal['passed'] else 'MISSED'}  {goal['what']}: {goal['reached']}, {goal['goal']}")


def measure(run: Run) -> dict[str, float]:
    """What no metric over clips tells."""
    wanted, test = run.settings["evaluate"], run.output / "evaluation/test/test_set"
    enhance = open_checkpoint(str(run.package))
    seconds = wanted["speed_seconds"]
    speech = np.resize(np.concatenate([read(path) for path in sorted((test / "noisy").iterdir())]), seconds * RATE)
    started = time.perf_counter()
    enhance({"array": speech, "sampling_rate": RATE}, batch_size=wanted["batch_size"])
    elapsed = time.perf_counter() - started
    noises = find_clips(run.data, f"kind == 'noise' and split == '{wanted['split']}'")
    every = max(1, len(noises) // CHECKED)
    sounds = [read(path)[: 5 * RATE] for path in noises.files[::every][:CHECKED]]
    return {
        "real_time_factor": elapsed / seconds,
        "weights_mb": sum(path.stat().st_size for path in run.package.rglob("*.safetensors")) / 1e6,
        **with_regions(enhance, test),
        "silence_db": decibels(rms(enhanced(enhance, np.zeros(3 * RATE, np.float32))) / NOTHING),
        "noise_db": max(decibels(rms(enhanced(enhance, sound)) / rms(sound)) for sound in sounds),
        "music_db": decibels(rms(enhanced(enhance, music())) / rms(music())),
    }


def with_regions(enhance: AudioEnhancementPipeline, test: Path) -> dict[str, float]:
    """Where lost packets alone are enhanced: what PLCMOS gains, and the largest change of a sample outside of them."""
    clips = [clip for clip in json.loads((test / "clips.json").read_text())["clips"] if clip["task"] == "packet_loss"]
    plcmos, gains, changes = load_metric("plcmos"), [], []
    for clip in clips:
        waveform, lost = read(test / f"noisy/{clip['name']}.flac"), clip["parameters"]["packet_loss"]
        seconds = len(waveform) / RATE
        regions = [(start, start + lost["packet_ms"] / 1000) for start in lost["lost_seconds"]]
        regions = [(start, min(stop, seconds)) for start, stop in regions if start < seconds]
        repaired = enhanced(enhance, waveform, regions=regions) if regions else waveform
        outside = np.ones(len(waveform), bool)
        for start, stop in regions:
            outside[round(start * RATE) : round(stop * RATE) + 1] = False
        changes.append(np.abs(repaired - waveform)[outside].max(initial=0.0))
        before, after = (
            plcmos.measure({"array": sound, "sampling_rate": RATE})[0]["plcmos"] for sound in (waveform, repaired)
        )
        gains.append(after - before)
    return {"plcmos_with_regions": float(np.nanmean(gains)), "outside_regions": float(max(changes))}


def music() -> np.ndarray:
    """Four bars of plucked chords, five seconds (sample,): music that anybody can make again."""
    seconds = np.arange(round(1.25 * RATE)) / RATE
    chords = ((220.0, 277.2, 329.6), (174.6, 220.0, 261.6), (130.8, 164.8, 196.0), (196.0, 246.9, 293.7))
    bars = [
        sum(
            np.sin(2 * np.pi * harmonic * pitch * seconds) / harmonic * np.exp(-3 * seconds)
            for pitch in chord
            for harmonic in range(1, 6)
        )
        for chord in chords
    ]
    return (0.1 * np.concatenate(bars)).astype(np.float32)


def read(path: Path) -> np.ndarray:
    """A recording as mono (sample,) at 44.1 kHz."""
    waveform, rate = load_audio(str(path))
    return resample(waveform, rate, RATE).mean(0)


def enhanced(enhance: AudioEnhancementPipeline, waveform: np.ndarray, **parameters) -> np.ndarray:
    """The waveform enhanced, at its own rate."""
    given = {"array": waveform, "sampling_rate": RATE}
    return enhance(given, output_sampling_rate="input", batch_size=8, **parameters)["audio"]


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))


def decibels(ratio: float) -> float:
    """
    >>> decibels(10.0)
    20.0
    """
    return float(20 * np.log10(max(ratio, 1e-6)))
