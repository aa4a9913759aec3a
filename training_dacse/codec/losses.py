"""Distances of waveforms by their spectrograms at several window lengths. Know waveforms alone.

auraloss (0.4.0) has losses of this kind, but none with a floor under mel bands or on compressed complex spectrograms,
and every one of them transforms both waveforms anew; here one transform a window length serves both distances.
"""

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

FLOOR = 1e-4  # -80 dB: what is below is not compared
SAMPLES_PER_MEL = 12  # of a window: mel bands are about as many as its bins resolve
MOST_MELS = 128
PHASE_WINDOW = 256  # samples; shorter windows tell no phase of a voice


class SpectralDistances(nn.Module):
    """Three distances over the spectrograms of several window lengths, hop a quarter of the window.

    *mel*: L1 distance of log-mel magnitudes (DAC, arXiv 2306.06546, section 3.5). *spectrum*: L1 distance of complex
    spectrograms whose magnitudes are compressed, which holds phases to those of the target; the power gives quiet
    parts about the weight that they have for the ear (arXiv 2008.08927). Only phases below `highest` count: above, the
    ear follows envelopes. *long_term*: L1 distance of the long-term average spectra of a batch, the means over all
    frames of log magnitudes in every bin of the longest window. What goes wrong at random evens out there, and tones
    at multiples of the rate of a decoder's layer, which mel bands are too wide for, stand out.

    Args:
        sampling_rate: in Hz.
        window_lengths: in samples.
        power: of compressed magnitudes.
        highest: in Hz.
    """

    def __init__(
        self,
        sampling_rate: int,
        window_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048),
        power: float = 0.3,
        highest: float = 8000.0,
    ):
        super().__init__()
        self.window_lengths, self.power = window_lengths, power
        self.bins = {length: int(highest / sampling_rate * length) + 1 for length in window_lengths}
        for length in window_lengths:
            mels = min(MOST_MELS, length // SAMPLES_PER_MEL)
            filters = mel_filter_bank(length // 2 + 1, mels, 0.0, sampling_rate / 2, sampling_rate, mel_scale="slaney")
            self.register_buffer(f"filters_{length}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def spectrogram(self, waveform: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """(batch, sample) -> real and imaginary parts (batch, frame, bin, part) and power (batch, frame, bin)."""
        window = getattr(self, f"window_{length}")
        spectrum = torch.stft(waveform, length, length // 4, window=window, return_complex=True)
        parts = torch.view_as_real(spectrum.transpose(1, 2)) * (2 / window.sum())
        return parts, parts.square().sum(-1) + FLOOR**2  # abs() of a complex zero has no gradient

    def log_mel(self, power: Tensor, length: int) -> Tensor:
        """Power (batch, frame, bin) -> base-10 logarithm of mel magnitudes (batch, frame, mel)."""
        return (power.sqrt() @ getattr(self, f"filters_{length}") + FLOOR).log10()

    def compressed(self, parts: Tensor, power: Tensor, length: int) -> Tensor:
        """The parts below `highest`, (batch, frame, bin, part), with magnitudes to the power of `power`."""
        kept = self.bins[length]
        return parts[:, :, :kept] * (power[:, :, :kept] ** ((self.power - 1) / 2))[..., None]

    def at(self, length: int, waveform: Tensor) -> dict[str, Tensor]:
        """What each distance compares at one window length; at some lengths not all do."""
        parts, power = self.spectrogram(waveform, length)
        seen = {"mel": self.log_mel(power, length)}
        if length >= PHASE_WINDOW:
            seen["spectrum"] = self.compressed(parts, power, length)
        if length == max(self.window_lengths):
            seen["long_term"] = power.log10().mean((0, 1)) / 2
        return seen

    def forward(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The distances, means over window lengths; waveforms (batch, sample)."""
        found = {"mel": [], "spectrum": [], "long_term": []}
        for length in self.window_lengths:
            with torch.no_grad():
                expected = self.at(length, target)
            for name, seen in self.at(length, estimate).items():
                found[name].append(nn.functional.l1_loss(seen, expected[name]))
        return {name: torch.stack(distances).mean() for name, distances in found.items()}
