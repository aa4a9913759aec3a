"""Reads a checkpoint of the original descript-audio-codec package as a `DacModel`. Knows no audio and no token id."""

import itertools
import os

import torch
from transformers import DacConfig, DacModel


def codec_from_descript(weights_path: str | os.PathLike) -> DacModel:
    """Reads a checkpoint of the original descript-audio-codec package into a `DacModel`.

    Weight norm, `weight = g * v / |v|` with the norm over all axes but the first (Salimans and Kingma,
    arXiv 1602.07868; `torch.nn.utils.weight_norm` with dim 0), is folded into plain weights.

    Raises:
        ValueError: the file is no such checkpoint, or describes a codec that `DacModel` cannot be.
    """
    checkpoint = torch.load(weights_path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or not {"state_dict", "metadata"} <= set(checkpoint):
        raise ValueError(f"{weights_path} is no descript-audio-codec checkpoint; it lacks state_dict and metadata")
    settings = checkpoint["metadata"]["kwargs"]
    config = DacConfig(
        encoder_hidden_size=settings["encoder_dim"],
        downsampling_ratios=list(settings["encoder_rates"]),
        decoder_hidden_size=settings["decoder_dim"],
        n_codebooks=settings["n_codebooks"],
        codebook_size=settings["codebook_size"],
        codebook_dim=settings["codebook_dim"],
        sampling_rate=settings["sample_rate"],
    )
    if settings["latent_dim"] not in (None, config.hidden_size):
        raise ValueError(f"latent_dim is {settings['latent_dim']}; DacModel has only {config.hidden_size} here")
    if list(settings["decoder_rates"]) != config.upsampling_ratios:
        raise ValueError(
            f"decoder_rates are {settings['decoder_rates']}; DacModel has only {config.upsampling_ratios}"
        )
    weights = {}
    names = _descript_names(len(config.downsampling_ratios))
    for key, value in checkpoint["state_dict"].items():
        module, parameter = key.rsplit(".", 1)
        if parameter == "weight_g":
            direction = checkpoint["state_dict"][f"{module}.weight_v"]
            value = value * direction / direction.norm(dim=(1, 2), keepdim=True)
            parameter = "weight"
        if parameter != "weight_v":
            weights[f"{names.get(module, module)}.{parameter}"] = value
    codec = DacModel(config)
    codec.load_state_dict(weights)
    return codec.eval()


def _descript_names(depth: int) -> dict[str, str]:
    """Our name of each module for its name there, of a codec with `depth` ratios; the quantizer's are the same.

    >>> names = _descript_names(depth=4)
    >>> names["encoder.block.1.block.0.block.3"], names["decoder.model.4.block.1"], names["decoder.model.6"]
    ('encoder.block.0.res_unit1.conv2', 'decoder.block.3.conv_t1', 'decoder.conv2')
    """
    units = ("res_unit1", "res_unit2", "res_unit3")
    sides = {"encoder.block": (*units, "snake1", "conv1"), "decoder.model": ("snake1", "conv_t1", *units)}
    names = {}
    for theirs, layers in sides.items():
        ours = theirs.split(".")[0]
        names |= {f"{theirs}.0": f"{ours}.conv1"}
        names |= {f"{theirs}.{depth + 1}": f"{ours}.snake1", f"{theirs}.{depth + 2}": f"{ours}.conv2"}
        for i, (j, layer) in itertools.product(range(depth), enumerate(layers)):
            names[f"{theirs}.{i + 1}.block.{j}"] = f"{ours}.block.{i}.{layer}"
            if layer in units:
                for k, part in enumerate(("snake1", "conv1", "snake2", "conv2")):
                    names[f"{theirs}.{i + 1}.block.{j}.block.{k}"] = f"{ours}.block.{i}.{layer}.{part}"
    return names
