"""Trains a model that started as a quantizer on a few tokens of every clean frame. Knows those models.

In a model made by `start_as_quantizer` the attention of the first layer is a lookup, whose answer for any clean token
can be written down from the ids. So clean tokens that are not drawn need not be run at all, and of noisy ones few: in
later layers a drawn token stands for all those of its kind, with so much more weight in the attention of others. With
one token of each frame, a clip costs a tenth to a twentieth. What is trained is the model that `generate` runs, up to
which tokens the later layers see.
"""

import math

import torch
from requantizing import HEADS, NEIGHBOURS, assign_channels
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from training_dacse.lm.objective import Objective

TOLERANCE = 0.1  # of what the first attention makes of a clip
NOISY_SHARE = 1 / 24  # of the noisy tokens, that later layers see


def draw_few(*shape: int, count: int, device: torch.device) -> Tensor:
    """Different numbers below the last of `shape`, in rising order: (*shape[:-1], count)."""
    return torch.rand(shape, device=device).argsort(-1)[..., :count].sort(-1).values


def draw_noisy(rows: int, tokens: int, device: torch.device) -> Tensor:
    """Places of the noisy tokens that are run, out of `tokens`, in rising order after that of [bos]: (row, drawn)."""
    drawn = draw_few(rows, tokens, count=math.ceil(NOISY_SHARE * tokens), device=device)
    return torch.nn.functional.pad(drawn + 1, (1, 0))


def run_subsampled(model: PreTrainedModel, ids: Tensor, codebooks: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the model on some tokens of the clean half, and a few of the noisy one.

    Args:
        model: started as a quantizer.
        ids: whole sequences of one length, (row, token).
        codebooks: what is to be predicted of every frame, (row, frame, count).
        noisy: places of [bos] and of the noisy tokens that are run, (row, drawn).

    Returns:
        Last hidden states of the tokens before those to be predicted (row, frame * count, width), and the places of
        the latter in the sequences (row, frame * count).
    """
    frames, count = codebooks.shape[1], model.config.num_codebooks
    targets = 2 + frames * count + torch.arange(frames, device=ids.device)[:, None] * count + codebooks
    targets = targets.flatten(1)
    hidden = torch.cat([attend_first(model, ids, noisy), look_up_frames(model, ids, codebooks)], dim=1)
    places = torch.cat([noisy, targets - 1], dim=1)
    stands_for = hidden.new_full(places.shape, math.log(count / codebooks.shape[2]))
    stands_for[:, : noisy.shape[1]] = math.log(frames * count / (noisy.shape[1] - 1))
    stands_for[:, 0] = 0.0  # [bos]
    mask = torch.where(places[:, :, None] >= places[:, None], stands_for[:, None], -torch.inf)
    mask.diagonal(dim1=1, dim2=2).zero_()
    rotations = model.model.rotary_emb(hidden, places)
    first, *others = model.model.layers
    hidden = hidden + first.mlp(first.post_attention_layernorm(hidden))
    for layer in others:
        hidden = layer(hidden, attention_mask=mask[:, None], position_embeddings=rotations, position_ids=places)
    return model.model.norm(hidden[:, noisy.shape[1] :]), targets


@torch.no_grad()
def attend_first(model: PreTrainedModel, ids: Tensor, places: Tensor) -> Tensor:
    """Hidden states after the first attention, without gradients: (row, place, width) of tokens at (row, place)."""
    embedded = model.get_input_embeddings()(ids[:, : places.max() + 1])
    first, positions = model.model.layers[0], torch.arange(embedded.shape[1], device=ids.device)[None]
    rotations = model.model.rotary_emb(embedded, positions)
    attended = first.self_attn(first.input_layernorm(embedded), position_embeddings=rotations, attention_mask=None)[0]
    return (embedded + attended).gather(1, places[..., None].expand(*places.shape, embedded.shape[-1]))


def look_up_frames(model: PreTrainedModel, ids: Tensor, codebooks: Tensor) -> Tensor:
    """Hidden states after the first attention, (row, frame * count, width), of the tokens before those to predict."""
    config, layer, table = model.config, model.model.layers[0], model.get_input_embeddings().weight
    attention, (rows, frames, _) = layer.self_attn, codebooks.shape
    values = attention.v_proj(layer.input_layernorm(table)).unflatten(1, (config.num_key_value_heads, -1))
    values = values.repeat_interleave(attention.num_key_value_groups, dim=1)  # (id, head, size)
    tokens = frames * config.num_codebooks
    noisy, clean = (ids[:, first : first + tokens].unflatten(1, (frames, -1)) for first in (1, 2 + tokens))

    def mean_of_frame(head: int, after: int = 0) -> Tensor:
        number = (torch.arange(frames, device=ids.device) + after).clamp(0, frames - 1)
        return values[:, head][noisy[:, number]].mean(2)[:, :, None].expand(*codebooks.shape, -1)

    def drawn(of_frame: Tensor) -> Tensor:
        return of_frame.gather(2, codebooks[..., None].expand(*codebooks.shape, of_frame.shape[-1]))

    said, nothing = values[:, 1][clean], values[config.bos_token_id, 1]
    so_far = drawn(said.cumsum(2) - said) + (config.num_codebooks - codebooks[..., None]) * nothing
    heads = [mean_of_frame(0), so_far / config.num_codebooks, drawn(values[:, 2][noisy])]
    heads += [mean_of_frame(3 + number, after) for number, after in enumerate(NEIGHBOURS)]
    heads.append(values[config.start_clean_token_id, HEADS - 1].expand(*codebooks.shape, -1))
    before = torch.cat([ids.new_full((rows, 1), config.start_clean_token_id), clean.flatten(1)[:, :-1]], dim=1)
    before = before.view_as(clean).gather(2, codebooks)
    return (table[before] + attention.o_proj(torch.cat(heads, dim=-1))).flatten(1, 2)


@torch.no_grad()
def lookup_error(model: PreTrainedModel, ids: Tensor) -> float:
    """By how much the first attention differs from a lookup, as a share of what it makes of `ids` (row, token)."""
    count = model.config.num_codebooks
    frames = (ids.shape[1] - 3) // (2 * count)
    every = torch.arange(count, device=ids.device).expand(len(ids), frames, count)
    places = torch.arange(1 + frames * count, 1 + 2 * frames * count, device=ids.device).expand(len(ids), -1)
    inner = slice(-min(NEIGHBOURS) * count, -max(NEIGHBOURS) * count)  # whose neighbours are within the clip
    expected = attend_first(model, ids, places)[:, inner]
    difference = look_up_frames(model, ids, every)[:, inner] - expected
    return float(difference.abs().mean() / expected.abs().mean())


class SubsamplingObjective(Objective):
    """Trains on `tokens_per_frame` random tokens of every frame; held-out losses are those of all tokens.

    Args:
        layout, log_prior, spoiled_frames: as in `Objective`.
        tokens_per_frame: how many.
    """

    def __init__(
        self,
        layout: PretrainedConfig,
        log_prior: Tensor | None = None,
        spoiled_frames: float = 0.0,
        tokens_per_frame: int = 1,
    ):
        super().__init__(layout, log_prior, spoiled_frames)
        self.tokens_per_frame = tokens_per_frame

    def check(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        """
        Raises:
            ValueError: a model whose first layer is no lookup.
        """
        assign_channels(self.layout)
        if self.tokens_per_frame > self.layout.num_codebooks:
            raise ValueError(
                f"tokens_per_frame is {self.tokens_per_frame}, but a frame has {self.layout.num_codebooks} tokens"
            )
        if self.layout.num_attention_heads != HEADS:
            raise ValueError(
                f"tokens_per_frame knows where {HEADS} heads look, "
                f"but this model has {self.layout.num_attention_heads}"
            )
        if lookup_error(model, batch["input_ids"]) > TOLERANCE:
            raise ValueError(
                "tokens_per_frame trains only models that started as a quantizer (start_as_quantizer), without "
                "dropout: the first layer of this one is no lookup"
            )

    @property
    def trained_share(self) -> float:
        """Of all labels of a batch, how many are trained on, on average ([eos] is not, one in hundreds)."""
        return super().trained_share * self.tokens_per_frame / self.layout.num_codebooks

    def predict(self, model, batch):
        if not model.training:
            return super().predict(model, batch)
        ids, count = batch["input_ids"], self.layout.num_codebooks
        frames = (ids.shape[1] - 3) // (2 * count)
        codebooks = draw_few(len(ids), frames, count, count=self.tokens_per_frame, device=ids.device)
        noisy = draw_noisy(len(ids), frames * count, ids.device)
        hidden, places = run_subsampled(model, ids, codebooks, noisy)
        target = batch["labels"].gather(1, places)
        return model.lm_head(hidden), target, batch["task"][:, None].expand_as(target)


def keep_lookup(model: PreTrainedModel) -> None:
    """Keeps what the first layer looks at as it is: embeddings, their normalisation, queries and keys."""
    first = model.model.layers[0]
    looking = first.input_layernorm, first.self_attn.q_proj, first.self_attn.k_proj
    for module in (model.get_input_embeddings(), *looking):
        module.requires_grad_(False)
