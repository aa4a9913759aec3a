"""PLCMOS v2, without a reference. The network comes with `speechmos`, so nothing is downloaded."""

import numpy as np
import onnxruntime
from speechmos import plcmos

from .waveform_metric import Scale, WaveformMetric


class Plcmos(WaveformMetric):
    """PLCMOS: the quality of packet loss concealment predicted from the clip alone, 1 (bad) to 5 (excellent).

    The network rates each clip for a number of imagined raters drawn at random, and the ratings are averaged. The
    original draws other raters for every clip (two runs differ by some 0.05); here every clip meets the same ones, so
    that a clip has one value: that of the original after `numpy.random.seed(0)`. Samples beyond full scale are cut
    off, as they are at playback.
    """

    sampling_rate = plcmos.SR
    min_seconds = 0.25
    uses_reference = False
    scales = {"plcmos": Scale("PLCMOS", 1, 5, True)}
    cite = """\
@inproceedings{diener2023plcmos,
  title={{PLCMOS} - a data-driven non-intrusive metric for the evaluation of packet loss concealment algorithms},
  author={Diener, Lorenz and Purin, Marju and Sootla, Sten and Saabas, Ando and Aichner, Robert and Cutler, Ross},
  booktitle={Interspeech},
  year={2023}
}"""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = plcmos.PLCMOS()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # processes share the work; threads would only fight over the cores
        self.session = onnxruntime.InferenceSession(self.network.model_path, options)
        raters = np.random.RandomState(0).normal(size=(self.network.embed_rounds, 1, 64))
        self.raters = raters.astype(np.float32)

    def score(self, prediction: np.ndarray, reference: None = None) -> dict[str, float]:
        features = self.network.stft_transform(np.clip(prediction, -1, 1)).astype(np.float32)[None, None]
        ratings = [
            self.session.run(None, {"degraded_audio": features, "rater_embed": rater})[0].item()
            for rater in self.raters
        ]
        return {"plcmos": float(np.mean(ratings))}
