"""What every metric has in common: clips in, one resampling, honest gaps, means out. Knows no particular measure."""

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
import soxr

SILENCE = 10 ** (-80 / 20)  # highest peak, full scale 1.0, that still counts as silence: three steps of 16-bit audio


class Unscorable(ValueError):
    """Raised for a clip that has no honest value; its message is the reason that is counted."""


@dataclass(frozen=True)
class Scale:
    """How to read one score."""

    label: str
    lowest: float
    highest: float
    higher_is_better: bool


class WaveformMetric(evaluate.Metric, ABC):
    """Scores mono clips one by one: neither their order, their batches nor the number of processes changes a value.

    Subclasses say what they need and implement `score`; their docstring is the description `evaluate` shows.

    Attributes:
        sampling_rate: Hz; every clip is resampled to it once (soxr, HQ).
        min_seconds: shorter clips have no value.
        uses_reference: whether a clean reference is needed.
        same_length: whether prediction and reference must last equally long.
        scales: how to read each score, by name.
        cite: BibTeX, or the name of the standard.
    """

    sampling_rate: int
    min_seconds: float
    uses_reference = True
    same_length = True
    scales: dict[str, Scale]
    cite: str

    @abstractmethod
    def score(self, prediction: np.ndarray, reference: np.ndarray | None = None) -> dict[str, float]:
        """Scores a clip, float32 (sample,) at `sampling_rate`; raises `Unscorable` where there is no honest value."""

    def measure(self, prediction: dict, reference: dict | None = None) -> tuple[dict[str, float], str | None]:
        """Scores `{"array", "sampling_rate"}` against another; returns the values and why they are NaN, if they are.

        Raises:
            ValueError: not mono, without a reference that is needed, or of another length than the reference.
        """
        try:
            clips = [self.prepare(prediction, "prediction")]
            if self.uses_reference:
                clips.append(self.prepare_reference(reference))
                if self.same_length and len(clips[0]) != len(clips[1]):
                    raise ValueError(
                        f"prediction of {len(clips[0])} and reference of {len(clips[1])} samples at "
                        f"{self.sampling_rate} Hz; {type(self).__name__} compares clips of one length"
                    )
            return self.score(*clips), None
        except Unscorable as reason:
            return dict.fromkeys(self.scales, float("nan")), str(reason)

    def prepare_reference(self, reference: dict) -> np.ndarray:
        """The reference as `score` takes it."""
        return self.prepare(reference, "reference")

    def prepare(self, clip: dict, role: str) -> np.ndarray:
        """A clip as float32 (sample,) at `sampling_rate`; raises `Unscorable` if it is silent or too short."""
        array, rate = np.asarray(clip["array"], dtype=np.float32), clip["sampling_rate"]
        if array.ndim != 1:
            raise ValueError(f"{role} of shape {array.shape}; metrics score mono clips (sample,), channel by channel")
        if len(array) < self.min_seconds * rate:
            raise Unscorable(f"{role} shorter than {self.min_seconds} s")
        if np.abs(array).max(initial=0.0) < SILENCE:
            raise Unscorable(f"silent {role}")
        return soxr.resample(array, rate, self.sampling_rate, quality="HQ")

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
        columns = ("predictions", "references") if self.uses_reference else ("predictions",)
        return datasets.Features({column: audio for column in columns})

    def _compute(self, *, predictions, references=None) -> dict:
        if references is None:
            references = [None] * len(predictions)
        clips = [self.measure(*pair) for pair in zip(predictions, references, strict=True)]
        result = {}
        for name in self.scales:
            values = np.array([scores[name] for scores, _ in clips])
            result[name] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
            result[f"{name}_per_clip"] = values.tolist()
        module = type(self).__module__.split(".")[-1]
        result[f"{module}_unscorable"] = dict(Counter(reason for _, reason in clips if reason))
        return result
