"""Runs a `DacModel` on audio of any length, piece by piece, and reads descript-audio-codec checkpoints into one.

Knows waveforms and codes; knows no token id and no audio file.

The layers of one rate are a stage, and each stage cuts what the one before gives into pieces of its own, so that they
fit a cache. A piece is run with a margin of its neighbours on either side, as wide as the stage can see, and the
margin's output is dropped. Only the true ends of the audio meet the codec's zero padding, so pieces give what one run
over everything gives: in float64 the same codes. Convolutions round differently at different lengths, which in float32
moves a sample by less than 1e-6, and a code only where two entries of the codebook are equally near.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import DacConfig, DacModel
from transformers.models.dac.modeling_dac import DacResidualUnit, Snake1d

PIECE_SECONDS = 4.0  # of audio, at most
PIECE_VALUES = 2**20  # of the widest tensor, at most on a CPU: what its cache holds


@dataclass(frozen=True)
class Stage:
    """Some layers of a codec, which run on pieces of their own.

    Args:
        layers (`tuple[Callable]`): One after the other.
        taken, given (`int`): Columns that come in, for so many that go out.
        piece (`int`): How many times `taken` columns run together.
    """

    layers: tuple[Callable[[torch.Tensor], torch.Tensor], ...]
    taken: int
    given: int
    piece: int

    @property
    def margin(self) -> int:
        """How many times `taken` columns beside the own ones, on either side, can change what goes out.

        Walks back through the convolutions to the columns they see.

        >>> convolutions = nn.Conv1d(1, 2, 7, padding=3), nn.Conv1d(2, 4, 8, stride=4, padding=2)
        >>> Stage(convolutions, taken=4, given=1, piece=9).margin
        2
        """
        first, last = 0, self.given - 1
        modules = nn.ModuleList(layer for layer in self.layers if isinstance(layer, nn.Module)).modules()
        for layer in reversed([module for module in modules if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]):
            (stride,), (padding,), span = layer.stride, layer.padding, layer.dilation[0] * (layer.kernel_size[0] - 1)
            if layer.transposed:
                first, last = math.ceil((first + padding - span) / stride), (last + padding) // stride
            else:
                first, last = first * stride - padding, last * stride - padding + span
        return math.ceil(max(-first, last + 1 - self.taken) / self.taken)

    def run(self, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Runs the layers on blocks (batch, ..., column) of any lengths; yields others."""
        for window, first, last in _windows(blocks, self.taken, self.piece, self.margin):
            with torch.inference_mode():
                rows = [functools.reduce(lambda x, layer: layer(x), self.layers, row) for row in _rows(window)]
            # Copies, out here, are no inference tensors.
            yield torch.cat([row[..., first * self.given : last * self.given] for row in rows])


def encoder_stages(codec: DacModel) -> list[Stage]:
    """From samples (batch, 1, sample) to codes (batch, codebook, frame)."""
    encoder, config = codec.encoder, codec.config
    layers = [[block] for block in encoder.block]
    layers[0].insert(0, encoder.conv1)
    layers[-1] += [encoder.snake1, encoder.conv2, lambda latents: codec.quantizer(latents)[1]]
    stages, rate, channels = [], config.sampling_rate, config.encoder_hidden_size
    for group, ratio in zip(layers, config.downsampling_ratios, strict=True):
        stages.append(Stage(tuple(group), ratio, 1, _piece_length(codec, rate, channels, ratio)))
        rate, channels = rate / ratio, channels * 2
    return stages


def decoder_stages(codec: DacModel) -> list[Stage]:
    """From codes (batch, codebook, frame) to samples (batch, 1, sample)."""
    decoder, config = codec.decoder, codec.config
    layers = [[block] for block in decoder.block]
    layers[0][:0] = [lambda codes: codec.quantizer.from_codes(codes)[0], decoder.conv1]
    layers[-1] += [decoder.snake1, decoder.conv2, decoder.tanh]
    stages, rate, channels = [], config.sampling_rate / config.hop_length, config.decoder_hidden_size
    for group, ratio in zip(layers, config.upsampling_ratios, strict=True):
        rate, channels = rate * ratio, channels // 2
        stages.append(Stage(tuple(group), 1, ratio, _piece_length(codec, rate, channels, ratio)))
    return stages


def encode_blocks(codec: DacModel, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Encodes a waveform that comes in blocks (batch, sample) of any lengths.

    Yields:
        codes, LongTensor (batch, codebook, frame) on the codec's device; `ceil(samples / hop_length)` frames in all,
        the last one completed with silence, as `DacFeatureExtractor` does.
    """
    _prepare(codec)
    blocks = (block[:, None].to(codec.device, codec.dtype) for block in _complete(blocks, codec.config.hop_length))
    for stage in encoder_stages(codec):
        blocks = stage.run(blocks)
    return blocks


def decode_blocks(codec: DacModel, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Decodes codes that come in blocks (batch, codebook, frame) of any lengths.

    Yields:
        waveforms (batch, sample) on the codec's device; `hop_length` samples per frame in all.
    """
    _prepare(codec)
    blocks = (block.to(codec.device) for block in blocks)
    for stage in decoder_stages(codec):
        blocks = stage.run(blocks)
    return (waveform[:, 0] for waveform in blocks)


def encode_in_pieces(codec: DacModel, waveform: torch.Tensor) -> torch.Tensor:
    """Encodes a waveform (batch, sample) to codes, LongTensor (batch, codebook, ceil(sample / hop_length)).

    They are on the device of the waveform.
    """
    frames = math.ceil(waveform.shape[-1] / codec.config.hop_length)
    codes = torch.empty(len(waveform), codec.config.n_codebooks, frames, dtype=torch.long, device=waveform.device)
    return _fill(codes, encode_blocks(codec, [waveform]))


def decode_in_pieces(codec: DacModel, codes: torch.Tensor) -> torch.Tensor:
    """Decodes codes (batch, codebook, frame) to a waveform (batch, frame * hop_length) of the codec's dtype.

    It is on the device of the codes.
    """
    samples = codes.shape[-1] * codec.config.hop_length
    waveform = torch.empty(len(codes), samples, dtype=codec.dtype, device=codes.device)
    return _fill(waveform, decode_blocks(codec, [codes]))


class InPlaceSnake(Snake1d):
    """The codec's activation, `x + sin(alpha x)^2 / alpha`, with one buffer instead of five where nothing is learned.

    On a CPU most of its time goes into fresh memory.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        squares = torch.mul(self.alpha, hidden_states).sin_().square_()
        return torch.addcmul(hidden_states, squares, (self.alpha + 1e-9).reciprocal(), out=squares)


class InPlaceResidualUnit(DacResidualUnit):
    """The codec's residual unit, which adds its input to its output in place where nothing is learned."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(hidden_state)
        return self.conv2(self.snake2(self.conv1(self.snake1(hidden_state)))).add_(hidden_state)


class ChannelsLastConv1d(nn.Conv1d):
    """A convolution that, where nothing is learned on a CPU, works on numbers of one column side by side in memory.

    Of few channels it is up to four times as fast, of many hardly slower. What comes out stays in that order.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or hidden_states.device.type != "cpu":
            return super().forward(hidden_states)
        image = hidden_states[:, :, None].contiguous(memory_format=torch.channels_last)
        sizes = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        return nn.functional.conv2d(image, self.weight[:, :, None], self.bias, *sizes)[:, :, 0]


# What a layer of the library is made.
QUICK = {Snake1d: InPlaceSnake, DacResidualUnit: InPlaceResidualUnit, nn.Conv1d: ChannelsLastConv1d}


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
        if type(module) in QUICK:
            module.__class__ = QUICK[type(module)]
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


def _piece_length(codec: DacModel, rate: float, channels: int, ratio: int) -> int:
    """How many times `ratio` columns to run at once: of so many channels, so many columns in a second."""
    columns = int(PIECE_SECONDS * rate)
    if codec.device.type == "cpu":
        columns = min(columns, PIECE_VALUES // channels)
    return max(1, columns // ratio)


def _complete(blocks: Iterable[torch.Tensor], hop_length: int) -> Iterator[torch.Tensor]:
    """The same blocks (..., sample), and what the last frame lacks of zeros.

    >>> [block.tolist() for block in _complete([torch.ones(2), torch.ones(3)], hop_length=4)]
    [[1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    length = 0
    for block in blocks:
        length += block.shape[-1]
        yield block
    if missing := -length % hop_length:
        yield block.new_zeros(*block.shape[:-1], missing)


def _windows(
    blocks: Iterable[torch.Tensor], frame_length: int, piece: int, margin: int
) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Cuts blocks (..., frame * frame_length) into pieces of `piece` frames, each with its margins.

    Yields:
        a window and the first and behind-the-last frame of the piece in it. Windows are cut at the same places
        whatever the lengths of the blocks.

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
        last = buffer.shape[-1] // frame_length
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
