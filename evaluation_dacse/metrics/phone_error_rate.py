"""Phone error rate with the recogniser and acoustic model in `pocketsphinx`, so nothing is downloaded."""

from pathlib import Path

import jiwer
import numpy as np
import pocketsphinx

from evaluation_dacse.waveform_metric import Metric, Scale, Unscorable, WaveformMetric

MODEL = Path(pocketsphinx.__file__).parent / "model" / "en-us"
NO_PHONE = "SIL", "+NSN+", "+SPN+"  # silence, noise, speech that is none


class PhoneErrorRate(WaveformMetric):
    """PER: share of a recogniser's phones that change between the clean recording and the prediction, 0 to 1.

    A small acoustic model hears English phones in any language, without a dictionary: what it hears in the clean
    recording is the reference. It shows what is said otherwise than it was, of which scores of quality say nothing.
    Noise disturbs it more than people: white noise at 20 dB changes half of the phones. A clip in which more phones
    are wrong than were said counts as 1.
    """

    about = Metric(  # a handful of phones
        {"per": Scale("PER", 0, 1, False)}, sampling_rate=16000, min_seconds=0.5, same_length=False
    )
    cite = """\
@inproceedings{huggins2006pocketsphinx,
  title={Pocketsphinx: A free, real-time continuous speech recognition system for hand-held devices},
  author={Huggins-Daines, David and Kumar, Mohit and Chan, Arthur and Black, Alan W and others},
  booktitle={ICASSP},
  year={2006}
}"""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # language weight and beams of PocketSphinx' own example of phone recognition
        options = {"lw": 2.0, "beam": 1e-10, "pbeam": 1e-10, "loglevel": "FATAL", "lm": None, "dict": None}
        self.decoder = pocketsphinx.Decoder(
            hmm=str(MODEL / "en-us"), allphone=str(MODEL / "en-us-phone.lm.bin"), **options
        )

    def prepare_reference(self, reference: dict) -> np.ndarray:
        waveform = super().prepare_reference(reference)
        if not self.phones(waveform):
            raise Unscorable("without phones")
        return waveform

    def phones(self, waveform: np.ndarray) -> list[str]:
        """What is heard in a waveform (sample,)."""
        samples = (np.clip(waveform, -1, 1) * 32767).astype(np.int16)
        self.decoder.reinit_feat()  # the mean that it has learned from clips before
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), full_utt=True)
        self.decoder.end_utt()
        return [part.word for part in self.decoder.seg() or () if part.word not in NO_PHONE]

    def score(self, prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        heard, said = (" ".join(self.phones(waveform)) for waveform in (prediction, reference))
        return {"per": jiwer.wer(said, heard)}
