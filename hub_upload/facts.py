"""What a publisher states about a checkpoint in `card.yaml` beside it: data, licences, compute, limits, scores.

Knows no card and no weights.
"""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

FACTS_NAME = "card.yaml"
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class DataSource:
    """One source of training data."""

    name: str
    licence: str
    id: str | None = None  # of a data set on the Hub


@dataclass(frozen=True)
class Sample:
    """A recording to be heard before, after, and as other systems leave it."""

    file: str  # the recording before, relative to the checkpoint
    title: str  # what is heard, by whom, under which licence
    rivals: dict[str, str] = field(default_factory=dict)  # by system: the file of what it made of the recording

    @property
    def before(self) -> str:
        """Where a repository holds the recording.

        >>> Sample("audio/rain.wav", "Rain").before, Sample("samples/rain.noisy.flac", "Rain").before
        ('samples/rain.noisy.flac', 'samples/rain.noisy.flac')
        """
        return f"{SAMPLES_FOLDER}/{Path(self.file).stem.removesuffix('.noisy')}.noisy.flac"

    @property
    def after(self) -> str:
        """Where a repository holds it enhanced."""
        return self.before.replace(".noisy.", ".enhanced.")

    def of_rival(self, system: str) -> str:
        """Where a repository holds what another system made of it.

        >>> Sample("rain.wav", "Rain", {"RNNoise 0.4": "r.wav"}).of_rival("RNNoise 0.4")
        'samples/rain.rnnoise-0-4.flac'
        """
        return self.before.replace(".noisy.", f".{re.sub(r'[^a-z0-9]+', '-', system.lower())}.")

    @property
    def staged(self) -> "Sample":
        """The sample as a repository states it."""
        return Sample(self.before, self.title, {system: self.of_rival(system) for system in self.rivals})


@dataclass(frozen=True)
class Evaluation:
    """A run of `dacse evaluate`."""

    run: str  # its folder, relative to the checkpoint
    system: str  # the name these weights have in it


@dataclass(frozen=True)
class Goal:
    """What a checkpoint was to reach, set before it was trained, and what it reached."""

    what: str
    goal: str
    reached: str
    passed: bool


@dataclass(frozen=True)
class HeldOutLoss:
    """What an adapter does to the loss on one task, in nats per token."""

    task: str
    base: float
    adapter: float


PARTS = {
    "training_data": DataSource,
    "samples": Sample,
    "evaluations": Evaluation,
    "goals": Goal,
    "losses": HeldOutLoss,
}


@dataclass(frozen=True)
class Facts:
    """What no file of a checkpoint can tell: the content of `card.yaml` beside it, every field optional."""

    license: str | None = None  # an identifier of the Hub, such as mit or cc-by-4.0
    base_model: str | None = None  # the model on the Hub that these weights come from
    language: list[str] = field(default_factory=list)  # ISO 639 codes of the speech
    training_data: list[DataSource] = field(default_factory=list)  # of a data set: its sources
    compute: str | None = None  # hardware and hours of the training
    limits: list[str] = field(default_factory=list)  # of this model, beside those of every model of its kind
    samples: list[Sample] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    task: str | None = None  # of an adapter: what it was made for
    losses: list[HeldOutLoss] = field(default_factory=list)  # of an adapter

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        """Reads `card.yaml` in `folder`; without the file nothing is stated.

        Raises:
            ValueError: the file has a field that no card shows, or lacks one that is needed.
        """
        path = folder / FACTS_NAME
        if not path.exists():
            return cls()
        given = yaml.safe_load(path.read_text()) or {}
        try:
            parts = {name: [part(**each) for each in given.pop(name, [])] for name, part in PARTS.items()}
            return cls(**given, **parts)
        except TypeError as error:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"{path}: {error}; its fields are {known}") from error

    def write(self, folder: Path) -> None:
        """Writes `card.yaml`, if anything is stated."""
        stated = {key: value for key, value in asdict(self).items() if value}
        if not stated:
            return
        (folder / FACTS_NAME).write_text(yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
