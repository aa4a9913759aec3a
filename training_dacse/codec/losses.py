"""Distances of waveforms by their spectrograms at several window lengths. Know waveforms alone."""

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank


class MultiScaleMelLoss(nn.Module):
    """L1 distance of log-mel spectrograms at several window lengths (DAC, arXiv 2306.06546, section 3.5)."""

    def __init__(
        self,
        sampling_rate: int,
        window_lengths: tuple[int, ...] = (128, 512, 1024, 2048),
        num_mels: tuple[int, ...] = (10, 40, 80, 128),
        floor: float = 1e-4,
    ):
        super().__init__()
        self.window_lengths, self.floor = window_lengths, floor
        for length, bands in zip(window_lengths, num_mels, strict=True):
            filters = mel_filter_bank(
                length // 2 + 1, bands, 0.0, sampling_rate / 2, sampling_rate, mel_scale="slaney"
            )
            self.register_buffer(f"filters_{length}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def log_mel(self, waveform: torch.Tensor, length: int) -> torch.Tensor:
        """(batch, sample) -> (batch, frame, mel), base-10 logarithm of magnitudes."""
        window = getattr(self, f"window_{length}")
        spectrum = torch.stft(waveform, length, length // 4, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)  # abs() of a complex zero has no gradient
        magnitude = (power + self.floor**2).sqrt().transpose(1, 2) / window.sum() * 2
        return (magnitude @ getattr(self, f"filters_{length}") + self.floor).log10()

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean over scales of the mean absolute difference; both waveforms (batch, sample)."""
        losses = [
            nn.functional.l1_loss(self.log_mel(estimate, length), self.log_mel(target, length))
            for length in self.window_lengths
        ]
        return torch.stack(losses).mean()


class ComplexSpectrumLoss(nn.Module):
    """L1 distance of complex spectrograms whose magnitudes are compressed, which holds phases to those of the target.

    A power of 0.3 gives quiet parts about the weight that they have for the ear (arXiv 2008.08927 and others since).
    Only phases below `highest` Hz count: above, the ear follows envelopes, which `MultiScaleMelLoss` compares.
    """

    def __init__(
        self,
        sampling_rate: int,
        window_lengths: tuple[int, ...] = (512, 1024, 2048),
        power: float = 0.3,
        highest: float = 8000.0,
        floor: float = 1e-4,
    ):
        super().__init__()
        self.power, self.floor = power, floor
        self.bins = {length: int(highest / sampling_rate * length) + 1 for length in window_lengths}
        for length in window_lengths:
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def compressed(self, waveform: torch.Tensor, length: int) -> torch.Tensor:
        """(batch, sample) -> (batch, bin, frame, part): real and imaginary parts."""
        window = getattr(self, f"window_{length}")
        spectrum = torch.stft(waveform, length, length // 4, window=window, return_complex=True)
        parts = torch.view_as_real(spectrum[:, : self.bins[length]]) / window.sum() * 2
        return parts * (parts.square().sum(-1, keepdim=True) + self.floor**2) ** ((self.power - 1) / 2)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean over scales of the mean absolute difference; both waveforms (batch, sample)."""
        losses = [
            nn.functional.l1_loss(self.compressed(estimate, length), self.compressed(target, length))
            for length in self.bins
        ]
        return torch.stack(losses).mean()
