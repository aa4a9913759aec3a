"""PLCMOS v2, without a reference. The network comes with `speechmos`, so nothing is downloaded."""

import numpy as np
from speechmos import plcmos

from evaluation_dacse.onnx_model import OnnxModel
from evaluation_dacse.waveform_metric import MOS, Metric, Scale, WaveformMetric


class Plcmos(WaveformMetric):
    """PLCMOS: the quality of packet loss concealment predicted from the clip alone, 1 (bad) to 5 (excellent).

    The network rates each clip for a number of imagined raters drawn at random, and the ratings are averaged. The
    original draws other raters for every clip (two runs differ by some 0.05); here every clip meets the same ones, so
    that a clip has one value: that of the original after `numpy.random.seed(0)`. Samples beyond full scale are cut
    off, as they are at playback.
    """

    about = Metric(  # fewer frames than its convolutions span
        {"plcmos": Scale("PLCMOS", **MOS)}, sampling_rate=16000, min_seconds=0.25, uses_reference=False
    )
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
        self.rate = OnnxModel(self.network.model_path)
        raters = np.random.RandomState(0).normal(size=(self.network.embed_rounds, 1, 64))
        self.raters = raters.astype(np.float32)

    def score(self, prediction: np.ndarray, reference: None = None) -> dict[str, float]:
        features = self.network.stft_transform(np.clip(prediction, -1, 1)).astype(np.float32)[None, None]
        ratings = [self.rate(degraded_audio=features, rater_embed=rater).item() for rater in self.raters]
        return {"plcmos": float(np.mean(ratings))}
