"""What the player shows of one enhancement: both sides in pieces, loudness, spectrograms, confidence, scores.

Knows no model and no page; `player.js` reads what `Comparison.state` returns.
"""

import importlib.util
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import soundfile
import soxr
from PIL import Image
from recording import UploadedRecording

PICTURE_COLUMNS = 900
FFT_SAMPLES = 1024
DYNAMIC_RANGE_DB = 80
CONFIDENCE_POINTS = 300
DNSMOS_RATE = 16000
DNSMOS_SECONDS = 30  # it scores every second anew; the first half minute tells enough
DNSMOS_NAMES = {"ovrl_mos": "Overall", "sig_mos": "Speech", "bak_mos": "Background", "p808_mos": "Listeners (P.808)"}
COLOURS = (
    (13, 12, 34),
    (58, 22, 104),
    (138, 38, 129),
    (214, 69, 108),
    (251, 136, 97),
    (254, 206, 143),
    (252, 253, 220),
)


class Comparison:
    """One take: a recording before and after. Grows with the pieces that `add` takes, and is complete after `finish`.

    Args:
        folder: where its files go; a new, empty directory.
        recording: what was given.
        label: of the settings it was made with, in words.
        rate: of the enhanced audio, in Hz.
        frame_rate: frames per second of the confidence.
    """

    def __init__(self, folder: Path, recording: UploadedRecording, label: str, rate: int, frame_rate: float):
        self.folder = folder
        self.rate = rate
        self.frame_rate = frame_rate
        self.warnings = recording.warnings
        self.before = resample(recording.waveform, recording.sampling_rate, rate)
        self.after = np.empty_like(self.before)
        self.made = 0  # samples
        self.confidence: list[np.ndarray] = []
        self.download = folder / f"{Path(recording.name).stem}.enhanced.wav"
        self.shown: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "recording": recording.digest,  # takes of the same one can be compared
            "label": label,
            "sampling_rate": rate,
            "seconds": self.before.shape[1] / rate,
            "pieces": [],
            "loudness": {"before": None, "after": None},
            "confidence": {"seconds": 0, "values": []},
            "pictures": None,
            "download": None,
            "done": False,
        }

    def add(self, audio: np.ndarray, confidence: np.ndarray) -> None:
        """Takes the next piece of enhanced audio (channel, sample) and its confidence (channel, frame).

        Either may be ahead of the other, so that a piece may hold nothing of one of them.
        """
        self.confidence.append(confidence.mean(0))
        frames = np.concatenate(self.confidence)
        seconds = min(len(frames) / self.frame_rate, self.shown["seconds"])
        self.shown["confidence"] = {"seconds": seconds, "values": thin(frames)}
        if not audio.shape[1]:
            return
        start, stop = self.made, self.made + audio.shape[1]
        self.after[:, start:stop] = audio
        self.made = stop
        files = {}
        for side, waveform in (("before", self.before), ("after", self.after)):
            files[side] = str(self.folder / f"{side}_{len(self.confidence)}.flac")
            soundfile.write(files[side], waveform[:, start:stop].T, self.rate)
        piece = {"start": start / self.rate, "seconds": audio.shape[1] / self.rate, **files}
        self.shown["pieces"] = [*self.shown["pieces"], piece]
        if start == 0:
            self._measure()

    def finish(self) -> None:
        """Writes the download and the pictures, and measures the loudness of the whole."""
        soundfile.write(self.download, self.after.T, self.rate, subtype="PCM_24")
        self._measure()
        self._draw()
        self.shown |= {"download": str(self.download), "done": True}

    def excerpts(self) -> list[np.ndarray]:
        """Of both sides, what is scored: (sample,) at `DNSMOS_RATE`."""
        parts = (side[:, : DNSMOS_SECONDS * self.rate].mean(0, keepdims=True) for side in (self.before, self.after))
        return [resample(part, self.rate, DNSMOS_RATE)[0].clip(-1, 1) for part in parts]

    def state(self) -> dict[str, Any]:
        """What the player shows now."""
        return dict(self.shown)

    def _measure(self) -> None:
        sides = {"before": self.before, "after": self.after}
        self.shown["loudness"] = {name: loudness(side[:, : self.made], self.rate) for name, side in sides.items()}

    def _draw(self) -> None:
        levels = {"before": spectrogram(self.before), "after": spectrogram(self.after)}
        top = max(level.max() for level in levels.values())  # one scale for both
        self.shown["pictures"] = {"top": f"{self.rate / 2000:g} kHz"}
        for side, level in levels.items():
            path = self.folder / f"{side}.png"
            picture(level, top).save(path)
            self.shown["pictures"][side] = str(path)


def resample(waveform: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """(channel, sample) at another rate: exactly `round(samples * rate_out / rate_in)` samples.

    >>> resample(np.zeros((2, 100), np.float32), 16000, 44100).shape
    (2, 276)
    """
    samples = round(waveform.shape[1] * rate_out / rate_in)
    resampled = soxr.resample(waveform.T, rate_in, rate_out, "HQ").T[:, :samples]
    return np.pad(resampled, ((0, 0), (0, samples - resampled.shape[1])))


def loudness(waveform: np.ndarray, rate: int) -> float | None:
    """Integrated loudness of a waveform (channel, sample) in LUFS (ITU-R BS.1770-4); None for silence.

    >>> sine = np.sin(2 * np.pi * 997 * np.arange(48000) / 48000)[None]
    >>> print(f"{loudness(sine, 48000):.0f}")
    -3
    """
    block = min(0.4, 0.99 * waveform.shape[1] / rate)  # the standard's 400 ms, or what there is
    found = pyloudnorm.Meter(rate, block_size=block).integrated_loudness(waveform.T)
    return float(found) if np.isfinite(found) else None


def spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Power in dB (bin, column) of a waveform (channel, sample); every sample counts, however few the columns."""
    columns = min(PICTURE_COLUMNS, 1 + waveform.shape[1] // 128)
    padded = np.pad(waveform, ((0, 0), (FFT_SAMPLES // 2, FFT_SAMPLES)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES, axis=1)
    edges = np.linspace(0, waveform.shape[1], columns + 1).astype(int)
    window = np.hanning(FFT_SAMPLES).astype(np.float32)
    power = np.empty((FFT_SAMPLES // 2 + 1, columns))
    for column, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        spectra = np.fft.rfft(frames[:, start : max(stop, start + 1) : FFT_SAMPLES // 2] * window)
        power[:, column] = (np.abs(spectra) ** 2).mean((0, 1))
    return 10 * np.log10(power + 1e-12)


def picture(levels: np.ndarray, top: float) -> Image.Image:
    """A spectrogram in dB (bin, column) as an image with the low pitches at its foot, dark `DYNAMIC_RANGE_DB` below
    `top`."""
    shades = np.clip((levels - top) / DYNAMIC_RANGE_DB + 1, 0, 1) * 255
    image = Image.fromarray(shades[::-1].astype(np.uint8), mode="P")
    anchors = np.linspace(0, 255, len(COLOURS))
    palette = np.stack([np.interp(np.arange(256), anchors, channel) for channel in zip(*COLOURS, strict=True)], axis=1)
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def thin(values: np.ndarray) -> list[float]:
    """At most `CONFIDENCE_POINTS` means of neighbouring values.

    >>> len(thin(np.ones(1000))), thin(np.ones(0))
    (300, [])
    """
    if not len(values):
        return []
    parts = np.array_split(values, min(len(values), CONFIDENCE_POINTS))
    return [round(float(part.mean()), 3) for part in parts]


def score(excerpts: list[np.ndarray]) -> list[tuple[str, float, float]]:
    """DNSMOS of both sides, by name; none where the `speechmos` package is missing."""
    if not importlib.util.find_spec("speechmos"):
        return []
    from speechmos import dnsmos  # takes seconds to import

    before, after = (dnsmos.run(excerpt, DNSMOS_RATE) for excerpt in excerpts)
    return [(name, float(before[key]), float(after[key])) for key, name in DNSMOS_NAMES.items()]
