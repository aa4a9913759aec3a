"""Runs a codec whose full-rate layers carry the waveform alone, without running them. Knows no codes and no data.

Three quarters of what a small `DacModel` computes happens at the full rate, in its first and last block, before the
first strided convolution and after the last. Where one channel there carries the waveform and nothing else happens,
that strided convolution is an analysis filterbank and the transposed one its synthesis, each a product of matrices: a
training step takes a third of the time, and the codec is still a `DacModel` like any other.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DacModel
from transformers.models.dac.modeling_dac import DacDecoder, DacEncoder

GAIN = 10.0  # of the waveform inside the codec: speech then moves the activations, which are linear near zero


@torch.no_grad()
def clear_full_rate(model: DacModel) -> None:
    """Makes the full-rate layers of a codec carry the waveform, times `GAIN`, in one channel, and nothing else."""
    encoder, decoder = model.encoder, model.decoder
    for convolution, gain in ((encoder.conv1, GAIN), (decoder.conv2, 1 / GAIN)):
        convolution.weight.zero_()[0, 0, convolution.kernel_size[0] // 2] = gain
        convolution.bias.zero_()
    for block in (encoder.block[0], decoder.block[-1]):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2.weight.zero_()
            unit.conv2.bias.zero_()
    encoder.block[0].snake1.alpha.zero_()
    decoder.snake1.alpha.zero_()
    encoder.block[0].conv1.weight[:, 1:] = 0.0
    decoder.block[-1].conv_t1.weight[:, 1:] = 0.0
    decoder.block[-1].conv_t1.bias.zero_()


def full_rate_parameters(model: DacModel) -> Iterator[nn.Parameter]:
    """Those that `Analysis` and `Synthesis` do not use."""
    encoder, decoder = model.encoder, model.decoder
    yield from (*encoder.conv1.parameters(), *decoder.conv2.parameters())
    yield from (encoder.block[0].snake1.alpha, decoder.snake1.alpha, decoder.block[-1].conv_t1.bias)
    for block in (encoder.block[0], decoder.block[-1]):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            yield from unit.parameters()


class Analysis(nn.Module):
    """The encoder of such a codec: a stand-in for `DacEncoder`."""

    def __init__(self, encoder: DacEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, 1, sample) -> latents (batch, hidden, frame)."""
        filters, hop = self.encoder.block[0].conv1, self.encoder.block[0].conv1.stride[0]
        frames = functional.pad(GAIN * waveform[:, 0], (hop // 2, hop // 2)).unfold(1, 2 * hop, hop)
        hidden = (frames @ filters.weight[:, 0].T).transpose(1, 2) + filters.bias[:, None]
        for block in self.encoder.block[1:]:
            hidden = block(hidden)
        return self.encoder.conv2(self.encoder.snake1(hidden))


class Synthesis(nn.Module):
    """The decoder of such a codec: a stand-in for `DacDecoder`."""

    def __init__(self, decoder: DacDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, hidden, frame) -> waveforms (batch, 1, sample)."""
        *blocks, last = self.decoder.block
        hidden = self.decoder.conv1(latents)
        for block in blocks:
            hidden = block(hidden)
        filters, hop = last.conv_t1, last.conv_t1.stride[0]
        frames = last.snake1(hidden).transpose(1, 2) @ filters.weight[:, 0]
        left, right = (half.flatten(1) for half in frames.float().split(hop, 2))
        waveform = functional.pad(left, (0, hop)) + functional.pad(right, (hop, 0))
        return torch.tanh(waveform[:, None, hop // 2 : -hop // 2] / GAIN)
