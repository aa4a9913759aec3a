"""Networks that tell recordings from a codec's reconstructions, and the adversarial losses. Know waveforms alone.

Multi-resolution discriminators on complex spectrograms cut into bands, as in DAC (arXiv 2306.06546, section 3.4), at
half the frames and, from the first layer on, half the frequencies: a quarter of the work. LSGAN losses (arXiv
1611.04076).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WINDOW_LENGTHS = (2048, 1024, 512)
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # of the spectrum


def convolution(channels_in: int, channels_out: int, kernel: tuple, stride: tuple = (1, 1)) -> nn.Module:
    """A weight-normed 2-D convolution that keeps the size where it does not stride."""
    padding = tuple((size - 1) // 2 for size in kernel)
    return weight_norm(nn.Conv2d(channels_in, channels_out, kernel, stride, padding))


class SpectrumDiscriminator(nn.Module):
    """Sees the complex spectrogram at one window length, each band through convolutions of its own.

    Args:
        window_length: in samples; the hop is half of it.
        width: channels of the convolutions.
    """

    def __init__(self, window_length: int, width: int):
        super().__init__()
        self.window_length, bins = window_length, window_length // 2 + 1
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)
        self.bands = [slice(int(low * bins), int(high * bins)) for low, high in BANDS]
        self.stacks = nn.ModuleList(nn.ModuleList(self.stack(width)) for _ in self.bands)
        self.verdict = convolution(width, 1, (3, 3))

    @staticmethod
    def stack(width: int) -> list[nn.Module]:
        """Convolutions over (frame, frequency); four of them halve the frequencies."""
        halving = [convolution(channels, width, (3, 9), (1, 2)) for channels in (2, width, width, width)]
        return [*halving, convolution(width, width, (3, 3))]

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """(batch, sample) -> what each layer makes of each band; the last entry is the verdict."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(), self.window_length, self.window_length // 2, window=self.window, return_complex=True
            )
            parts = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (batch, part, frame, frequency)
        features, ends = [], []
        for band, layers in zip(self.bands, self.stacks, strict=True):
            hidden = parts[..., band]
            for layer in layers:
                hidden = nn.functional.leaky_relu(layer(hidden), 0.1)
                features.append(hidden)
            ends.append(hidden)
        return [*features, self.verdict(torch.cat(ends, -1))]


class Discriminators(nn.Module):
    """One for each window length. Offset and level are taken out first: neither tells a reconstruction.

    Args:
        width: channels of the convolutions.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.parts = nn.ModuleList(SpectrumDiscriminator(length, width) for length in WINDOW_LENGTHS)

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        """(batch, sample) -> for each discriminator what its layers make of it; the last of a list is its verdict."""
        waveform = waveform - waveform.mean(-1, keepdim=True)
        waveform = 0.8 * waveform / (waveform.abs().amax(-1, keepdim=True) + 1e-9)
        return [part(waveform) for part in self.parts]


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """How far verdicts on recordings are from 1 and on reconstructions from 0, summed over discriminators.

    >>> one, zero = torch.ones(2), torch.zeros(2)
    >>> discriminator_loss([[one]], [[zero]]).item(), discriminator_loss([[zero]], [[one]]).item()
    (0.0, 2.0)
    """
    pairs = zip(real, fake, strict=True)
    return sum((1 - ours[-1].float()).square().mean() + theirs[-1].float().square().mean() for ours, theirs in pairs)


def generator_losses(real: list[list[Tensor]], fake: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """The adversarial loss of reconstructions, and the L1 distance of their features from the recordings'.

    >>> generator_losses([[torch.ones(2), torch.ones(1)]], [[torch.zeros(2), torch.ones(1)]])
    (tensor(0.), tensor(1.))
    """
    adversarial = sum((1 - theirs[-1].float()).square().mean() for theirs in fake)
    matching = sum(
        nn.functional.l1_loss(their_feature.float(), our_feature.detach().float())
        for ours, theirs in zip(real, fake, strict=True)
        for our_feature, their_feature in zip(ours[:-1], theirs[:-1], strict=True)
    )
    return adversarial, matching
