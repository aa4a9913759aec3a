"""What all metrics have in common: what each says of itself, one resampling, the worst value for silence, means."""

import inspect
import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np

from .audio import FAINT, resample, rms

SILENCE = 10 ** (-80 / 20)  # highest peak, full scale 1.0, that still counts as silence: three steps of 16-bit audio
MOS = {"lowest": 1, "highest": 5, "higher_is_better": True}  # of a `Scale`: mean opinion scores


@dataclass(frozen=True)
class Scale:
    """How to read one score.

    Values beyond the ends of the scale count as its ends, so that no clip, however bad, is better left unscored.
    """

    label: str
    lowest: float
    highest: float
    higher_is_better: bool

    @property
    def worst(self) -> float:
        """What an output that cannot be scored is given.

        >>> Scale("STOI", 0, 1, True).worst, Scale("WER", 0, 1, False).worst
        (0, 1)
        """
        return self.lowest if self.higher_is_better else self.highest


@dataclass(frozen=True)
class Metric:
    """The row of a metric in the table of all: what is known of it before a clip is scored."""

    scales: dict[str, Scale]  # by the name of the score
    sampling_rate: int  # Hz; every clip is resampled to it
    min_seconds: float  # shorter clips are left out, for every system
    uses_reference: bool = True
    same_length: bool = True  # prediction and reference are compared sample by sample
    model: str | None = None  # what it listens with on the Hub, unless another is named
    model_file: str = "config.json"  # in the repository: whether the model is on this machine


class Unscorable(ValueError):
    """Raised for a clip that has no honest value; its message is the reason that is counted."""


class TooShort(Unscorable):
    """Raised for a clip shorter than what a metric looks at."""


class WaveformMetric(evaluate.Metric, ABC):
    """Scores mono clips one by one: neither their order, their batches nor the number of processes changes a value.

    Subclasses bring their row of the table and implement `score`; their docstring is the description that `evaluate`
    shows. One that listens with a model takes `model` and `device` when it is made.

    Attributes:
        about: rate, scales and needs.
        cite: BibTeX, or the name of the standard.
    """

    about: Metric
    cite: str

    @abstractmethod
    def score(self, prediction: np.ndarray, reference: np.ndarray | None = None) -> dict[str, float]:
        """Scores a clip, float32 (sample,) at the metric's rate; raises `Unscorable` where no value is honest."""

    def measure(self, prediction: dict, reference: dict | None = None) -> tuple[dict[str, float], str | None]:
        """Scores `{"array", "sampling_rate"}` against another, and says why where there is nothing to score.

        A reference that cannot be scored leaves the clip out: all values are NaN. A prediction that cannot gets the
        worst value of each scale. A metric without a reference takes the clip it is laid beside, if there is one, to
        tell the two cases apart.

        Raises:
            ValueError: not mono, without a reference that is needed, or of another length than the reference.
        """
        if reference is None and self.about.uses_reference:
            raise ValueError(f"{type(self).__name__} needs a reference; give the clean recording")
        scales = self.about.scales
        try:
            target = self.prepare_reference(reference)
        except Unscorable as reason:
            return dict.fromkeys(scales, math.nan), f"reference {reason}: left out"
        try:
            clip = self.prepare(prediction, target)
            values = self.score(clip, target) if self.about.uses_reference else self.score(clip)
            if not all(-math.inf <= value <= math.inf for value in values.values()):
                raise Unscorable("has no number for a score")
        except Unscorable as reason:
            alone = reference is None
            if isinstance(reason, TooShort) if alone else self.is_unscorable(target):
                return dict.fromkeys(scales, math.nan), f"reference {reason}: left out"
            return {name: scale.worst for name, scale in scales.items()}, f"output {reason}: worst value"
        return {
            name: min(max(value, scales[name].lowest), scales[name].highest) for name, value in values.items()
        }, None

    def is_unscorable(self, target: np.ndarray) -> bool:
        """Whether a reference cannot even be scored against itself."""
        if not self.about.same_length:
            return False
        try:
            self.score(target, target)
        except Unscorable:
            return True
        return False

    def prepare_reference(self, reference: dict | None) -> np.ndarray | None:
        """The reference as `score` takes it."""
        return None if reference is None else self.prepare(reference)

    def prepare(self, clip: dict, beside: np.ndarray | None = None) -> np.ndarray:
        """A clip as float32 (sample,) at the metric's rate.

        Raises:
            Unscorable: silent, alone or `beside` the reference, or too short.
            ValueError: not mono, or of another length than what it is compared with sample by sample.
        """
        array, rate = np.asarray(clip["array"], dtype=np.float32), clip["sampling_rate"]
        if array.ndim != 1:
            raise ValueError(f"clip of shape {array.shape}; metrics score mono clips (sample,), channel by channel")
        if len(array) < self.about.min_seconds * rate:
            raise TooShort(f"shorter than {self.about.min_seconds:.3g} s")
        if np.abs(array).max(initial=0.0) < SILENCE:
            raise Unscorable("silent")
        array = resample(array, rate, self.about.sampling_rate)
        if not isinstance(beside, np.ndarray):
            return array
        if rms(array) < FAINT * rms(beside):
            raise Unscorable("silent")
        if self.about.uses_reference and self.about.same_length and len(array) != len(beside):
            raise ValueError(
                f"prediction of {len(array)} and reference of {len(beside)} samples at {self.about.sampling_rate} Hz; "
                f"{type(self).__name__} compares clips of one length"
            )
        return array

    def _info(self) -> evaluate.MetricInfo:
        audio = {"array": datasets.List(datasets.Value("float32")), "sampling_rate": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)),
            citation=self.cite,
            inputs_description='Lists of {"array": mono samples within [-1, 1], "sampling_rate": Hz}.',
            features=self.features_of(audio),
        )

    def features_of(self, audio: dict) -> datasets.Features | list[datasets.Features]:
        """What goes in, as `evaluate` types it."""
        columns = ("predictions", "references") if self.about.uses_reference else ("predictions",)
        return datasets.Features({column: audio for column in columns})

    def _compute(self, *, predictions, references=None) -> dict:
        if references is None:
            references = [None] * len(predictions)
        clips = [self.measure(*pair) for pair in zip(predictions, references, strict=True)]
        result = {}
        for name in self.about.scales:
            values = np.array([scores[name] for scores, _ in clips])
            result[name] = float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
            result[f"{name}_per_clip"] = values.tolist()
        module = type(self).__module__.split(".")[-1]
        result[f"{module}_unscorable"] = dict(Counter(reason for _, reason in clips if reason))
        return result
