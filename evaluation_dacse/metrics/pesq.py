"""PESQ, wide-band."""

import numpy as np
from pesq import BufferTooShortError, NoUtterancesError, pesq

from .waveform_metric import Scale, Unscorable, WaveformMetric


class Pesq(WaveformMetric):
    """PESQ wide-band (ITU-T P.862.2): perceived quality against the clean reference, about 1.0 to 4.64.

    It compares waveforms in time: what a generative system renders anew, however clean, scores low.
    """

    sampling_rate = 16000
    min_seconds = 0.25
    scales = {"pesq": Scale("PESQ", 1.0, 4.65, True)}
    cite = "ITU-T Recommendation P.862.2 (2007), as implemented by the Python package pesq."

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        try:
            return {"pesq": float(pesq(self.sampling_rate, reference, prediction, "wb"))}
        except NoUtterancesError:
            raise Unscorable("no speech found") from None
        except BufferTooShortError:
            raise Unscorable(f"prediction shorter than {self.min_seconds} s") from None
