"""Which degradations a training clip meets, how often and how strongly, read from a YAML file.

Knows the degradations by name and the order they are applied in; knows no file but its own and no token.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import yaml
from numpy.random import Generator

from .degradations import KINDS, Degradation, Parameters, checked_probability, checked_range, covered

PAUSE_SECONDS = (3.0, 15.0)  # of which a clip may hold a part, or nothing else


@dataclass(frozen=True)
class Step:
    """One degradation and how often it is applied."""

    kind: str
    degradation: Degradation
    probability: float = 1.0

    @property
    def source(self) -> str | None:
        """Name of the source it draws from."""
        return KINDS[self.kind][1]


@dataclass(frozen=True)
class Task:
    """Degradations applied in order, each with its probability; `otherwise` when none of them was drawn."""

    weight: float
    steps: tuple[Step, ...] = ()
    otherwise: Step | None = None

    def degrade(self, waveform: np.ndarray, sampling_rate: int, rng: Generator) -> tuple[np.ndarray, Parameters]:
        """Returns the degraded waveform and the parameters of each degradation that was applied, by kind."""
        parameters = {}
        for step in self.steps:
            if rng.random() < step.probability:
                waveform, parameters[step.kind] = step.degradation(waveform, sampling_rate, rng)
        if not parameters and self.otherwise and rng.random() < self.otherwise.probability:
            waveform, parameters[self.otherwise.kind] = self.otherwise.degradation(waveform, sampling_rate, rng)
        return waveform.astype(np.float32), parameters


class Recipe:
    """The tasks of a training mix.

    Args:
        description: the content of a recipe YAML: `clip_seconds: [shortest, longest]`, `level_db: [lowest, highest]`
            (gain drawn for the clean clip, 0 dB when left out), `pause` (probability that some or all of a clean clip
            is silence, 0 when left out) and `tasks`, each with a `weight`, `steps` and perhaps `otherwise`. A step
            names its `kind`, its `probability` (1 when left out) and any range of the degradation.
        sources: what the degradations draw from, by name (`noise`, `music`, `speech`, `room`, `small_room`).

    Raises:
        ValueError: an unknown key or kind, an impossible range or probability, a source that is missing.
    """

    def __init__(self, description: Mapping, sources: Mapping | None = None):
        if not isinstance(description, Mapping) or not isinstance(description.get("tasks"), Mapping):
            raise ValueError("recipe names no tasks; give at least one under 'tasks', as `name: {steps: [...]}`")
        unknown = set(description) - {"clip_seconds", "level_db", "pause", "tasks"}
        if unknown:
            raise ValueError(
                f"recipe has unknown keys {sorted(unknown)}; known are clip_seconds, level_db, pause and tasks"
            )
        self.description, self.sources = dict(description), sources or {}
        self.clip_seconds = checked_range("clip_seconds", description.get("clip_seconds", (1.0, 4.0)), low=0.01)
        self.level_db = checked_range("level_db", description.get("level_db", (0.0, 0.0)))
        self.pause = checked_probability("pause", description.get("pause", 0.0))
        self.tasks = {name: read_task(name, task or {}, self.sources) for name, task in description["tasks"].items()}
        weights = np.array([task.weight for task in self.tasks.values()], dtype=np.float64)
        if not weights.size or weights.min() < 0 or weights.sum() == 0:
            raise ValueError(
                f"recipe: task weights are {weights.tolist()}; none may be negative and one must be positive"
            )
        self.probabilities = weights / weights.sum()

    @classmethod
    def from_yaml(
        cls, path: str | Path, sources: Mapping | None = None, tasks: Sequence[str] | None = None
    ) -> "Recipe":
        """Reads a recipe, or some of its tasks; errors name the file."""
        try:
            recipe = cls(yaml.safe_load(Path(path).read_text()), sources)
            return recipe.only(*tasks) if tasks else recipe
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def used_sources(self) -> dict:
        """The sources that some task draws from, by name."""
        steps = [step for task in self.tasks.values() for step in (*task.steps, task.otherwise) if step]
        return {name: self.sources[name] for name in sorted({step.source for step in steps} - {None})}

    @property
    def fingerprint(self) -> str:
        """Changes with any task, range or probability; the same for the same recipe written differently."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]

    def only(self, *tasks: str) -> "Recipe":
        """This recipe reduced to some of its tasks."""
        for task in tasks:
            if task not in self.tasks:
                raise ValueError(f"unknown task {task!r}; the recipe has {', '.join(self.tasks)}")
        kept = {task: self.description["tasks"][task] for task in tasks}
        return Recipe({**self.description, "tasks": kept}, self.sources)

    def degrade(
        self, clean: np.ndarray, sampling_rate: int, rng: Generator, task: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, str, Parameters]:
        """Makes one training pair from a clean waveform (channel, sample); the task is drawn unless it is given.

        Returns:
            noisy and clean waveforms at one gain (lowered where the noisy one would pass full scale), the task and
            its parameters, by kind of degradation.
        """
        task = task or list(self.tasks)[rng.choice(len(self.tasks), p=self.probabilities)]
        clean = clean * np.float32(10 ** (rng.uniform(*self.level_db) / 20))
        if self.pause and rng.random() < self.pause:
            clean = with_pause(clean, sampling_rate, rng)
        noisy, parameters = self.tasks[task].degrade(clean, sampling_rate, rng)
        gain = np.float32(1 / max(1.0, np.abs(noisy).max(), np.abs(clean).max()))
        return noisy * gain, clean * gain, task, parameters


def with_pause(waveform: np.ndarray, sampling_rate: int, rng: Generator) -> np.ndarray:
    """A waveform (channel, sample) without what a pause that begins somewhere before its end covers of it."""
    pause = rng.uniform(*PAUSE_SECONDS)
    start = rng.uniform(-pause, waveform.shape[-1] / sampling_rate)
    return waveform * (1 - covered(waveform.shape[-1], sampling_rate, start, start + pause))


def lowest_snr(parameters: Parameters) -> float:
    """The lowest signal-to-noise (or dry-to-wet) ratio among the degradations of a clip; infinite when there is none.

    >>> lowest_snr({"white_noise": {"snr_db": 7.0}, "packet_loss": {"packet_ms": 100.0}})
    7.0
    """
    ratios = [step.get("snr_db", step.get("dry_to_wet_db", np.inf)) for step in parameters.values()]
    return float(min(ratios, default=np.inf))


def read_task(name: str, description: Mapping, sources: Mapping) -> Task:
    """Builds a task from its part of the YAML."""
    if not isinstance(description, Mapping) or not isinstance(description.get("steps", []), list | tuple):
        raise ValueError(f"task {name!r} is {description}; give it as `steps: [{{kind: white_noise}}]`")
    unknown = set(description) - {"weight", "steps", "otherwise"}
    if unknown:
        raise ValueError(f"task {name!r} has unknown keys {sorted(unknown)}; known are weight, steps and otherwise")
    weight = description.get("weight", 1.0)
    if not isinstance(weight, int | float):
        raise ValueError(f"task {name!r}: weight is {weight!r}; give a number")
    steps = tuple(read_step(name, step, sources) for step in description.get("steps", ()))
    otherwise = read_step(name, description["otherwise"], sources) if "otherwise" in description else None
    return Task(float(weight), steps, otherwise)


def read_step(task: str, description: Mapping, sources: Mapping) -> Step:
    """Builds one step of a task from its part of the YAML."""
    if not isinstance(description, Mapping):
        raise ValueError(f"task {task!r}: a step is {description!r}; give it as `{{kind: white_noise}}`")
    options = dict(description)
    kind, probability = options.pop("kind", None), options.pop("probability", 1.0)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"task {task!r}: unknown degradation {kind!r}; known are {', '.join(KINDS)}")
    degradation, source = KINDS[kind]
    unknown = set(options) - {item.name for item in fields(degradation) if item.name != "source"}
    if unknown:
        known = ", ".join(item.name for item in fields(degradation) if item.name != "source")
        raise ValueError(f"task {task!r}, {kind}: unknown option {sorted(unknown)[0]!r}; known are {known}")
    if source:
        if source not in sources:
            raise ValueError(f"task {task!r}: {kind} draws from a {source} source and none was given")
        options["source"] = sources[source]
    try:
        return Step(kind, degradation(**options), checked_probability("probability", probability))
    except ValueError as error:
        raise ValueError(f"task {task!r}, {kind}: {error}") from error
