"""Waveforms of pairs turned into codes. Knows the processor that owns the codec; knows no recording, no shard."""

import copy
import hashlib
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DacModel
from transformers.utils import cached_file

from processing_dacse import DacSeProcessor


def holds_processor(path: str | Path) -> bool:
    """Whether a folder or repository is a model's, with a processor."""
    return cached_file(path, "processor_config.json", _raise_exceptions_for_missing_entries=False) is not None


def find_processor(path: str | Path) -> DacSeProcessor:
    """The processor in a folder or repository, or one around the codec that is there."""
    processor = DacSeProcessor.from_pretrained(path) if holds_processor(path) else DacSeProcessor.from_codec(path)
    processor.audio_tokenizer.eval()
    return processor


def codec_fingerprints(codec: DacModel) -> list[str]:
    """One for the first codebook, one for the first two, ...: each changes with any weight that decides about codes.

    The decoder may be trained further; a codec of the first codebooks has the fingerprint of those.
    """
    parts = [codec.encoder, *codec.quantizer.quantizers]
    digest, fingerprints = hashlib.sha256(), []
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        fingerprints.append(digest.hexdigest()[:16])
    return fingerprints[1:]


def first_codebooks(codec: DacModel, count: int) -> DacModel:
    """A codec that has the first of another's codebooks: its codes are the other's first ones."""
    first = copy.deepcopy(codec)
    first.config.n_codebooks = first.quantizer.n_codebooks = count
    first.quantizer.quantizers = nn.ModuleList(first.quantizer.quantizers[:count])
    return first


def encode_pairs(processor: DacSeProcessor, pairs: list[dict]) -> list[tuple[Tensor, Tensor]]:
    """Codes (codebook, frame) of each pair's noisy and clean waveform; neighbours of one length share a batch."""
    codes = []
    for _, group in groupby(pairs, key=lambda pair: pair["clean"].shape[-1]):
        group = list(group)
        encoded = processor.encode(np.concatenate([pair[side] for side in ("noisy", "clean") for pair in group]))
        codes += list(zip(encoded[: len(group)], encoded[len(group) :], strict=True))
    return codes
