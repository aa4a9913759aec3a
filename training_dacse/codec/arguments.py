"""The settings of a codec run. Knows no tensor."""

import math
from dataclasses import dataclass


@dataclass
class CodecTrainingArguments:
    """One codec run; every value is checked when the run is described, not when it is used."""

    output_dir: str  # checkpoints and the finished codec
    max_seconds: float | None = None  # wall-clock budget of the whole run, over all restarts
    max_steps: int | None = None  # the same in steps; whichever ends first
    decay: float = 0.2  # share of the budget, at its end, over which the learning rate falls to zero
    start_from: str | None = None  # folder of a codec whose weights the run starts with; else a lapped transform
    skip_full_rate: bool = False  # layers at the full rate carry the waveform alone and are not run (filterbank.py)
    decoder_only: bool = False  # encoder and codebooks, and so the codes of a recording, stay as they are
    batch_size: int = 8
    segment_seconds: float = 0.5
    learning_rate: float = 6e-4  # of AdamW, after a linear warm-up and before the decay
    matrix_learning_rate: float = 2e-3  # of Muon, which convolutions between many channels are given to
    warmup_steps: int = 500
    mel_weight: float = 15.0  # DAC, arXiv 2306.06546, section 3.5, as the commitment and the adversarial ones
    spectrum_weight: float = 45.0  # of complex spectrograms: what keeps phases
    long_term_weight: float = 15.0  # of long-term average spectra: what keeps tones down
    commitment_weight: float = 0.25
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0  # of the distance of discriminator features
    adversarial_from: float = 1.0  # fraction of the budget after which discriminators join; 1 for never
    discriminator_width: int = 32  # channels of their first convolutions; cost and weights grow with its square
    discriminator_learning_rate: float = 2e-4  # peak, of the same schedule
    max_grad_norm: float = 1.0
    averaging: float = 0.999  # of the weights that are saved: the memory of their moving average, a step
    restart_every: int = 50  # steps between restarts of codes that are hardly chosen
    restart_until: float = 0.7  # fraction of the budget after which codes are left alone
    save_every_seconds: float = 180.0
    bf16: bool = False  # autocast of all convolutions: twice as fast on a GPU and on a CPU with AVX512-BF16
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.max_seconds is None and self.max_steps is None:
            raise ValueError("max_seconds and max_steps are both missing; a run needs one of them to know its end")
        above = ("max_seconds", "max_steps", "batch_size", "segment_seconds", "learning_rate", "warmup_steps")
        for name in (*above, "restart_every"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("decay", "adversarial_from", "restart_until", "averaging"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a fraction, 0 to 1")

    def progress(self, step: int, seconds: float) -> float:
        """The part of the budget that is used up.

        >>> CodecTrainingArguments("runs/codec", max_seconds=60, max_steps=1000).progress(step=100, seconds=30)
        0.5
        """
        return min(1.0, max(seconds / (self.max_seconds or math.inf), step / (self.max_steps or math.inf)))

    def schedule(self, step: int, progress: float) -> float:
        """The share of the learning rate: warm-up, constant, and a linear fall to zero at the end of the budget.

        A longer budget changes nothing before the fall, so that a run can be prolonged at any time before it.

        >>> arguments = CodecTrainingArguments("runs/codec", max_steps=1000, warmup_steps=10, decay=0.2)
        >>> [round(arguments.schedule(*moment), 3) for moment in ((4, 0.004), (500, 0.5), (900, 0.9))]
        [0.5, 1.0, 0.5]
        """
        return min(1.0, (step + 1) / self.warmup_steps, (1 - progress) / (self.decay or 1e-9))
