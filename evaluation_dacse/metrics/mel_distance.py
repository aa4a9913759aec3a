"""The mel distance codecs are judged by."""

import librosa
import numpy as np

from evaluation_dacse.waveform_metric import Metric, Scale, WaveformMetric

RESOLUTIONS = ((2048, 150), (512, 80))  # (window length, mel bands)
AMPLITUDE_FLOOR = 1e-5


def mel_spectrogram(waveform: np.ndarray, sampling_rate: int, window: int, bands: int) -> np.ndarray:
    """Mel amplitudes (band, frame)."""
    amplitudes = np.abs(librosa.stft(waveform, n_fft=window, hop_length=window // 4, pad_mode="reflect"))
    return librosa.filters.mel(sr=sampling_rate, n_fft=window, n_mels=bands) @ amplitudes


class MelDistance(WaveformMetric):
    """Mel distance: mean absolute difference of mel spectrograms, of amplitudes plus of log10 power, 0 is best.

    Summed over two resolutions at 44.1 kHz, with the settings of the DAC codec's evaluation.
    """

    about = Metric(  # one window; from its floor to full scale are 12 Bel in each resolution
        {"mel_distance": Scale("Mel distance", 0, 24, False)}, sampling_rate=44100, min_seconds=2048 / 44100
    )
    cite = """\
@inproceedings{kumar2023dac,
  title={High-fidelity audio compression with improved {RVQGAN}},
  author={Kumar, Rithesh and Seetharaman, Prem and Luebs, Alejandro and Kumar, Ishaan and Kumar, Kundan},
  booktitle={NeurIPS},
  year={2023}
}"""

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        distance = 0.0
        for window, bands in RESOLUTIONS:
            x, y = (mel_spectrogram(clip, self.about.sampling_rate, window, bands) for clip in (prediction, reference))
            distance += np.abs(x - y).mean()
            log_x, log_y = (2 * np.log10(np.maximum(mel, AMPLITUDE_FLOOR)) for mel in (x, y))
            distance += np.abs(log_x - log_y).mean()
        return {"mel_distance": float(distance)}
