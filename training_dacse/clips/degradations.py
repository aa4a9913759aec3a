"""What spoils clean speech: one frozen dataclass per degradation, called as `(waveform, sampling_rate, rng)`.

Each call returns `(waveform, parameters)`: a new float32 array (channel, sample) of the same length and the values
that were drawn. Everything random comes from `rng`; background sounds and room responses come from a source given at
construction. Default ranges are those of the released DAC-SE1 recipe where it has the degradation. Knows no file, no
token.

A new one is a class in this file under `@kind(...)`: the name by which recipes ask for it.
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, fields

import numpy as np
import soundfile
from numpy.random import Generator
from scipy.signal import butter, oaconvolve, sosfiltfilt

from processing_dacse.audio_dacse import resample

Parameters = dict[str, float | str | list]
Sound = Callable[
    [int, int, Generator], tuple[np.ndarray, str]
]  # (samples, rate, rng) -> (channel, sample) and its name
Room = Callable[[int, Generator], tuple[np.ndarray, str]]  # (rate, rng) -> impulse response (sample,) and its name

KINDS: dict[str, tuple[type["Degradation"], str | None]] = {}  # name in a recipe -> class, source it draws from

CONTAINERS = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}  # lossy format -> container, subtype
LOW_PASS_ORDER = 4  # applied twice
SPEECH_RMS = 0.05  # -26 dB: the level at which speech is usually compared (ITU-T P.830, section 7.2)
SLOPE_SECONDS = 0.01  # over which something begins or ends suddenly
CODEC_RATES = (8000, 12000, 16000, 24000, 48000)  # Hz; the ones both formats know


def rms(waveform: np.ndarray) -> float:
    """Root mean square over all channels and samples.

    >>> rms(np.array([[3.0, -3.0]]))
    3.0
    """
    return math.sqrt(np.mean(np.square(waveform, dtype=np.float64)))


def add_at_ratio(waveform: np.ndarray, other: np.ndarray, ratio_db: float) -> np.ndarray:
    """Adds `other`, scaled so that `waveform` stands `ratio_db` above it, or speech would where there is a pause.

    >>> add_at_ratio(np.ones((1, 4)), np.full((1, 4), 5.0), 20.0).round(3).tolist()
    [[1.1, 1.1, 1.1, 1.1]]
    >>> add_at_ratio(np.zeros((1, 4)), np.full((1, 4), 5.0), 20.0).round(3).tolist()
    [[0.005, 0.005, 0.005, 0.005]]
    """
    level = rms(other)
    gain = (rms(waveform) or SPEECH_RMS) / level * 10 ** (-ratio_db / 20) if level > 0 else 0.0
    return waveform + np.float32(gain) * other


def covered(num_samples: int, sampling_rate: int, start: float, stop: float) -> np.ndarray:
    """1 from `start` to `stop` in seconds, and 0 elsewhere, with short slopes outside of that, (sample,).

    >>> covered(6, 100, 0.02, 0.03).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """
    knots = np.array([start - SLOPE_SECONDS, start, stop, stop + SLOPE_SECONDS]) * sampling_rate
    return np.interp(np.arange(num_samples), knots, [0.0, 1.0, 1.0, 0.0]).astype(np.float32)


def checked_range(name: str, value, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """`value` as `(lowest, highest)`; raises ValueError unless it is two ascending numbers within `[low, high]`."""
    is_pair = isinstance(value, Iterable) and [isinstance(bound, int | float) for bound in value] == [True, True]
    if not is_pair or not low <= value[0] <= value[1] <= high:
        limits = [f"from {low}"] * (low > -math.inf) + [f"up to {high}"] * (high < math.inf)
        raise ValueError(f"{name} is {value}; give {' '.join(['[lowest, highest]', *limits])}")
    return tuple(value)


def checked_choice(name: str, value, known: Container) -> tuple:
    """`value` as a tuple; raises ValueError unless it is a list of one or more of `known`."""
    if not isinstance(value, list | tuple) or not value or any(one not in known for one in value):
        raise ValueError(f"{name} is {value}; give a list of some of {known}")
    return tuple(value)


def checked_probability(name: str, value) -> float:
    """`value`; raises ValueError unless it is a probability."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it is a probability within [0, 1]")
    return value


def span(low: float, high: float, at_least: float = -math.inf, at_most: float = math.inf) -> tuple[float, float]:
    """A field holding a range `(low, high)` to draw from uniformly, checked against `[at_least, at_most]`."""
    return field(default=(low, high), metadata={"check": checked_range, "limits": (at_least, at_most)})


def choice(values: Iterable, known: Container) -> tuple:
    """A field holding values to draw one of, each checked to be one of `known`."""
    return field(default=tuple(values), metadata={"check": checked_choice, "limits": (known,)})


@dataclass(frozen=True)
class Degradation(ABC):
    """Checks its fields; subclasses are called with `(waveform, sampling_rate, rng)`."""

    def __post_init__(self):
        for item in fields(self):
            if "check" in item.metadata:
                value = item.metadata["check"](item.name, getattr(self, item.name), *item.metadata["limits"])
                object.__setattr__(self, item.name, value)

    @abstractmethod
    def __call__(self, waveform: np.ndarray, sampling_rate: int, rng: Generator) -> tuple[np.ndarray, Parameters]:
        """Returns the degraded waveform and what was drawn."""


def kind(name: str, source: str | None = None) -> Callable[[type[Degradation]], type[Degradation]]:
    """Lets recipes ask for a degradation by `name`; its `source` field is then the recipe's source of that name.

    Raises:
        ValueError: there is another one of that name.
    """

    def register(degradation: type[Degradation]) -> type[Degradation]:
        known, _ = KINDS.get(name, (degradation, source))
        if known.__name__ != degradation.__name__:
            raise ValueError(
                f"{degradation.__name__} cannot be {name!r}, which is {known.__name__}; choose another name"
            )
        KINDS[name] = degradation, source
        return degradation

    return register


@kind("white_noise")
@dataclass(frozen=True)
class WhiteNoise(Degradation):
    """Gaussian noise at a signal-to-noise ratio."""

    snr_db: tuple[float, float] = span(5.0, 25.0)

    def __call__(self, waveform, sampling_rate, rng):
        snr_db = rng.uniform(*self.snr_db)
        noise = rng.standard_normal(waveform.shape, dtype=np.float32)
        return add_at_ratio(waveform, noise, snr_db), {"snr_db": snr_db}


@kind("natural_noise", source="noise")
@kind("music", source="music")
@dataclass(frozen=True)
class BackgroundSound(Degradation):
    """Noise, music or any other recording behind the speech, at a signal-to-noise ratio.

    With the probability `sudden` it begins and ends somewhere in the clip, and has that ratio in between.
    """

    source: Sound
    snr_db: tuple[float, float] = span(-5.0, 15.0)
    sudden: float = field(default=0.0, metadata={"check": checked_probability, "limits": ()})

    def __call__(self, waveform, sampling_rate, rng):
        snr_db = rng.uniform(*self.snr_db)
        sound, name = self.source(waveform.shape[-1], sampling_rate, rng)
        noisy, drawn = add_at_ratio(waveform, sound, snr_db), {"snr_db": snr_db, "sound": name}
        if self.sudden and rng.random() < self.sudden:
            start, stop = sorted(rng.uniform(0, waveform.shape[-1] / sampling_rate, 2).tolist())
            noisy = waveform + covered(waveform.shape[-1], sampling_rate, start, stop) * (noisy - waveform)
            drawn |= {"start_seconds": start, "stop_seconds": stop}
        return noisy, drawn


@kind("babble", source="speech")
@dataclass(frozen=True)
class Babble(Degradation):
    """Other speakers talking at once, each at the same level, at a signal-to-noise ratio of their sum."""

    source: Sound
    snr_db: tuple[float, float] = span(0.0, 15.0)
    speakers: tuple[int, int] = span(3, 8, at_least=1)

    def __call__(self, waveform, sampling_rate, rng):
        snr_db, speakers = rng.uniform(*self.snr_db), int(rng.integers(*self.speakers, endpoint=True))
        voices = [self.source(waveform.shape[-1], sampling_rate, rng)[0] for _ in range(speakers)]
        babble = sum(voice / max(rms(voice), 1e-8) for voice in voices)
        return add_at_ratio(waveform, babble, snr_db), {"snr_db": snr_db, "speakers": speakers}


@kind("reverberation", source="room")
@kind("small_room", source="small_room")
@dataclass(frozen=True)
class Reverberation(Degradation):
    """Convolution with a room impulse response, added below the dry signal and aligned with it at the direct sound."""

    source: Room
    dry_to_wet_db: tuple[float, float] = span(0.0, 15.0)

    def __call__(self, waveform, sampling_rate, rng):
        dry_to_wet_db = rng.uniform(*self.dry_to_wet_db)
        response, name = self.source(sampling_rate, rng)
        response = response[np.argmax(np.abs(response)) :][: waveform.shape[-1]]
        wet = oaconvolve(waveform, response[None], axes=-1)[:, : waveform.shape[-1]]
        return add_at_ratio(waveform, wet, dry_to_wet_db), {"dry_to_wet_db": dry_to_wet_db, "room": name}


@kind("packet_loss")
@dataclass(frozen=True)
class PacketLoss(Degradation):
    """Packets of one length per clip, each set to zero with one probability per clip."""

    packet_ms: tuple[float, float] = span(100.0, 200.0, at_least=1.0)
    drop_probability: tuple[float, float] = span(0.1, 0.3, at_least=0.0, at_most=1.0)

    def __call__(self, waveform, sampling_rate, rng):
        packet_ms, probability = rng.uniform(*self.packet_ms), rng.uniform(*self.drop_probability)
        length = round(packet_ms / 1000 * sampling_rate)
        lost = rng.random(math.ceil(waveform.shape[-1] / length)) < probability
        kept = np.repeat(~lost, length)[: waveform.shape[-1]]
        starts = (np.flatnonzero(lost) * length / sampling_rate).tolist()
        return waveform * kept, {"packet_ms": packet_ms, "drop_probability": probability, "lost_seconds": starts}


@kind("down_sampling")
@dataclass(frozen=True)
class DownSampling(Degradation):
    """To one of a few low sampling rates and back."""

    rates: tuple[int, ...] = choice(range(3500, 8001, 500), known=range(100, 48001))

    def __call__(self, waveform, sampling_rate, rng):
        rate = int(rng.choice(self.rates))
        narrow = resample(resample(waveform, sampling_rate, rate), rate, sampling_rate)
        return fit_length(narrow, waveform.shape[-1]), {"rate": rate}


@kind("low_pass")
@dataclass(frozen=True)
class LowPass(Degradation):
    """A zero-phase Butterworth low-pass, as of a muffled microphone."""

    cutoff_hz: tuple[float, float] = span(1500.0, 8000.0, at_least=20.0)

    def __call__(self, waveform, sampling_rate, rng):
        cutoff_hz = rng.uniform(*self.cutoff_hz)
        # forward and backward: the attenuation at the cut-off adds up to 6 dB
        sections = butter(LOW_PASS_ORDER, min(cutoff_hz, 0.49 * sampling_rate), fs=sampling_rate, output="sos")
        return sosfiltfilt(sections, waveform, axis=-1).astype(np.float32), {"cutoff_hz": cutoff_hz}


@kind("clipping")
@dataclass(frozen=True)
class Clipping(Degradation):
    """Peaks cut off at a threshold below the highest peak."""

    below_peak_db: tuple[float, float] = span(3.0, 20.0, at_least=0.0)

    def __call__(self, waveform, sampling_rate, rng):
        below_peak_db = rng.uniform(*self.below_peak_db)
        threshold = np.abs(waveform).max() * 10 ** (-below_peak_db / 20)
        return np.clip(waveform, -threshold, threshold), {"below_peak_db": below_peak_db}


@kind("lossy_codec")
@dataclass(frozen=True)
class LossyCodec(Degradation):
    """Through MP3 or Opus and back, at one of a few sampling rates; `compression` 0 is best, 1 is smallest."""

    formats: tuple[str, ...] = choice(CONTAINERS, known=tuple(CONTAINERS))
    rates: tuple[int, ...] = choice((16000, 24000, 48000), known=CODEC_RATES)
    compression: tuple[float, float] = span(0.6, 0.99, at_least=0.0, at_most=0.99)

    def __call__(self, waveform, sampling_rate, rng):
        name, rate = str(rng.choice(self.formats)), int(rng.choice(self.rates))
        compression = rng.uniform(*self.compression)
        container, subtype = CONTAINERS[name]
        buffer = io.BytesIO()
        coded = resample(waveform, sampling_rate, rate).T
        soundfile.write(buffer, coded, rate, subtype=subtype, format=container, compression_level=compression)
        buffer.seek(0)
        decoded = soundfile.read(buffer, dtype="float32", always_2d=True)[0].T
        restored = fit_length(resample(np.ascontiguousarray(decoded), rate, sampling_rate), waveform.shape[-1])
        return restored, {"format": name, "rate": rate, "compression": compression}


def fit_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """Cuts or fills with zeros at the end; two resamplings in a row may round to a length one off.

    >>> fit_length(np.ones((1, 2), np.float32), 3).tolist()
    [[1.0, 1.0, 0.0]]
    """
    missing = max(0, num_samples - waveform.shape[-1])
    return np.pad(waveform[:, :num_samples], ((0, 0), (0, missing)))
