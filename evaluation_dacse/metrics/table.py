"""The table of metrics: what each measures, at which rate, on which scale, with which model. Loads no metric."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How to read one score.

    Values beyond the ends of the scale count as its ends, so that no clip, however bad, is better left unscored.
    """

    label: str
    lowest: float
    highest: float
    higher_is_better: bool

    @property
    def worst(self) -> float:
        """What an output that cannot be scored is given.

        >>> Scale("STOI", 0, 1, True).worst, Scale("WER", 0, 1, False).worst
        (0, 1)
        """
        return self.lowest if self.higher_is_better else self.highest


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before it is loaded."""

    class_name: str  # in the file of the metric's name
    scales: dict[str, Scale]  # by the name of the score
    sampling_rate: int  # Hz; every clip is resampled to it
    min_seconds: float  # shorter clips are left out, for every system
    uses_reference: bool = True
    same_length: bool = True  # prediction and reference are compared sample by sample
    model: str | None = None  # what it listens with on the Hub, unless another is named
    model_file: str = "config.json"  # in the repository: whether the model is on this machine


MOS = {"lowest": 1, "highest": 5, "higher_is_better": True}

METRICS = {
    "dnsmos": Metric(  # the clip is repeated to 9.01 s; less than a syllable is no speech
        "Dnsmos",
        {
            "dnsmos_ovrl": Scale("DNSMOS OVRL", **MOS),
            "dnsmos_sig": Scale("DNSMOS SIG", **MOS),
            "dnsmos_bak": Scale("DNSMOS BAK", **MOS),
            "dnsmos_p808": Scale("DNSMOS P.808", **MOS),
        },
        sampling_rate=16000,
        min_seconds=0.25,
        uses_reference=False,
    ),
    "plcmos": Metric(  # fewer frames than its convolutions span
        "Plcmos", {"plcmos": Scale("PLCMOS", **MOS)}, sampling_rate=16000, min_seconds=0.25, uses_reference=False
    ),
    "pesq": Metric(  # the least that P.862.2 takes
        "Pesq", {"pesq": Scale("PESQ", 1.0, 4.65, True)}, sampling_rate=16000, min_seconds=0.25
    ),
    "stoi": Metric(  # 30 frames of 25.6 ms, half overlapping
        "Stoi",
        {"stoi": Scale("STOI", 0, 1, True), "estoi": Scale("ESTOI", 0, 1, True)},
        sampling_rate=16000,
        min_seconds=0.4,
    ),
    "si_sdr": Metric("SiSdr", {"si_sdr": Scale("SI-SDR (dB)", -60, 60, True)}, sampling_rate=44100, min_seconds=0.01),
    "log_spectral_distance": Metric(  # one window; from its floor to full scale are 14 Bel
        "LogSpectralDistance", {"lsd": Scale("LSD", 0, 14, False)}, sampling_rate=44100, min_seconds=2048 / 44100
    ),
    "mel_distance": Metric(  # one window; from its floor to full scale are 12 Bel in each resolution
        "MelDistance",
        {"mel_distance": Scale("Mel distance", 0, 24, False)},
        sampling_rate=44100,
        min_seconds=2048 / 44100,
    ),
    "phone_error_rate": Metric(  # a handful of phones
        "PhoneErrorRate", {"per": Scale("PER", 0, 1, False)}, sampling_rate=16000, min_seconds=0.5, same_length=False
    ),
    "word_error_rate": Metric(
        "WordErrorRate",
        {"wer": Scale("WER", 0, 1, False)},
        sampling_rate=16000,
        min_seconds=0.5,
        same_length=False,
        model="openai/whisper-large-v3",
    ),
    "speaker_similarity": Metric(  # frames enough for its time-delay layers
        "SpeakerSimilarity",
        {"speaker_similarity": Scale("Speaker similarity", -1, 1, True)},
        sampling_rate=16000,
        min_seconds=0.5,
        same_length=False,
        model="microsoft/wavlm-base-plus-sv",
    ),
    "speech_bert_score": Metric(
        "SpeechBertScore",
        {"speech_bert_score": Scale("SpeechBERTScore", -1, 1, True)},
        sampling_rate=16000,
        min_seconds=0.1,
        same_length=False,
        model="microsoft/wavlm-large",
    ),
    "utmos": Metric(
        "Utmos",
        {"utmos": Scale("UTMOS", **MOS)},
        sampling_rate=16000,
        min_seconds=0.25,
        uses_reference=False,
        model="TigreGotico/utmos-onnx",
        model_file="utmos22_strong.onnx",
    ),
    "nisqa": Metric(  # one segment of its spectrogram
        "Nisqa",
        {"nisqa": Scale("NISQA", **MOS)},
        sampling_rate=48000,
        min_seconds=0.25,
        uses_reference=False,
        model="TigreGotico/nisqa-onnx",
        model_file="nisqa.onnx",
    ),
}
