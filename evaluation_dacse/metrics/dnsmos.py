"""DNSMOS P.835 and P.808, without a reference. The networks come with `speechmos`, so nothing is downloaded."""

from pathlib import Path

import numpy as np
from speechmos import dnsmos

from evaluation_dacse.onnx_model import OnnxModel
from evaluation_dacse.waveform_metric import MOS, Metric, Scale, WaveformMetric


class RecurringWindows:
    """A session that answers each window of a clip once: a short clip is repeated, and its windows recur."""

    def __init__(self, model: str):
        self.session = OnnxModel(model).session
        self.answers = {}

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """As `onnxruntime.InferenceSession.run`."""
        window = inputs["input_1"].tobytes()
        if window not in self.answers:
            self.answers[window] = self.session.run(outputs, inputs)
        return self.answers[window]


class Dnsmos(WaveformMetric):
    """DNSMOS: mean opinion scores predicted from the degraded clip alone, 1 (bad) to 5 (excellent).

    `dnsmos_ovrl`, `dnsmos_sig` and `dnsmos_bak` are the overall, speech and background scores of P.835, `dnsmos_p808`
    the overall score of P.808. Clips shorter than 9.01 s are repeated, longer ones averaged over 9.01 s windows, as
    in the original. Samples beyond full scale are cut off, as they are at playback.
    """

    about = Metric(  # the clip is repeated to 9.01 s; less than a syllable is no speech
        {
            "dnsmos_ovrl": Scale("DNSMOS OVRL", **MOS),
            "dnsmos_sig": Scale("DNSMOS SIG", **MOS),
            "dnsmos_bak": Scale("DNSMOS BAK", **MOS),
            "dnsmos_p808": Scale("DNSMOS P.808", **MOS),
        },
        sampling_rate=16000,
        min_seconds=0.25,
        uses_reference=False,
    )
    cite = """\
@inproceedings{reddy2022dnsmos,
  title={{DNSMOS P.835}: A non-intrusive perceptual objective speech quality metric to evaluate noise suppressors},
  author={Reddy, Chandan KA and Gopal, Vishak and Cutler, Ross},
  booktitle={ICASSP},
  year={2022}
}"""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        models = Path(dnsmos.__file__).parent / "dnsmos_models"
        p835, p808 = str(models / "sig_bak_ovr.onnx"), str(models / "model_v8.onnx")
        self.network = dnsmos.DNSMOS(p835, p808)
        self.network.onnx_sess, self.network.p808_onnx_sess = RecurringWindows(p835), RecurringWindows(p808)

    def score(self, prediction: np.ndarray, reference: None = None) -> dict[str, float]:
        for session in (self.network.onnx_sess, self.network.p808_onnx_sess):
            session.answers.clear()
        scores = self.network(np.clip(prediction, -1, 1), self.about.sampling_rate, is_personalized_MOS=False)
        return {f"dnsmos_{name}": float(scores[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808")}
