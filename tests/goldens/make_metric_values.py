"""Writes metric_values.json: scores of a speech recording and spoilt copies of it by the metrics' original packages.

    python tests/goldens/make_metric_values.py

SI-SDR, LSD and mel distance have no package here; they are written out anew, with loops, from their definitions.
"""

import json
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.signal import get_window

RECORDING = Path(__file__).parents[2] / "examples" / "audio" / "inaugural_1961.wav"


def clips() -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """A stretch of the recording, spoilt copies of it, and the rate: 44.1 kHz, that of the full-band metrics.

    It lasts 2.3 s: DNSMOS repeats it to 9.2 s, which hold one window of its own.
    """
    waveform, rate = soundfile.read(RECORDING, dtype="float32", start=24000, frames=55200)
    clean = soxr.resample(waveform, rate, 44100, quality="HQ")
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal(len(clean)).astype(np.float32)
    lost = clean * (np.arange(len(clean)) % 22050 > 4410)
    return clean, {"noise": clean + noise, "loss": lost, "quiet": 0.3 * clean + 0.1 * noise}, 44100


def short_time_spectra(x: np.ndarray, size: int, hop: int, pad: str) -> np.ndarray:
    """Magnitudes (frame, bin), frame by frame, of windows centred on multiples of the hop."""
    padded = np.pad(x.astype(np.float64), size // 2, mode=pad)
    window = get_window("hann", size)
    starts = range(0, len(padded) - size + 1, hop)
    return np.array([np.abs(np.fft.rfft(window * padded[start : start + size])) for start in starts])


def si_sdr(x: np.ndarray, y: np.ndarray) -> float:
    """Le Roux et al. 2019, equation 3, on signals without their mean."""
    x, y = (signal.astype(np.float64) - signal.astype(np.float64).mean() for signal in (x, y))
    scale = sum(x * y) / sum(y * y)
    return 10 * np.log10(sum((scale * y) ** 2) / sum((scale * y - x) ** 2))


def lsd(x: np.ndarray, y: np.ndarray) -> float:
    """Root mean square over bins of the log10 power difference, mean over frames."""
    spectra = [np.maximum(short_time_spectra(signal, 2048, 512, "constant") ** 2, 1e-8) for signal in (x, y)]
    return np.mean([np.sqrt(np.mean((np.log10(a) - np.log10(b)) ** 2)) for a, b in zip(*spectra, strict=True)])


def mel_distance(x: np.ndarray, y: np.ndarray, rate: int) -> float:
    """As `MelSpectrogramLoss` of descript-audio-codec with its default settings."""
    from librosa.filters import mel

    total = 0.0
    for size, bands in ((2048, 150), (512, 80)):
        bank = mel(sr=rate, n_fft=size, n_mels=bands)
        a, b = (short_time_spectra(signal, size, size // 4, "reflect") @ bank.T for signal in (x, y))
        total += np.mean(np.abs(a - b))
        total += np.mean(np.abs(np.log10(np.maximum(a, 1e-5) ** 2) - np.log10(np.maximum(b, 1e-5) ** 2)))
    return total


def main() -> None:
    import jiwer
    from pesq import pesq
    from pocketsphinx import Decoder, get_model_path
    from pystoi import stoi
    from speechmos import dnsmos, plcmos

    clean, spoilt, rate = clips()
    reference = soxr.resample(clean, rate, 16000, quality="HQ")
    values = {}
    phones = {"hmm": get_model_path("en-us/en-us"), "allphone": get_model_path("en-us/en-us-phone.lm.bin")}

    def heard(waveform: np.ndarray) -> str:
        decoder = Decoder(**phones, lm=None, dict=None, lw=2.0, beam=1e-10, pbeam=1e-10, loglevel="FATAL")
        decoder.start_utt()
        decoder.process_raw((waveform * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        return " ".join(part.word for part in decoder.seg() if part.word.isalpha() and part.word != "SIL")

    for name, clip in spoilt.items():
        narrow = soxr.resample(clip, rate, 16000, quality="HQ")
        mos = dnsmos.run(np.clip(narrow, -1, 1), 16000)
        np.random.seed(0)
        values[name] = {
            **{f"dnsmos_{key}": mos[f"{key}_mos"] for key in ("ovrl", "sig", "bak", "p808")},
            "plcmos": plcmos.run(np.clip(narrow, -1, 1), 16000)["plcmos"],
            "pesq": pesq(16000, reference, narrow, "wb"),
            "stoi": stoi(reference, narrow, 16000),
            "estoi": stoi(reference, narrow, 16000, extended=True),
            "per": jiwer.wer(heard(reference), heard(narrow)),
            "si_sdr": si_sdr(clip, clean),
            "lsd": lsd(clip, clean),
            "mel_distance": mel_distance(clip, clean, rate),
        }
        values[name] = {key: float(value) for key, value in values[name].items()}
    Path(__file__).with_name("metric_values.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
