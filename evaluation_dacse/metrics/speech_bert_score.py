"""SpeechBERTScore with any HuBERT, WavLM or wav2vec 2.0 encoder."""

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel

from evaluation_dacse.waveform_metric import Metric, Scale, WaveformMetric


def bert_score_precision(prediction: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over the frames of the prediction (frame, feature) of the cosine with the most similar reference frame.

    >>> bert_score_precision(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0]]))
    0.5
    """
    normalize = torch.nn.functional.normalize
    return (normalize(prediction, dim=-1) @ normalize(reference, dim=-1).T).amax(dim=1).mean().item()


class SpeechBertScore(WaveformMetric):
    """SpeechBERTScore (precision): how well each stretch of the prediction is found again in the reference, up to 1.

    Args:
        model: name or path of a self-supervised speech encoder.
        layer: whose hidden states are compared; 14 of WavLM large is the setting of the paper.
        device: where the encoder runs.
    """

    about = Metric(
        {"speech_bert_score": Scale("SpeechBERTScore", -1, 1, True)},
        sampling_rate=16000,
        min_seconds=0.1,
        same_length=False,
        model="microsoft/wavlm-large",
    )
    cite = """\
@inproceedings{saeki2024speechbertscore,
  title={{SpeechBERTScore}: Reference-aware automatic evaluation of speech generation leveraging {NLP} metrics},
  author={Saeki, Takaaki and Maiti, Soumi and Takamichi, Shinnosuke and Watanabe, Shinji and Saruwatari, Hiroshi},
  booktitle={Interspeech},
  year={2024}
}"""

    def __init__(self, model: str = about.model, layer: int = 14, device: str = "cpu", **kwargs):
        super().__init__(**kwargs)
        self.extractor = AutoFeatureExtractor.from_pretrained(model)
        self.encoder = AutoModel.from_pretrained(model).eval().to(device)
        self.layer = layer

    @torch.inference_mode()
    def hidden_states(self, waveform: np.ndarray) -> torch.Tensor:
        """Hidden states (frame, feature)."""
        inputs = self.extractor(waveform, sampling_rate=self.about.sampling_rate, return_tensors="pt")
        states = self.encoder(**inputs.to(self.encoder.device), output_hidden_states=True).hidden_states
        return states[self.layer][0]

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        return {
            "speech_bert_score": bert_score_precision(self.hidden_states(prediction), self.hidden_states(reference))
        }
