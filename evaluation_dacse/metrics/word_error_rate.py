"""Word error rate with any speech recogniser of transformers."""

import datasets
import jiwer
import numpy as np
from transformers import pipeline
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from .waveform_metric import Scale, Unscorable, WaveformMetric


class WordErrorRate(WaveformMetric):
    """Word error rate of a recogniser on the prediction: 0 is best, more than 1 is possible. Means are over clips.

    References are texts, or clean recordings, whose own transcript then is the text (so the clean recording scores 0,
    as in the table of the DAC-SE1 paper). Case and punctuation do not count (Whisper's multilingual normaliser).

    Args:
        model: name or path of a transformers model for automatic speech recognition.
        device: where it runs.
    """

    sampling_rate = 16000
    min_seconds = 0.1
    same_length = False
    scales = {"wer": Scale("WER", 0, np.inf, False)}
    cite = """\
@inproceedings{morris2004wer,
  title={From {WER} and {RIL} to {MER} and {WIL}: improved evaluation measures for connected speech recognition},
  author={Morris, Andrew Cameron and Maier, Viktoria and Green, Phil},
  booktitle={Interspeech},
  year={2004}
}"""

    def __init__(self, model: str = "openai/whisper-large-v3", device: str = "cpu", **kwargs):
        super().__init__(**kwargs)
        self.recognizer = pipeline("automatic-speech-recognition", model=model, device=device)
        self.normalize = BasicTextNormalizer()

    def features_of(self, audio: dict) -> list[datasets.Features]:
        references = (audio, datasets.Value("string"))
        return [datasets.Features({"predictions": audio, "references": kind}) for kind in references]

    def prepare_reference(self, reference: dict | str) -> str:
        if isinstance(reference, str):
            return reference
        return self.transcribe(self.prepare(reference, "reference"))

    def transcribe(self, waveform: np.ndarray) -> str:
        """The recogniser's text of a waveform (sample,)."""
        return self.recognizer({"raw": waveform, "sampling_rate": self.sampling_rate})["text"]

    def score(self, prediction: np.ndarray, reference: str) -> dict[str, float]:
        text = self.normalize(reference).strip()
        if not text:
            raise Unscorable("no words in the reference")
        return {"wer": jiwer.wer(text, self.normalize(self.transcribe(prediction)).strip())}
