"""Word error rate with any speech recogniser of transformers."""

import hashlib

import datasets
import jiwer
import numpy as np
from transformers import pipeline
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from evaluation_dacse.waveform_metric import Metric, Scale, Unscorable, WaveformMetric


class WordErrorRate(WaveformMetric):
    """Word error rate of a recogniser on the prediction: 0 is best, 1 as bad as silence. Means are over clips.

    References are texts, or clean recordings, whose own transcript then is the text (so the clean recording scores 0,
    as in the table of the DAC-SE1 paper). Case and punctuation do not count (Whisper's multilingual normaliser). A
    clip in which more words are wrong than were said counts as 1.

    Args:
        model: name or path of a transformers model for automatic speech recognition.
        device: where it runs.
    """

    about = Metric(
        {"wer": Scale("WER", 0, 1, False)},
        sampling_rate=16000,
        min_seconds=0.5,
        same_length=False,
        model="openai/whisper-large-v3",
    )
    cite = """\
@inproceedings{morris2004wer,
  title={From {WER} and {RIL} to {MER} and {WIL}: improved evaluation measures for connected speech recognition},
  author={Morris, Andrew Cameron and Maier, Viktoria and Green, Phil},
  booktitle={Interspeech},
  year={2004}
}"""

    def __init__(self, model: str = about.model, device: str = "cpu", **kwargs):
        super().__init__(**kwargs)
        self.recognizer = pipeline("automatic-speech-recognition", model=model, device=device)
        self.normalize = BasicTextNormalizer()
        self.transcripts = {}  # of references, by the hash of their samples: every system is compared with the same

    def features_of(self, audio: dict) -> list[datasets.Features]:
        references = (audio, datasets.Value("string"))
        return [datasets.Features({"predictions": audio, "references": kind}) for kind in references]

    def prepare_reference(self, reference: dict | str) -> str:
        if isinstance(reference, str):
            text = self.normalize(reference).strip()
        else:
            waveform = self.prepare(reference)
            key = hashlib.sha256(waveform.tobytes()).digest()
            if key not in self.transcripts:
                self.transcripts[key] = self.transcribe(waveform)
            text = self.transcripts[key]
        if not text:
            raise Unscorable("without words")
        return text

    def transcribe(self, waveform: np.ndarray) -> str:
        """The recogniser's text of a waveform (sample,), normalised."""
        text = self.recognizer({"raw": waveform, "sampling_rate": self.about.sampling_rate})["text"]
        return self.normalize(text).strip()

    def score(self, prediction: np.ndarray, reference: str) -> dict[str, float]:
        return {"wer": jiwer.wer(reference, self.transcribe(prediction))}
