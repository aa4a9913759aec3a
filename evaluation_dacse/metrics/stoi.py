"""STOI and ESTOI."""

import warnings

import numpy as np
from pystoi import stoi

from evaluation_dacse.waveform_metric import Metric, Scale, Unscorable, WaveformMetric


class Stoi(WaveformMetric):
    """STOI and ESTOI: intelligibility against the clean reference, 0 to 1.

    Clips go to pystoi at 16 kHz, as in most published figures; pystoi itself brings them to 10 kHz.
    """

    about = Metric(  # 30 frames of 25.6 ms, half overlapping
        {"stoi": Scale("STOI", 0, 1, True), "estoi": Scale("ESTOI", 0, 1, True)},
        sampling_rate=16000,
        min_seconds=0.4,
    )
    cite = """\
@article{taal2011stoi,
  title={An algorithm for intelligibility prediction of time-frequency weighted noisy speech},
  author={Taal, Cees H and Hendriks, Richard C and Heusdens, Richard and Jensen, Jesper},
  journal={IEEE Transactions on Audio, Speech, and Language Processing},
  year={2011}
}
@article{jensen2016estoi,
  title={An algorithm for predicting the intelligibility of speech masked by modulated noise maskers},
  author={Jensen, Jesper and Taal, Cees H},
  journal={IEEE/ACM Transactions on Audio, Speech, and Language Processing},
  year={2016}
}"""

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        with warnings.catch_warnings():
            # pystoi warns and returns 1e-5 when too little speech is left between the silences
            warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
            try:
                plain = stoi(reference, prediction, self.about.sampling_rate)
                extended = stoi(reference, prediction, self.about.sampling_rate, extended=True)
            except RuntimeWarning:
                raise Unscorable(f"with less than {self.about.min_seconds} s of speech") from None
        return {"stoi": float(plain), "estoi": float(extended)}
