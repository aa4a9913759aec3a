"""Runs a `DacModel` on audio of any length, piece by piece. Knows waveforms and codes; no token id and no audio file.

The layers of one rate are a stage, and each stage cuts what the one before gives into pieces of its own, so that they
fit a cache. A piece is run with a margin of its neighbours on either side, as wide as the stage can see, and the
margin's output is dropped. Only the true ends of the audio meet the codec's zero padding, so pieces give what one run
over everything gives: in float64 the same codes. Convolutions round differently at different lengths, which in float32
moves a sample by less than 1e-6, and a code only where two entries of the codebook are equally near.

The codec stays as its owner made it: stages call functions that do what its layers do, on its weights, in its own
dtype whatever autocast is on around them, as for inference whatever mode it was left in.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import DacConfig, DacModel
from transformers.models.dac.modeling_dac import DacDecoderBlock, DacEncoderBlock, DacResidualUnit, Snake1d

PIECE_SECONDS = 4.0  # of audio, at most
PIECE_VALUES = 2**19  # of the widest tensor, at most on a CPU: what its cache holds

Layer = Callable[[torch.Tensor], torch.Tensor]


def snake(alpha: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The codec's activation, `x + sin(alpha x)^2 / alpha`, with one buffer where the library's takes five.

    On a CPU most of its time goes into fresh memory.
    """
    squares = torch.mul(alpha, hidden).sin_().square_()
    return torch.addcmul(hidden, squares, (alpha + 1e-9).reciprocal(), out=squares)


def convolve(layer: nn.Conv1d, hidden: torch.Tensor) -> torch.Tensor:
    """A convolution, which on a CPU works on the numbers of one column side by side in memory.

    Of few channels it is up to four times as fast, of many hardly slower. What comes out stays in that order.
    """
    if hidden.device.type != "cpu":
        return layer(hidden)
    image = hidden[:, :, None].contiguous(memory_format=torch.channels_last)
    sizes = (1, *layer.stride), (0, *layer.padding), (1, *layer.dilation)
    return nn.functional.conv2d(image, layer.weight[:, :, None], layer.bias, *sizes)[:, :, 0]


def convolve_back(layer: nn.ConvTranspose1d, hidden: torch.Tensor) -> torch.Tensor:
    """A transposed convolution that gives `stride` columns for each.

    At an odd stride the library's layer leaves out the last one, and all audio would end early: by 8 samples at the
    ratios 2, 4, 5, 8 of descript/dac_24khz.
    """
    stride, padding = layer.stride[0], layer.padding[0]
    missing = 2 * padding - stride
    return nn.functional.conv_transpose1d(hidden, layer.weight, layer.bias, stride, padding, missing)


def add_residual(layers: Layer, hidden: torch.Tensor) -> torch.Tensor:
    """The codec's residual unit, which adds its input to its output in place."""
    return layers(hidden).add_(hidden)


def quick(module: nn.Module) -> Layer:
    """A function that does what a layer of the codec does, sooner, where nothing is to be learned."""
    if isinstance(module, Snake1d):
        return functools.partial(snake, module.alpha)
    if isinstance(module, nn.Conv1d):
        return functools.partial(convolve, module)
    if isinstance(module, nn.ConvTranspose1d):
        return functools.partial(convolve_back, module)
    if isinstance(module, DacResidualUnit):
        return functools.partial(add_residual, chain(module.children()))
    if isinstance(module, DacEncoderBlock | DacDecoderBlock):
        order = ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3")
        if isinstance(module, DacEncoderBlock):
            order = ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1")
        return chain(getattr(module, name) for name in order)
    return module


def chain(modules: Iterable[nn.Module]) -> Layer:
    """One function for layers that follow one another."""
    layers = [quick(module) for module in modules]
    return lambda hidden: functools.reduce(lambda x, layer: layer(x), layers, hidden)


class Quantize(nn.Module):
    """From latents to codes (batch, codebook, frame), with every codebook: in training the library leaves some out."""

    def __init__(self, codec: DacModel):
        super().__init__()
        self.quantizers = codec.quantizer.quantizers

    def forward(self, latents: torch.Tensor) -> torch.LongTensor:
        codes = []
        for quantizer in self.quantizers:
            quantized, _, _, indices, _ = quantizer(latents)
            latents = latents - quantized
            codes.append(indices)
        return torch.stack(codes, dim=1)


class Dequantize(nn.Module):
    """From codes (batch, codebook, frame) to latents."""

    def __init__(self, codec: DacModel):
        super().__init__()
        self.quantizer = codec.quantizer

    def forward(self, codes: torch.LongTensor) -> torch.Tensor:
        return self.quantizer.from_codes(codes)[0]


@dataclass(frozen=True)
class Stage:
    """Some layers of a codec, which run on pieces of their own.

    Attributes:
        modules: The layers, one after the other.
        columns_in: Columns that come in, for `columns_out` that go out.
        columns_out: Columns that go out.
        piece: How many times `columns_in` run together.
    """

    modules: tuple[nn.Module, ...]
    columns_in: int
    columns_out: int
    piece: int

    @property
    def margin(self) -> int:
        """How many times `columns_in` beside the own ones, on either side, can change what goes out.

        Walks back through the convolutions to the columns they see.

        >>> convolutions = nn.Conv1d(1, 2, 7, padding=3), nn.Conv1d(2, 4, 8, stride=4, padding=2)
        >>> Stage(convolutions, columns_in=4, columns_out=1, piece=9).margin
        2
        """
        first, last = 0, self.columns_out - 1
        layers = [m for module in self.modules for m in module.modules()]
        for layer in reversed([m for m in layers if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]):
            (stride,), (padding,), span = layer.stride, layer.padding, layer.dilation[0] * (layer.kernel_size[0] - 1)
            if layer.transposed:
                first, last = math.ceil((first + padding - span) / stride), (last + padding) // stride
            else:
                first, last = first * stride - padding, last * stride - padding + span
        return math.ceil(max(-first, last + 1 - self.columns_in) / self.columns_in)

    def run(self, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Runs the layers on blocks (batch, ..., column) of any lengths; yields others."""
        layers = chain(self.modules)
        for window, first, last in _windows(blocks, self.columns_in, self.piece, self.margin):
            yield self._run_piece(layers, window, slice(first * self.columns_out, last * self.columns_out))

    def _run_piece(self, layers: Layer, window: torch.Tensor, own: slice) -> torch.Tensor:
        """What goes out of a window, in a frame of its own: nothing of it is held while others use what it gave."""
        with torch.inference_mode(), torch.autocast(window.device.type, enabled=False):
            rows = [layers(row)[..., own] for row in _rows(window)]
        return torch.cat(rows)  # a copy, out here, is no inference tensor


def encoder_stages(codec: DacModel) -> list[Stage]:
    """From samples (batch, 1, sample) to codes (batch, codebook, frame)."""
    encoder, config = codec.encoder, codec.config
    modules = [[block] for block in encoder.block]
    modules[0].insert(0, encoder.conv1)
    modules[-1] += [encoder.snake1, encoder.conv2, Quantize(codec)]
    stages, rate, channels = [], config.sampling_rate, config.encoder_hidden_size
    for group, ratio in zip(modules, config.downsampling_ratios, strict=True):
        stages.append(Stage(tuple(group), ratio, 1, _piece_length(codec, rate, channels, ratio)))
        rate, channels = rate / ratio, channels * 2
    return stages


def decoder_stages(codec: DacModel) -> list[Stage]:
    """From codes (batch, codebook, frame) to samples (batch, 1, sample)."""
    decoder, config = codec.decoder, codec.config
    modules = [[block] for block in decoder.block]
    modules[0][:0] = [Dequantize(codec), decoder.conv1]
    modules[-1] += [decoder.snake1, decoder.conv2, decoder.tanh]
    stages, rate, channels = [], config.sampling_rate / config.hop_length, config.decoder_hidden_size
    for group, ratio in zip(modules, config.upsampling_ratios, strict=True):
        rate, channels = rate * ratio, channels // 2
        stages.append(Stage(tuple(group), 1, ratio, _piece_length(codec, rate, channels, ratio)))
    return stages


def encode_blocks(codec: DacModel, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Encodes a waveform that comes in blocks (batch, sample) of any lengths.

    Yields:
        codes, LongTensor (batch, codebook, frame) on the codec's device; `ceil(samples / hop_length)` frames in all,
        the last one completed with silence, as `DacFeatureExtractor` does.
    """
    blocks = (block[:, None].to(codec.device, codec.dtype) for block in _complete(blocks, codec.config.hop_length))
    for stage in encoder_stages(codec):
        blocks = stage.run(blocks)
    return blocks


def decode_blocks(codec: DacModel, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Decodes codes that come in blocks (batch, codebook, frame) of any lengths.

    Yields:
        waveforms (batch, sample) on the codec's device; `hop_length` samples per frame in all.
    """
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
        a window, and the first frame of the piece in it and the one after its last. Windows are cut at the same places
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
