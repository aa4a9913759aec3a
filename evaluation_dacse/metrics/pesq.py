"""PESQ, wide-band."""

import numpy as np
from pesq import NoUtterancesError, pesq

from evaluation_dacse.waveform_metric import Metric, Scale, Unscorable, WaveformMetric


class Pesq(WaveformMetric):
    """PESQ wide-band (ITU-T P.862.2): perceived quality against the clean reference, about 1.0 to 4.64.

    It compares waveforms in time: what a generative system renders anew, however clean, scores low.
    """

    about = Metric(  # the least that P.862.2 takes
        {"pesq": Scale("PESQ", 1.0, 4.65, True)}, sampling_rate=16000, min_seconds=0.25
    )
    cite = "ITU-T Recommendation P.862.2 (2007), as implemented by the Python package pesq."

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        try:
            return {"pesq": float(pesq(self.about.sampling_rate, reference, prediction, "wb"))}
        except NoUtterancesError:
            raise Unscorable("without speech") from None
