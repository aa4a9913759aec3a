"""NISQA, without a reference, through its published ONNX export. The weights are for non-commercial use."""

import librosa
import numpy as np

from evaluation_dacse.onnx_model import OnnxModel
from evaluation_dacse.waveform_metric import MOS, Metric, Scale, WaveformMetric

# the settings in NISQA's checkpoint; its hop and window are seconds, whatever the rate
FFT_SIZE = 4096
HOP_SECONDS = 0.01
WINDOW_SECONDS = 0.02
MEL_BANDS = 48
HIGHEST_HZ = 20000
SEGMENT, SEGMENT_HOP = 15, 4  # frames


def segments(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Overlapping pieces (segment, 1, band, frame) of the mel spectrogram in dB of (sample,)."""
    mel = librosa.feature.melspectrogram(
        y=waveform,
        sr=sampling_rate,
        n_fft=FFT_SIZE,
        hop_length=int(HOP_SECONDS * sampling_rate),
        win_length=int(WINDOW_SECONDS * sampling_rate),
        n_mels=MEL_BANDS,
        fmax=HIGHEST_HZ,
        power=1.0,
        pad_mode="reflect",
    )
    decibels = librosa.amplitude_to_db(mel, ref=1.0, amin=1e-4, top_db=80.0)
    pieces = np.lib.stride_tricks.sliding_window_view(decibels, SEGMENT, axis=1)[:, ::SEGMENT_HOP]
    return pieces.transpose(1, 0, 2)[:, None].astype(np.float32)


class Nisqa(WaveformMetric):
    """NISQA v2: quality of the clip as people would rate it, 1 (bad) to 5 (excellent).

    Args:
        model: repository on the Hub that holds `nisqa.onnx`, or the path of such a file.
        device: the network runs on the CPU.
    """

    about = Metric(  # one segment of its spectrogram
        {"nisqa": Scale("NISQA", **MOS)},
        sampling_rate=48000,
        min_seconds=0.25,
        uses_reference=False,
        model="TigreGotico/nisqa-onnx",
        model_file="nisqa.onnx",
    )
    cite = """\
@inproceedings{mittag2021nisqa,
  title={{NISQA}: A deep {CNN}-self-attention model for multidimensional speech quality prediction},
  author={Mittag, Gabriel and Naderi, Babak and Chehadi, Assmaa and M{\\"o}ller, Sebastian},
  booktitle={Interspeech},
  year={2021}
}"""

    def __init__(self, model: str = about.model, device: str = "cpu", **kwargs):
        super().__init__(**kwargs)
        self.network = OnnxModel(model, self.about.model_file)

    def score(self, prediction: np.ndarray, reference: None = None) -> dict[str, float]:
        pieces = segments(prediction, self.about.sampling_rate)[None]
        return {"nisqa": float(self.network(segments=pieces).ravel()[0])}
