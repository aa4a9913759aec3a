"""A codec whose full-rate layers carry the waveform alone: what is run instead of them gives the same."""

import pytest
import torch
from transformers import DacModel

from tests.training.tiny_codec import CONFIG, shape_with, tones
from training_dacse.codec.filterbank import Analysis, Synthesis, clear_full_rate, full_rate_parameters
from training_dacse.codec.start import initialize_codec


def noisy_codec(config):
    """One whose layers below the full rate are far from where they start."""
    torch.manual_seed(0)
    codec = DacModel(config)
    initialize_codec(codec, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    clear_full_rate(codec)
    return codec


@pytest.mark.parametrize("ratios", [(4, 4), (8, 2, 2), (2, 8)])
@torch.no_grad()
def test_filterbank_gives_what_the_whole_codec_gives_to_its_edges(ratios):
    codec = noisy_codec(shape_with(downsampling_ratios=ratios))
    waveform = next(tones(3, 16 * 40, 0))[:, None]
    latents = codec.encoder(waveform)
    torch.testing.assert_close(Analysis(codec.encoder)(waveform), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Synthesis(codec.decoder)(latents), codec.decoder(latents), rtol=1e-5, atol=1e-5)


def test_what_it_does_not_use_gets_no_gradient_and_all_else_does():
    codec = noisy_codec(CONFIG)
    Synthesis(codec.decoder)(Analysis(codec.encoder)(next(tones(2, 640, 0))[:, None])).square().sum().backward()
    unused = {id(parameter) for parameter in full_rate_parameters(codec)}
    for name, parameter in (*codec.encoder.named_parameters(), *codec.decoder.named_parameters()):
        assert (parameter.grad is None) == (id(parameter) in unused), name
