"""Starts a codec as a lapped transform: perfect reconstruction before the first step. Knows no data and no codes."""

import torch
from torch import Tensor, nn
from transformers import DacModel

from .filterbank import GAIN

STRAIGHT = 0.003  # alpha of the Snake activations that the transform passes: nearly linear at first
SPARE = 0.3  # of a variance-preserving convolution, for the channels that carry no band
DAMPING = 0.02  # of the same, for residual units, which start near the identity


def modified_cosine(bands: int) -> Tensor:
    """The modified discrete cosine transform of `bands` bands under a sine window, (band, 2 * bands).

    Its rows are orthonormal, also against their own shifts by `bands` samples (Princen and Bradley, 1986): what a
    convolution with them and this stride takes apart, the transposed convolution puts together.

    >>> basis = modified_cosine(4)
    >>> torch.allclose(basis @ basis.T, torch.eye(4), atol=1e-6)
    True
    >>> torch.allclose(basis[:, :4] @ basis[:, 4:].T, torch.zeros(4, 4), atol=1e-6)
    True
    """
    band = torch.arange(bands, dtype=torch.float64)[:, None]
    sample = torch.arange(2 * bands, dtype=torch.float64)
    window = torch.sin(torch.pi * (sample + 0.5) / (2 * bands))
    phases = torch.pi / bands * (sample + 0.5 + bands / 2) * (band + 0.5)
    return ((2 / bands) ** 0.5 * window * phases.cos()).float()


def split_bands(parents: int, stride: int, channels: int) -> list[tuple[int, int]]:
    """Where the bands of a level come from, lowest first: (channel of the parent, row of its transform).

    A transform of a band that was itself decimated finds odd bands upside down. As many are kept as there are
    channels.

    >>> split_bands(parents=2, stride=2, channels=8)
    [(0, 0), (0, 1), (1, 1), (1, 0)]
    """
    rows = [range(stride), range(stride - 1, -1, -1)]
    return [(parent, row) for parent in range(parents) for row in rows[parent % 2]][:channels]


@torch.no_grad()
def initialize_codec(model: DacModel, generator: torch.Generator | None = None) -> None:
    """Makes encoder and decoder of a new codec a cascade of lapped transforms and their inverse.

    Every strided convolution splits each band into `stride` finer ones, the lowest in the first channels; bands that
    find no channel are lost, which with widths that double over strides of more than two are the highest. Residual
    units start near the identity. `DacModel` alone starts with weights under which the signal dies out layer by layer;
    started like this, a codec whose codebooks are fitted to its latents (`fit_codebooks`) is one from the first step.

    Args:
        model: new.
        generator: draws what the transform leaves open.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            stride = module.stride[0] if isinstance(module, nn.ConvTranspose1d) else 1
            fan_in = module.in_channels * module.kernel_size[0] / stride
            damping = 1.0 if ".res_unit" in name else SPARE
            damping = DAMPING if ".res_unit" in name and name.endswith("conv2") else damping
            module.weight.normal_(0.0, damping * fan_in**-0.5, generator=generator)
            module.bias.zero_()
    encoder, decoder = model.encoder, model.decoder
    encoder.conv1.weight *= GAIN
    pass_through(encoder.conv1.weight, 1, GAIN)
    bands, levels = 1, []
    for stride, block in zip(model.config.downsampling_ratios, encoder.block, strict=True):
        levels.append((modified_cosine(stride), split_bands(bands, stride, block.conv1.out_channels)))
        transform(block.conv1.weight, *levels[-1])
        bands = len(levels[-1][1])
    pass_through(encoder.conv2.weight, bands, 1.0)
    pass_through(decoder.conv1.weight, bands, 1.0)
    for (basis, split), block in zip(reversed(levels), decoder.block, strict=True):
        block.conv_t1.weight[:, : split[-1][0] + 1] = 0.0
        transform(block.conv_t1.weight, basis, split)
    decoder.conv2.weight.zero_()
    pass_through(decoder.conv2.weight, 1, 1 / GAIN)
    for block in (encoder, decoder, *encoder.block, *decoder.block):
        block.snake1.alpha.fill_(STRAIGHT)


def pass_through(weight: Tensor, channels: int, gain: float) -> None:
    """Has the first channels of a convolution, (out, in, kernel), be those of its input times `gain`."""
    channels = min(channels, *weight.shape[:2])
    weight[:channels] = 0.0
    weight[range(channels), range(channels), weight.shape[2] // 2] = gain


def transform(weight: Tensor, basis: Tensor, split: list[tuple[int, int]]) -> None:
    """Has a strided convolution, (band, parent, 2 * stride), take the parents apart; transposed, put them together."""
    for band, (parent, row) in enumerate(split[: len(weight)]):
        weight[band] = 0.0
        if parent < weight.shape[1]:
            weight[band, parent] = basis[row]
