"""Waveforms of pairs turned into codes. Knows the codec; knows no recording, no shard."""

import hashlib
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from transformers import DacModel
from transformers.utils import cached_file

from processing_dacse.codec_dacse import encode_in_pieces, load_codec

CODEC_FOLDER = "audio_tokenizer"  # where a processor keeps its codec


def find_codec(path: str | Path) -> DacModel:
    """The codec in a folder or repository, also where it stands inside a processor's (`audio_tokenizer/`)."""
    return load_codec(path, **({"subfolder": CODEC_FOLDER} if holds_processor(path) else {})).eval()


def holds_processor(path: str | Path) -> bool:
    """Whether a folder or repository is a model's, whose processor keeps a codec."""
    inside = cached_file(path, "config.json", subfolder=CODEC_FOLDER, _raise_exceptions_for_missing_entries=False)
    return inside is not None


def codec_fingerprint(codec: DacModel) -> str:
    """Changes with any weight or shape that decides about codes; the decoder may be trained further."""
    digest = hashlib.sha256()
    decisive = {name: tensor for name, tensor in codec.state_dict().items() if not name.startswith("decoder.")}
    for name, tensor in sorted(decisive.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@torch.inference_mode()
def encode_pairs(codec: DacModel, pairs: list[dict]) -> list[tuple[Tensor, Tensor]]:
    """Codes (codebook, frame) of each pair's noisy and clean waveform; neighbours of one length share a batch."""
    codes = []
    for _, group in groupby(pairs, key=lambda pair: pair["clean"].shape[-1]):
        group = list(group)
        waveforms = torch.stack([torch.from_numpy(pair[side][0]) for side in ("noisy", "clean") for pair in group])
        encoded = encode_in_pieces(codec, waveforms.to(codec.device)).cpu()
        codes += list(zip(encoded[: len(group)], encoded[len(group) :], strict=True))
    return codes
