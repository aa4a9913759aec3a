"""Scale-invariant signal-to-distortion ratio."""

import numpy as np

from evaluation_dacse.waveform_metric import Metric, Scale, Unscorable, WaveformMetric


def si_sdr(prediction: np.ndarray, reference: np.ndarray) -> float:
    """10 log10 of the power of the scaled reference over that of the rest, in dB, both without their mean.

    Infinite where either is nothing.

    >>> round(si_sdr(np.array([2.0, -2.0, 0.2, -0.2]), np.array([1.0, -1.0, 0.0, 0.0])), 6)
    20.0
    """
    prediction = prediction.astype(np.float64) - prediction.mean(dtype=np.float64)
    reference = reference.astype(np.float64) - reference.mean(dtype=np.float64)
    if not reference.any() or not prediction.any():
        raise Unscorable("constant")
    target = (prediction @ reference) / (reference @ reference) * reference
    rest = prediction - target
    with np.errstate(divide="ignore"):  # the prediction is the reference, or has nothing of it
        return float(10 * np.log10(target @ target / (rest @ rest)))


class SiSdr(WaveformMetric):
    """SI-SDR: dB by which the reference stands above all else in the prediction, whatever its gain; higher is better.

    It compares waveforms sample by sample: what a generative system renders anew, however clean, scores low.
    """

    about = Metric({"si_sdr": Scale("SI-SDR (dB)", -60, 60, True)}, sampling_rate=44100, min_seconds=0.01)
    cite = """\
@inproceedings{leroux2019sdr,
  title={{SDR} - half-baked or well done?},
  author={Le Roux, Jonathan and Wisdom, Scott and Erdogan, Hakan and Hershey, John R},
  booktitle={ICASSP},
  year={2019}
}"""

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        return {"si_sdr": si_sdr(prediction, reference)}
