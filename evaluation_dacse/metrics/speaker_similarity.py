"""Speaker similarity with any x-vector model."""

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

from evaluation_dacse.waveform_metric import Metric, Scale, WaveformMetric


class SpeakerSimilarity(WaveformMetric):
    """Speaker similarity: cosine of the speaker embeddings of prediction and reference, -1 to 1.

    Args:
        model: name or path of a transformers x-vector model.
        device: where it runs.
    """

    about = Metric(  # frames enough for its time-delay layers
        {"speaker_similarity": Scale("Speaker similarity", -1, 1, True)},
        sampling_rate=16000,
        min_seconds=0.5,
        same_length=False,
        model="microsoft/wavlm-base-plus-sv",
    )
    cite = """\
@article{chen2022wavlm,
  title={{WavLM}: Large-scale self-supervised pre-training for full stack speech processing},
  author={Chen, Sanyuan and Wang, Chengyi and Chen, Zhengyang and Wu, Yu and Liu, Shujie and others},
  journal={IEEE Journal of Selected Topics in Signal Processing},
  year={2022}
}"""

    def __init__(self, model: str = about.model, device: str = "cpu", **kwargs):
        super().__init__(**kwargs)
        self.extractor = AutoFeatureExtractor.from_pretrained(model)
        self.encoder = AutoModelForAudioXVector.from_pretrained(model).eval().to(device)

    @torch.inference_mode()
    def embedding(self, waveform: np.ndarray) -> torch.Tensor:
        """The speaker's embedding (feature,)."""
        inputs = self.extractor(waveform, sampling_rate=self.about.sampling_rate, return_tensors="pt")
        return self.encoder(**inputs.to(self.encoder.device)).embeddings[0]

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        pair = self.embedding(prediction), self.embedding(reference)
        return {"speaker_similarity": torch.nn.functional.cosine_similarity(*pair, dim=0).item()}
