"""Starts a language model as the codec's own quantizer, reading from the noisy frames. Knows no data.

A residual quantizer picks code k of a frame as the one nearest to what codes 1 to k-1 leave of the latent. A causal
model can do the same to the sum of a noisy frame's code vectors: one head adds up the noisy frame, another the clean
codes that are already there, and the output layer looks up the code nearest to the difference. From random weights a
short training is spent on finding that arithmetic; started with it, all of it goes into what must differ from the
noisy frame.

Frames are found by position. A key is turned back by its codebook, a query by its own and by the distance from clean
to noisy, so that rotary positions compare frames where they would compare tokens. That distance is one number only
while all clips have one length.

Only the first layer reads the noisy half at first. The layers behind it look at what the clean half has heard so far,
all of it alike, and at none of the noisy tokens. `subsampling.py` trains on a few tokens of every clip, as the first
layer's answers are lookups.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DacModel

from modeling_dacse import DacSeConfig, DacSeForEnhancement

NEIGHBOURS = (1, -1, 2)  # frames after the noisy one that heads 3, 4 and 5 look at
HEADS = 7  # noisy frame, clean frame so far, noisy code, three neighbours of the noisy frame, [start_clean]
NEAR = 0.3  # of a neighbour's channels, the first and loudest are kept
MARGIN = 6.0  # nats by which the tokens that a head is made for stand above others
SINK = 20.0  # of the key by which a head rests on [bos] or [start_clean], and layers on the clean half
PICK = 12.0  # nats by which the codebook that comes next stands above the others
TRUST = 4.0  # nats by which the noisy frame's own code stands above codes that lie elsewhere
LONGEST = 0.9  # of the share of an embedding that a code vector may take
SIDE = 3.0  # of the channel that says that a token is clean
SMALL = {  # standard deviations of a layer's weights where nothing is set
    "self_attn.q_proj": 0.02,
    "self_attn.k_proj": 0.02,
    "self_attn.v_proj": 0.05,
    "self_attn.o_proj": 0.02,
    "mlp.gate_proj": 0.04,
    "mlp.up_proj": 0.04,
    "mlp.down_proj": 0.01,
}


@dataclass(frozen=True)
class Channels:
    """Which channels of the model's width say what; those from `spare` on are left to training.

    Args:
        dim: of a code vector, as of a head. The first so many channels hold the token's own; its last direction is
            given up for the mark of [start_clean].
        num_codebooks: tokens of a frame.
    """

    dim: int
    num_codebooks: int

    @property
    def rest(self) -> slice:
        """What the clean codes so far leave of the noisy frame."""
        return slice(self.dim, 2 * self.dim)

    @property
    def copy(self) -> slice:
        """The code vector that the noisy frame has of the codebook that comes next."""
        return slice(2 * self.dim, 3 * self.dim)

    @property
    def constant(self) -> int:
        """Is the same for every token."""
        return 3 * self.dim

    @property
    def codebook(self) -> int:
        """The first of the channels that say which codebook a token is of."""
        return self.constant + 1

    @property
    def start_clean(self) -> int:
        """Says [start_clean]."""
        return self.codebook + self.num_codebooks

    @property
    def bos(self) -> int:
        """Says [bos]."""
        return self.start_clean + 1

    @property
    def filler(self) -> int:
        """Gives all embeddings one length, so that RMSNorm leaves them as they are."""
        return self.bos + 1

    @property
    def side(self) -> int:
        """Is there behind [start_clean] and not before it."""
        return self.filler + 1

    @property
    def heard(self) -> list[slice]:
        """The noisy frame and the loudest directions of its neighbours, each direction as strong as the others."""
        near = int(NEAR * self.dim)
        first, slices = self.side + 1, []
        for size in (self.dim, *(near for _ in NEIGHBOURS)):
            slices.append(slice(first, first + size))
            first += size
        return slices

    @property
    def spare(self) -> int:
        """The first without a meaning."""
        return self.heard[-1].stop


def assign_channels(config: DacSeConfig) -> Channels:
    """
    Raises:
        ValueError: the model is too small, or ties what it reads to what it writes.
    """
    channels = Channels(config.head_dim, config.num_codebooks)
    pairs = config.num_codebooks + 2  # of a head's channels, at least: a few tell where, the others what
    if (
        config.num_attention_heads < HEADS
        or config.hidden_size <= channels.spare
        or config.head_dim < 2 * pairs
        or config.tie_word_embeddings
    ):
        raise ValueError(
            f"a model of width {config.hidden_size} with {config.num_attention_heads} heads of {config.head_dim} and "
            f"tie_word_embeddings={config.tie_word_embeddings} cannot start as the codec's quantizer; it needs "
            f"{HEADS} heads of {2 * pairs} or more, a width above {channels.spare} with heads of {config.head_dim} "
            "and untied embeddings"
        )
    return channels


@torch.no_grad()
def start_as_quantizer(model: DacSeForEnhancement, codec: DacModel, frames: int) -> None:
    """Gives a new model weights under which it answers noisy frames with their own codes, quantized anew.

    What the layers behind the first, and all MLPs, make of it starts small and random.

    Args:
        model: new.
        codec: whose codebooks it speaks.
        frames: of every clip it will be given.

    Raises:
        ValueError: the model's shape does not allow it.
    """
    config = model.config
    channels = assign_channels(config)
    unit = (config.hidden_size / 3) ** 0.5  # constant, codebook, and all else have a third of an embedding's energy
    added, weights, offsets = code_vectors(codec.quantizer.quantizers[: config.num_codebooks], channels.dim)
    embed(model, channels, unit, added)
    first, *others = model.model.layers
    for layer in model.model.layers:
        start_small(layer, channels)
    look_at_frames(first.self_attn, model.model.rotary_emb.inv_freq, channels, unit, frames)
    compare_frames(first.self_attn, channels, unit, added)
    for layer in others:
        look_at_clean_half(layer.self_attn, channels)
    look_up(model, channels, unit, added, weights, offsets)


def code_vectors(quantizers: nn.ModuleList, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """What codes add to a latent and how the codec chooses them, in the directions that matter for the choice.

    The codec takes the code at the smallest angle, so the highest product with the normalised code. Where its
    codebooks were fitted by `fit_codebooks`, that product times the codes' length is `x.c - |c|^2 / 2`; over the
    energy of the last codebook's vectors, it is a log-likelihood, up to a constant, under noise of about what the
    codec leaves.

    Returns:
        What each code adds (codebook, code, dim), the longest of length 1; weights (codebook, code, dim) and offsets
        (codebook, code) of its score, in nats. The last of the `dim` directions is empty.
    """
    projections = [quantizer.in_proj.weight[..., 0] for quantizer in quantizers]
    tables = [quantizer.codebook.weight for quantizer in quantizers]
    spread = torch.cat([matrix * table.std(0)[:, None] for matrix, table in zip(projections, tables, strict=True)])
    basis = torch.linalg.svd(spread, full_matrices=False).Vh[: dim - 1]
    basis = nn.functional.pad(basis, (0, 0, 0, dim - len(basis)))
    added = [quantizer.out_proj(table.T[None])[0].T for quantizer, table in zip(quantizers, tables, strict=True)]
    added = torch.stack(added) @ basis.T
    noise, longest = added[-1].square().sum(-1).mean(), added.norm(dim=-1).max()
    weights, offsets = [], []
    for quantizer, table, matrix in zip(quantizers, tables, projections, strict=True):
        score = nn.functional.normalize(table) * table.norm(dim=1).mean() / noise
        weights.append(score @ matrix @ basis.T * longest)
        offsets.append(score @ quantizer.in_proj.bias)
    return added / longest, torch.stack(weights), torch.stack(offsets)


def embed(model: DacSeForEnhancement, channels: Channels, unit: float, added: Tensor) -> None:
    """Embeddings that say code vector and codebook, all of the length that RMSNorm gives them."""
    config, table = model.config, model.get_input_embeddings().weight
    table.zero_()
    table[:, channels.constant] = unit
    codes = table[config.first_code_id :].unflatten(0, (config.num_codebooks, -1))
    codes[..., : channels.dim] = LONGEST * unit * added
    for codebook in range(config.num_codebooks):
        codes[codebook, :, channels.codebook + codebook] = unit
    table[config.start_clean_token_id, channels.start_clean] = unit
    table[config.bos_token_id, channels.bos] = unit
    table[:, channels.filler] = (config.hidden_size - table.square().sum(1)).clamp(min=0.0).sqrt()


def start_small(layer: nn.Module, channels: Channels) -> None:
    """Random weights that read what was heard, the same for all tokens of a frame, and write where nothing is said."""
    for name, deviation in SMALL.items():
        weight = layer.get_submodule(name).weight
        weight.normal_(0.0, deviation)
        if name.endswith(("o_proj", "down_proj")):
            weight[: channels.spare] = 0.0
        else:
            weight[:, : channels.constant] = 0.0


def look_at_frames(attention: nn.Module, frequencies: Tensor, channels: Channels, unit: float, frames: int) -> None:
    """Queries and keys of the first layer.

    The slowest pairs of channels hardly turn over a window. They say which codebook a key is of, and the last pair
    [bos] and [start_clean].
    """
    dim, count = channels.dim, channels.num_codebooks
    pairs, quiet = dim // 2, dim // 2 - count - 1
    apart = (1 - (count * frequencies[:quiet]).cos()).sum() / dim**0.5
    gain = (MARGIN / apart) ** 0.5

    def turned(distance: float) -> Tensor:
        turn = torch.zeros(2, pairs, device=frequencies.device)
        angle = distance * frequencies[:quiet]
        turn[:, :quiet] = torch.stack([angle.cos(), -angle.sin()])
        return gain / unit * turn.flatten()

    attention.k_proj.weight.zero_()
    for keys in attention.k_proj.weight.unflatten(0, (-1, dim)):
        for codebook in range(count):
            keys[:, channels.codebook + codebook] = turned(codebook)
            keys[quiet + codebook, channels.codebook + codebook] = gain / unit
        keys[pairs - 1, channels.bos] = keys[-1, channels.start_clean] = SINK / unit
    queries = attention.q_proj.weight.unflatten(0, (-1, dim))
    queries[:HEADS] = 0.0
    for codebook in range(count):
        following = (codebook + 1) % count
        columns = [channels.codebook + codebook]
        if following == 0:  # [start_clean] stands where the last code of a clean frame would
            columns.append(channels.start_clean)
        noisy, clean = count * frames + following, following - 1
        for head, distance in enumerate((noisy, clean, noisy, *(noisy - count * after for after in NEIGHBOURS))):
            queries[head][:, columns] = turned(distance)[:, None]
        queries[2][quiet + following, columns] = MARGIN * dim**0.5 / gain / unit
        # heads average: of as many places as there are codebooks, [bos] takes those that have no clean code yet
        match = gain**2 * quiet + dim**0.5 * math.log(count - following)
        queries[1][pairs - 1, columns] = match / SINK / unit
    queries[6][-1, channels.constant] = dim**0.5 / unit


def compare_frames(attention: nn.Module, channels: Channels, unit: float, added: Tensor) -> None:
    """Values and outputs of the first layer: noisy frame less clean one so far, the noisy code, and what was heard."""
    dim, root = channels.dim, channels.num_codebooks**0.5  # heads average frames; twice this makes it their sum
    attention.v_proj.weight.zero_()
    for values in attention.v_proj.weight.unflatten(0, (-1, dim)):
        values[range(dim - 1), range(dim - 1)] = root
        values[-1, channels.start_clean] = 1.0
    evened = root / (LONGEST * unit * added.var(1).sum(0).sqrt().clamp(min=1e-4))
    outputs = attention.o_proj.weight
    outputs[:, : HEADS * dim] = 0.0
    blocks = [(channels.rest, 0, root), (channels.rest, 1, -root), (channels.copy, 2, 1 / root)]
    blocks += [(block, head, evened) for block, head in zip(channels.heard, (0, 3, 4, 5), strict=True)]
    for block, head, gains in blocks:
        columns = torch.arange(min(block.stop - block.start, dim - 1))
        outputs[block.start + columns, head * dim + columns] = torch.as_tensor(gains).expand(dim)[: len(columns)]
    outputs[channels.side, HEADS * dim - 1] = SIDE / unit


def look_at_clean_half(attention: nn.Module, channels: Channels) -> None:
    """Has the heads of a layer see all clean tokens alike, and no noisy one."""
    slow = channels.dim // 2 - 1  # the pair that turns least
    for keys in attention.k_proj.weight.unflatten(0, (-1, channels.dim)):
        keys[slow] = 0.0
        keys[slow, channels.side] = SINK / SIDE
    for queries in attention.q_proj.weight.unflatten(0, (-1, channels.dim)):
        queries[slow] = 0.0
        queries[slow, channels.constant] = 1.0


def look_up(
    model: DacSeForEnhancement, channels: Channels, unit: float, added: Tensor, weights: Tensor, offsets: Tensor
) -> None:
    """The output layer: scores of the codes of the codebook that comes next."""
    config, head = model.config, model.get_output_embeddings().weight
    head.zero_()
    codes = head[config.first_code_id :].unflatten(0, (config.num_codebooks, -1))
    codes[..., channels.rest] = weights / (LONGEST * unit)
    energy = added.square().sum(-1, keepdim=True)
    trust = TRUST / energy.mean(1, keepdim=True)
    codes[..., channels.copy] = trust * added / (LONGEST * unit)
    offsets = offsets - (trust * energy).squeeze(-1) / 2
    codes[..., channels.constant] = (offsets - offsets.mean(1, keepdim=True)) / unit
    for codebook in range(config.num_codebooks):
        codes[codebook, :, channels.codebook + (codebook - 1) % config.num_codebooks] = PICK / unit
    codes[0, :, channels.start_clean] = PICK / unit
