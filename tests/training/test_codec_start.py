"""A new codec is a lapped transform before its first step."""

import torch
from transformers import DacModel

from tests.training.tiny_codec import CONFIG, tones
from training_dacse.codec.filterbank import clear_full_rate
from training_dacse.codec.start import initialize_codec


def signal_to_noise(estimate, target):
    """In dB, away from the ends."""
    inner = slice(200, -200)
    return 10 * torch.log10(target[:, inner].square().mean() / (estimate - target)[:, inner].square().mean())


@torch.no_grad()
def test_a_new_codec_without_its_codebooks_reconstructs_a_waveform():
    codec, waveform = DacModel(CONFIG), 0.2 * next(tones(4, 1600, 0))
    initialize_codec(codec, torch.Generator().manual_seed(0))
    assert signal_to_noise(codec.decoder(codec.encoder(waveform[:, None]))[:, 0], waveform) > 20
    clear_full_rate(codec)
    assert signal_to_noise(codec.decoder(codec.encoder(waveform[:, None]))[:, 0], waveform) > 20
