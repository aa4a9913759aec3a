"""Everything a call can ask for, checked before any audio is read. Knows numbers and names: no audio, no model."""

import dataclasses
import difflib
import enum
import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

# Every window is answered whole, and once.
REFUSED = {"max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_return_sequences"}
REFUSED |= {"return_dict_in_generate", "forced_ids", "row_seeds", "inputs", "custom_generate", "streamer"}
CHOICES = ("confidence", "dnsmos")
HIGHEST_RATE = 768_000  # Hz, of any audio file
# Arguments of `generate` that are numbers: whether whole, their range, and what to give.
SHARE = (False, 0, 1, "a number from 0 to 1")
NUMBERS = dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), SHARE) | {
    "temperature": (False, 1e-6, math.inf, "a number above 0"),
    "repetition_penalty": (False, 1e-6, math.inf, "a number above 0"),
    "max_time": (False, 0, math.inf, "a number of seconds"),
    "length_penalty": (False, -math.inf, math.inf, "a number"),
    "top_k": (True, 0, 2**31, "ids"),
    "no_repeat_ngram_size": (True, 0, 2**31, "ids"),
    "prompt_lookup_num_tokens": (True, 1, 2**31, "ids, at least 1"),
    "num_assistant_tokens": (True, 1, 2**31, "ids, at least 1"),
    "num_beams": (True, 1, 2**31, "beams, at least 1"),
}
FLAGS = {"do_sample", "use_cache"}
# Those that are objects.
KINDS = {
    "generation_config": (GenerationConfig, "a GenerationConfig"),
    "logits_processor": (Sequence, "a list of logits processors"),
    "stopping_criteria": (Sequence, "a list of stopping criteria"),
    "assistant_model": (nn.Module, "a model of the same ids"),
    "prefix_allowed_tokens_fn": (Callable, "a function of a row's number and its ids"),
}


class Own(enum.Enum):
    """What `adapter` is where a call does not say: whatever is active in the model as it was given."""

    ADAPTERS = "the model's own"


@dataclass(frozen=True)
class EnhanceOptions:
    """What a call asks for. Numbers may be of any type that is one (numpy's, or text); None is the default.

    Attributes:
        adapter: The name of an adapter the model holds or of a folder under the model's `adapters/`, a directory, or a
            Hub id; None for the base weights. Left out, the model enhances as it was given.
        window_seconds: Audio per prompt; by default 4.0, or what the model's context holds if that is less, or the one
            length it was trained on.
        overlap_seconds: Between neighbouring windows; by default 0.2, at most a quarter of the window.
        regions: (start, stop) in seconds: enhance only there. Outside, the model is held to the noisy tokens and the
            input's samples come back; linear fades of 10 ms lie just inside the borders.
        strength: From 0, the input, to 1, the enhanced audio.
        output_sampling_rate: In Hz, or "input"; by default the model's own.
        keep_recording: The enhanced audio is the recording, each band of its spectrum lowered as the model lowered it,
            with generated sound only where the recording has none (lost packets, missing bands); False is all that the
            model generated and nothing else. By default as the model's processor says.
        minimum_risk: Greedy decoding takes the code nearest to what the model expects instead of the likeliest; by
            default as the model's processor says.
        return_confidence: Add, for each frame, the mean probability of its tokens among the codes of their codebooks:
            1 where the model had no choice, nan where a criterion stopped it before.
        candidates: Answers drawn to each window, of which the best is kept; above 1 ids are always drawn. The first is
            what one candidate gives with the same seed.
        choose: Which is the best: the one of the highest "confidence" (mean log-probability of its tokens), of the
            highest "dnsmos" (overall quality by a network, of `dacse[eval]`), or of the highest score by a function of
            waveforms float32 (candidate, sample) and their sampling rate that gives (candidate,) numbers.
        seed: Makes sampling repeatable: what is drawn follows from it, the place of the recording in the call, the
            channel, the window and the candidate, and from nothing else. Without it, every call draws anew.
        batch_size: Windows enhanced together, over channels and recordings; by default as many as suit device and
            model. A generator is read that far ahead.
        sampling_rate: Of bare arrays, in Hz.
        progress: Called with (frames done, frames or None) of a recording as its windows finish; frames are estimated
            until the recording has been read.
        generate: What goes to `model.generate`: do_sample, temperature, num_beams, ...

    Raises:
        ValueError: If a value has no meaning; the message says which one, and what would.
    """

    adapter: str | os.PathLike | None | Own = Own.ADAPTERS
    window_seconds: float | None = None
    overlap_seconds: float | None = None
    regions: Sequence[tuple[float, float]] | None = None
    strength: float = 1.0
    output_sampling_rate: int | str | None = None
    keep_recording: bool | None = None
    minimum_risk: bool | None = None
    return_confidence: bool = False
    candidates: int = 1
    choose: str | Callable[[np.ndarray, int], Sequence[float]] = "confidence"
    seed: int | None = None
    batch_size: int | None = None
    sampling_rate: int | None = None
    progress: Callable[[int, int | None], None] | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        set_to = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        for name in ("window_seconds", "overlap_seconds"):
            set_to(name, _number(name, getattr(self, name), 0, math.inf, "a number of seconds"))
        strength = _number("strength", self.strength, 0, 1, "a number from 0 (the input) to 1 (enhanced)")
        set_to("strength", 1.0 if strength is None else strength)
        for name in ("keep_recording", "minimum_risk", "return_confidence"):
            set_to(name, _flag(name, getattr(self, name)))
        set_to("return_confidence", bool(self.return_confidence))
        if not (isinstance(self.output_sampling_rate, str) and self.output_sampling_rate == "input"):
            rate = _whole("output_sampling_rate", self.output_sampling_rate, 1, HIGHEST_RATE, "Hz, 'input' or None")
            set_to("output_sampling_rate", rate)
        set_to("sampling_rate", _whole("sampling_rate", self.sampling_rate, 1, HIGHEST_RATE, "Hz"))
        set_to("batch_size", _whole("batch_size", self.batch_size, 1, 2**31, "windows, at least 1"))
        candidates = _whole("candidates", self.candidates, 1, 2**31, "answers to a window, at least 1")
        set_to("candidates", 1 if candidates is None else candidates)
        if not callable(self.choose) and not (isinstance(self.choose, str) and self.choose in CHOICES):
            raise ValueError(f"choose is {self.choose!r}; give {', '.join(map(repr, CHOICES))} or a function")
        set_to("seed", _whole("seed", self.seed, -(2**63), 2**64 - 1, "any number of 64 bits"))
        set_to("regions", check_regions(self.regions))
        if not isinstance(self.adapter, (str, os.PathLike, Own, type(None))):
            raise ValueError(f"adapter is {self.adapter!r}; give a name, a directory, a Hub id or None")
        if self.progress is not None and not callable(self.progress):
            raise ValueError(f"progress is {self.progress!r}; give a function of (frames done, frames)")
        set_to("generate", _check_generate(self.generate))
        if self.candidates > 1:
            self._check_drawn()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "EnhanceOptions":
        """Options from the keyword arguments of a call: what is no option goes to `generate`.

        >>> EnhanceOptions.from_parameters({"strength": "0.5", "do_sample": True}).generate
        {'do_sample': True}

        Raises:
            ValueError: As above, or if a name is neither an option nor an argument of `generate`.
        """
        names = {option.name for option in dataclasses.fields(cls)} - {"generate"}
        generate = parameters.get("generate_kwargs") or {}
        if not isinstance(generate, Mapping):
            raise ValueError(f"generate_kwargs is {generate!r}; give a dict of arguments of generate")
        if misplaced := sorted(names & generate.keys()):
            raise ValueError(
                f"{misplaced[0]!r} is no argument of generate: give it to the call, not in generate_kwargs"
            )
        generate = dict(generate)
        generate |= {name: value for name, value in parameters.items() if name not in names | {"generate_kwargs"}}
        known = names | _generate_names()
        for name in generate:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names))}"
                raise ValueError(f"{name!r} is neither an option nor an argument of generate; {remedy}")
        return cls(**{name: parameters[name] for name in names & parameters.keys()}, generate=generate)

    @property
    def untried(self) -> dict[str, Any]:
        """Arguments of `generate` of which the library alone can say whether they have a meaning."""
        return {
            name: value for name, value in self.generate.items() if name not in NUMBERS.keys() | KINDS.keys() | FLAGS
        }

    @property
    def draws(self) -> bool:
        """Whether ids are drawn."""
        config = self.generate.get("generation_config")
        return self.candidates > 1 or bool(self.generate.get("do_sample", getattr(config, "do_sample", False)))

    @property
    def is_assisted(self) -> bool:
        """Whether ids are drafted by something else, which the library does for one row at a time."""
        return any(self.generate.get(name) is not None for name in ("assistant_model", "prompt_lookup_num_tokens"))

    def _check_drawn(self) -> None:
        """Refuses what answers that are drawn go without."""
        reasons = {
            "do_sample=False": self.generate.get("do_sample") is False,
            "num_beams": (self.generate.get("num_beams") or 1) > 1,
            "an assistant": self.is_assisted,
        }
        if found := [reason for reason, is_asked in reasons.items() if is_asked]:
            raise ValueError(f"candidates is {self.candidates}, and they are drawn: leave it out, or {found[0]}")


def check_regions(regions: Sequence[tuple[float, float]] | None) -> list[tuple[float, float]] | None:
    """Regions in seconds, sorted, touching ones merged.

    Raises:
        ValueError: If one is not a pair of seconds with 0 <= start < stop.

    >>> check_regions([(3.0, 4.0), (1.0, 2.0), (1.5, 2.5)])
    [(1.0, 2.5), (3.0, 4.0)]
    """
    if regions is None:
        return None
    remedy = "(start, stop) in seconds with 0 <= start < stop"
    if isinstance(regions, (str, bytes, Mapping)) or not isinstance(regions, (Sequence, np.ndarray)):
        raise ValueError(f"regions is {regions!r}; give {remedy} for each of them")
    pairs = []
    for region in regions:
        if isinstance(region, (str, bytes)) or not hasattr(region, "__len__") or len(region) != 2:
            raise ValueError(f"region {region!r} is no pair; give {remedy}")
        start, stop = (_number(f"a border of region {tuple(region)}", value, 0, math.inf, remedy) for value in region)
        if start is None or stop is None or start >= stop:
            raise ValueError(f"region {tuple(region)} does not end after its start; give {remedy}")
        pairs.append((start, stop))
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(pairs):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _check_generate(generate: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`, numbers as numbers, without those left at None."""
    if refused := sorted(REFUSED & generate.keys()):
        raise ValueError(f"{refused[0]} is not for enhancement, whose windows are answered whole, and once")
    checked = {name: value for name, value in generate.items() if value is not None}
    for name in checked.keys() & KINDS.keys():
        kind, remedy = KINDS[name]
        if not isinstance(checked[name], kind):
            raise ValueError(f"{name} is {checked[name]!r}; give {remedy}")
    for name in checked.keys() & NUMBERS.keys():
        is_whole, low, high, remedy = NUMBERS[name]
        checked[name] = (_whole if is_whole else _number)(name, generate[name], low, high, remedy)
    for name in checked.keys() & FLAGS:
        checked[name] = _flag(name, generate[name])
    if checked.get("do_sample") and (
        (checked.get("num_beams") or 1) > 1 or checked.get("assistant_model") is not None
    ):
        raise ValueError("do_sample draws one id a token for each window: leave it out, or num_beams and assistants")
    return checked


def _generate_names() -> set[str]:
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    return settings | (inspect.signature(GenerationMixin.generate).parameters.keys() - {"self", "kwargs"})


def _number(name: str, value: Any, low: float, high: float, remedy: str) -> float | None:
    """A finite number in low..high, or None for None."""
    if value is None:
        return None
    try:
        number = float(value.strip() if isinstance(value, str) else value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, np.bool_)) or not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} is {value!r}; give {remedy}")
    return number


def _whole(name: str, value: Any, low: int, high: int, unit: str) -> int | None:
    """A whole number in low..high, or None for None."""
    remedy = f"a whole number of {unit}" if "number" not in unit else unit
    if isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_)):
        number = int(value)  # a float would round large ones
        if not low <= number <= high:
            raise ValueError(f"{name} is {value!r}; give {remedy}")
        return number
    number = _number(name, value, low, high, remedy)
    if number is not None and number != int(number):
        raise ValueError(f"{name} is {value!r}; give {remedy}")
    return None if number is None else int(number)


def _flag(name: str, value: Any) -> bool | None:
    """True or False, also as 1 or 0, or None for None."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, numbers.Integral) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{name} is {value!r}; give True or False")
