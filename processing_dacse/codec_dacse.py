"""Runs a `DacModel` on audio of any length, piece by piece, and reads descript-audio-codec checkpoints into one.

Knows waveforms and codes; knows no token id and no audio file.

A piece is run with a margin of its neighbours on either side, as wide as the codec can see, and the margin's output is
dropped. Only the true ends of the audio meet the codec's zero padding, so pieces give what one run over everything
gives: in float64 the same codes. Convolutions round differently at different lengths, which in float32 moves a sample
by less than 1e-6, and a code only where two entries of the codebook are equally near.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import DacConfig, DacModel
from transformers.models.dac.modeling_dac import Snake1d

# On a CPU, where shorter pieces spend more on margins and longer ones fall out of the cache.
PIECE_SECONDS = 2.0


def encode_margin(downsampling_ratios: Sequence[int]) -> int:
    """Frames on either side of a frame that can change its codes.

    Walks from one frame back through the layers of `DacEncoder` to the samples it sees.

    >>> encode_margin([2, 4, 8, 8])
    8
    """
    first, last = -1, 1  # conv2, kernel 3
    for ratio in reversed(downsampling_ratios):
        padding = math.ceil(ratio / 2)
        first, last = first * ratio - padding, last * ratio - padding + 2 * ratio - 1  # kernel 2 * ratio
        first, last = first - 3 * (1 + 3 + 9), last + 3 * (1 + 3 + 9)  # residual units, kernel 7, dilation 1, 3, 9
    first, last = first - 3, last + 3  # conv1, kernel 7
    hop_length = math.prod(downsampling_ratios)
    return math.ceil(max(-first, last - hop_length + 1) / hop_length)


def decode_margin(downsampling_ratios: Sequence[int]) -> int:
    """Frames on either side of a frame that can change its samples.

    Walks from the samples of one frame back through the layers of `DacDecoder` to the frames they see.

    >>> decode_margin([2, 4, 8, 8])
    10
    """
    first, last = -3, math.prod(downsampling_ratios) - 1 + 3  # conv2, kernel 7
    for ratio in downsampling_ratios:
        padding = math.ceil(ratio / 2)
        first, last = first - 3 * (1 + 3 + 9), last + 3 * (1 + 3 + 9)  # residual units
        first, last = math.ceil((first + padding - 2 * ratio + 1) / ratio), (last + padding) // ratio
    return max(3 - first, last + 3)  # conv1, kernel 7


def encode_blocks(
    codec: DacModel, blocks: Iterable[torch.Tensor], piece_seconds: float = PIECE_SECONDS
) -> Iterator[torch.Tensor]:
    """Encodes a waveform that comes in blocks (batch, sample) of any lengths.

    Yields:
        codes, LongTensor (batch, codebook, frame) on the device of the blocks; `ceil(samples / hop_length)` frames in
        all, the last one completed with silence, as `DacFeatureExtractor` does.
    """
    _prepare(codec)
    hop_length, ratios = codec.config.hop_length, codec.config.downsampling_ratios
    piece = _piece_frames(codec, piece_seconds)
    for window, first, last in _windows(blocks, hop_length, piece, encode_margin(ratios)):
        waveform = nn.functional.pad(window, (0, -window.shape[-1] % hop_length))
        with torch.inference_mode():
            rows = _rows(waveform[:, None].to(codec.device, codec.dtype))
            codes = torch.cat([codec.encode(row).audio_codes for row in rows])
        yield codes[..., first:last].to(window.device, copy=True)


def decode_blocks(
    codec: DacModel, blocks: Iterable[torch.Tensor], piece_seconds: float = PIECE_SECONDS
) -> Iterator[torch.Tensor]:
    """Decodes codes that come in blocks (batch, codebook, frame) of any lengths.

    Yields:
        waveforms (batch, sample) on the device of the blocks; `hop_length` samples per frame in all.
    """
    _prepare(codec)
    hop_length, ratios = codec.config.hop_length, codec.config.downsampling_ratios
    piece = _piece_frames(codec, piece_seconds)
    for window, first, last in _windows(blocks, 1, piece, decode_margin(ratios)):
        with torch.inference_mode():
            waveform = torch.cat(
                [codec.decode(audio_codes=row).audio_values for row in _rows(window.to(codec.device))]
            )
        yield waveform[..., first * hop_length : last * hop_length].to(window.device, copy=True)


def encode_in_pieces(codec: DacModel, waveform: torch.Tensor, piece_seconds: float = PIECE_SECONDS) -> torch.Tensor:
    """Encodes a waveform (batch, sample) to codes, LongTensor (batch, codebook, ceil(sample / hop_length))."""
    frames = math.ceil(waveform.shape[-1] / codec.config.hop_length)
    codes = torch.empty(len(waveform), codec.config.n_codebooks, frames, dtype=torch.long, device=waveform.device)
    return _fill(codes, encode_blocks(codec, [waveform], piece_seconds))


def decode_in_pieces(codec: DacModel, codes: torch.Tensor, piece_seconds: float = PIECE_SECONDS) -> torch.Tensor:
    """Decodes codes (batch, codebook, frame) to a waveform (batch, frame * hop_length) of the codec's dtype."""
    samples = codes.shape[-1] * codec.config.hop_length
    waveform = torch.empty(len(codes), samples, dtype=codec.dtype, device=codes.device)
    return _fill(waveform, decode_blocks(codec, [codes], piece_seconds))


class InPlaceSnake(Snake1d):
    """The codec's activation, `x + sin(alpha x)^2 / alpha`, with one buffer instead of four where nothing is learned.

    On a CPU most of its time goes into fresh memory.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        squares = torch.mul(self.alpha, hidden_states).sin_().square_()
        return torch.addcmul(hidden_states, squares, (self.alpha + 1e-9).reciprocal())


def code_vectors(codec: DacModel) -> torch.Tensor:
    """What each code adds to a latent, in axes that keep distances: float32 (codebook, code, codebook_dim).

    >>> codec = DacModel(DacConfig(n_codebooks=2, codebook_size=4, codebook_dim=3))
    >>> latents = codec.quantizer.from_codes(torch.tensor([[[0, 1], [2, 2]]]))[0].detach()  # differ in codebook 0
    >>> vectors = code_vectors(codec)
    >>> torch.allclose((latents[..., 0] - latents[..., 1]).norm(), (vectors[0, 0] - vectors[0, 1]).norm())
    True
    """
    vectors = []
    with torch.no_grad():
        for quantizer in codec.quantizer.quantizers:
            # On the CPU: not every device has float64.
            axes = torch.linalg.qr(quantizer.out_proj.weight[..., 0].cpu().double()).R
            vectors.append(quantizer.codebook.weight.cpu().double() @ axes.T)
    return torch.stack(vectors).float()


def _prepare(codec: DacModel) -> None:
    """Makes a codec of the library quick and whole. Its weights stay as they are; twice is as good as once."""
    for module in codec.modules():
        if type(module) is Snake1d:
            module.__class__ = InPlaceSnake
    for layer in codec.decoder.block:
        # At an odd ratio DacModel's transposed convolution leaves out its last sample, and all audio would end early:
        # by 8 samples at the ratios 2, 4, 5, 8 of descript/dac_24khz.
        layer.conv_t1.output_padding = (layer.conv_t1.stride[0] % 2,)


def _fill(whole: torch.Tensor, pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    position = 0
    for piece in pieces:
        whole[..., position : position + piece.shape[-1]] = piece
        position += piece.shape[-1]
    return whole


def _rows(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The parts of a batch to run together.

    On a CPU one row after the other: two to three times as fast, for a row fits the cache, and what comes out of a row
    does not depend, in the last bit, on the rows beside it.
    """
    return batch.split(1 if batch.device.type == "cpu" else len(batch))


def _piece_frames(codec: DacModel, piece_seconds: float) -> int:
    return max(1, round(piece_seconds * codec.config.sampling_rate / codec.config.hop_length))


def _windows(
    blocks: Iterable[torch.Tensor], frame_length: int, piece: int, margin: int
) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Cuts blocks (..., frame * frame_length) into pieces of `piece` frames, each with its margins.

    Yields:
        a window and the first and behind-the-last frame of the piece in it. Windows are cut at the same places
        whatever the lengths of the blocks; the last window may end within a frame.

    >>> [(w.tolist(), first, last) for w, first, last in _windows([torch.arange(5), torch.arange(5, 7)], 1, 3, 1)]
    [([0, 1, 2, 3], 0, 3), ([2, 3, 4, 5, 6], 1, 4), ([5, 6], 1, 2)]
    """
    buffer, first = None, 0
    for block in blocks:
        buffer = block if buffer is None else torch.cat([buffer, block], dim=-1)
        while buffer.shape[-1] >= (first + piece + margin) * frame_length:
            yield buffer[..., : (first + piece + margin) * frame_length], first, first + piece
            done = max(0, first + piece - margin)
            buffer, first = buffer[..., done * frame_length :], first + piece - done
    if buffer is not None:
        last = math.ceil(buffer.shape[-1] / frame_length)
        if last > first:
            yield buffer, first, last


def load_codec(name_or_path: str | os.PathLike, **hub_kwargs) -> DacModel:
    """Loads a `DacModel` from a directory or Hub repository, safetensors only, whole or not at all.

    Args:
        name_or_path: as for `from_pretrained`.
        **hub_kwargs: `subfolder`, `revision`, `cache_dir`, `token`, ...

    Raises:
        ValueError: nothing or another kind of model is there, or weights are damaged, missing or of other shapes:
            `from_pretrained` alone would go on with random ones.
        OSError: the place cannot be reached, or has no weights.
    """
    place = Path(name_or_path, hub_kwargs.get("subfolder", ""))
    settings, _ = DacConfig.get_config_dict(name_or_path, **hub_kwargs)
    if settings.get("model_type") != DacConfig.model_type:
        raise ValueError(
            f"{place} holds no DAC codec (model_type {settings.get('model_type')}); give a place that does"
        )
    options = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        codec, info = DacModel.from_pretrained(name_or_path, **options, **hub_kwargs)
    except SafetensorError as error:
        raise ValueError(f"the codec in {place} is damaged ({error}); get it again") from error
    if info["missing_keys"]:
        raise ValueError(f"the codec in {place} lacks weights, such as {min(info['missing_keys'])}; get it again")
    if info["mismatched_keys"]:
        raise ValueError(
            f"the codec in {place} has weights of other shapes than its config.json, such as "
            f"{min(info['mismatched_keys'])}; get it again"
        )
    return codec


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
