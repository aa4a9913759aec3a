"""Log-spectral distance over the full band."""

import librosa
import numpy as np

from evaluation_dacse.waveform_metric import Metric, Scale, WaveformMetric

FFT_SIZE = 2048
HOP_LENGTH = 512
POWER_FLOOR = 1e-8


def log_power(waveform: np.ndarray) -> np.ndarray:
    """log10 of the power spectrogram (bin, frame), floored."""
    spectrum = librosa.stft(waveform, n_fft=FFT_SIZE, hop_length=HOP_LENGTH)
    return np.log10(np.maximum(np.abs(spectrum) ** 2, POWER_FLOOR))


class LogSpectralDistance(WaveformMetric):
    """LSD: root mean square over frequency of the difference of log10 power spectra, averaged over frames; 0 is best.

    Full band at 44.1 kHz, in log10 of power (a Bel) as in the bandwidth extension papers; times 10 it is in dB.
    """

    about = Metric(  # one window; from its floor to full scale are 14 Bel
        {"lsd": Scale("LSD", 0, 14, False)}, sampling_rate=44100, min_seconds=2048 / 44100
    )
    cite = """\
@inproceedings{liu2022nvsr,
  title={Neural vocoder is all you need for speech super-resolution},
  author={Liu, Haohe and Choi, Woosung and Liu, Xubo and Kong, Qiuqiang and Tian, Qiao and Wang, DeLiang},
  booktitle={Interspeech},
  year={2022}
}"""

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        difference = log_power(prediction) - log_power(reference)
        return {"lsd": float(np.sqrt((difference**2).mean(axis=0)).mean())}
