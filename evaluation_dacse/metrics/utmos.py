"""UTMOS, without a reference, through its published ONNX export."""

import numpy as np

from evaluation_dacse.onnx_model import OnnxModel
from evaluation_dacse.waveform_metric import MOS, Metric, Scale, WaveformMetric


class Utmos(WaveformMetric):
    """UTMOS (the strong learner of UTMOS22): naturalness as people would rate it, 1 (bad) to 5 (excellent).

    Args:
        model: repository on the Hub that holds `utmos22_strong.onnx`, or the path of such a file.
        device: the network runs on the CPU.
    """

    about = Metric(
        {"utmos": Scale("UTMOS", **MOS)},
        sampling_rate=16000,
        min_seconds=0.25,
        uses_reference=False,
        model="TigreGotico/utmos-onnx",
        model_file="utmos22_strong.onnx",
    )
    cite = """\
@inproceedings{saeki2022utmos,
  title={{UTMOS}: {UTokyo-SaruLab} system for {VoiceMOS} challenge 2022},
  author={Saeki, Takaaki and Xin, Detai and Nakata, Wataru and Koriyama, Tomoki and Takamichi, Shinnosuke and others},
  booktitle={Interspeech},
  year={2022}
}"""

    def __init__(self, model: str = about.model, device: str = "cpu", **kwargs):
        super().__init__(**kwargs)
        self.network = OnnxModel(model, self.about.model_file)

    def score(self, prediction: np.ndarray, reference: None = None) -> dict[str, float]:
        return {"utmos": float(self.network(wave=prediction[None]).ravel()[0])}
