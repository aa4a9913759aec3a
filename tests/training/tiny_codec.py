"""A codec of a few thousand weights, and tones to train it on."""

import itertools

import torch
from transformers import DacConfig

from training_dacse.codec.arguments import CodecTrainingArguments

SHAPE = {
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 16,
    "downsampling_ratios": (4, 4),
    "n_codebooks": 2,
    "codebook_size": 16,
    "codebook_dim": 4,
    "sampling_rate": 8000,
}
CONFIG = DacConfig(**SHAPE)


def shape_with(**overrides):
    return DacConfig(**(SHAPE | overrides))


def tones(batch_size, samples, seed, first=0):
    """Endless batches of sine waves of random pitch, (batch, sample)."""
    time = torch.arange(samples) / CONFIG.sampling_rate
    for number in itertools.count(first):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        pitch = 100 + 400 * torch.rand(batch_size, 1, generator=generator)
        yield 0.5 * torch.sin(2 * torch.pi * pitch * time)


def arguments(path, **overrides):
    given = {"max_steps": 150, "batch_size": 4, "segment_seconds": 0.3, "warmup_steps": 5, "restart_every": 5}
    return CodecTrainingArguments(str(path), **{"learning_rate": 2e-3, "averaging": 0.9, **given, **overrides})
