"""Trains a model that started as a quantizer on a few tokens of every clean frame. Knows those models.

In a model made by `start_as_quantizer` the attention of the first layer is a lookup, whose answer for any token can be
written down from the ids, and the layers behind it see clean tokens only. So the noisy half need not be run at all,
nor those clean tokens that are not drawn: with one token of each frame, a clip costs a twentieth to a thirtieth. What
is trained is the model that `generate` runs, up to which of a frame's tokens later frames see, and once the noisy half
is hidden from the later layers again: no step of such a training tells them to look away from it.
"""

from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from .requantizing import HEADS, NEIGHBOURS, assign_channels, set_slowest_pair
from .trainer import DacSeTrainer

TOLERANCE = 0.1  # of what the first attention makes of a clip
HIDDEN_BY = 20.0  # nats by which later layers prefer clean tokens; more would tell clean ones apart as well
HIDING_CLIPS = 8  # whose tokens are told apart
NOISY_WEIGHT = 0.05  # of a noisy token's error: what counts is that clean tokens are all preferred alike


def draw_codebooks(rows: int, frames: int, num_codebooks: int, count: int, device: torch.device) -> Tensor:
    """Which tokens of every frame are trained on: different codebooks in rising order, (row, frame, count)."""
    return torch.rand(rows, frames, num_codebooks, device=device).argsort(-1)[..., :count].sort(-1).values


def run_subsampled(model: PreTrainedModel, ids: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the model on some tokens of the clean half.

    Args:
        model: started as a quantizer.
        ids: whole sequences of one length, (row, token).
        codebooks: what is to be predicted of every frame, (row, frame, count).

    Returns:
        Last hidden states of the tokens before those (row, frame * count, width), and their places in the sequences
        (row, frame * count).
    """
    frames, count = codebooks.shape[1], model.config.num_codebooks
    places = 2 + frames * count + torch.arange(frames, device=ids.device)[:, None] * count + codebooks
    places = places.flatten(1)
    hidden = look_up_frames(model, ids, codebooks)
    rotations = model.model.rotary_emb(hidden, places - 1)
    first, *others = model.model.layers
    hidden = hidden + first.mlp(first.post_attention_layernorm(hidden))
    for layer in others:
        hidden = layer(hidden, position_embeddings=rotations, position_ids=places - 1)
    return model.model.norm(hidden), places


def look_up_frames(model: PreTrainedModel, ids: Tensor, codebooks: Tensor) -> Tensor:
    """Hidden states behind the first attention, (row, frame * count, width), of the tokens before those to predict."""
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
    count, frames, first = model.config.num_codebooks, model.config.window_frames, model.model.layers[0]
    embedded = model.get_input_embeddings()(ids)
    rotations = model.model.rotary_emb(embedded, torch.arange(ids.shape[1], device=ids.device)[None])
    attended = first.self_attn(first.input_layernorm(embedded), position_embeddings=rotations, attention_mask=None)[0]
    every = torch.arange(count, device=ids.device).expand(len(ids), frames, count)
    expected = (embedded + attended)[:, 1 + frames * count : -2]
    inner = slice(-min(NEIGHBOURS) * count, -max(NEIGHBOURS) * count)  # whose neighbours are within the clip
    difference = (look_up_frames(model, ids, every) - expected)[:, inner]
    return float(difference.abs().mean() / expected[:, inner].abs().mean())


@torch.no_grad()
def hide_noisy_half(model: PreTrainedModel, ids: Tensor) -> None:
    """Has the layers behind the first look at the clean half alone, as in `run_subsampled`.

    The one pair of channels of each head that turns least is given to it: least squares find what is the same in all
    clean tokens and not in noisy ones.

    Args:
        model: started as a quantizer; its queries and keys of that pair are replaced.
        ids: whole sequences of one length, (row, token).
    """
    config = model.config
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    is_clean = (places > config.window_frames * config.num_codebooks).expand_as(ids).flatten()
    gain = (HIDDEN_BY * config.head_dim**0.5) ** 0.5  # of key and query each
    hidden = model.get_input_embeddings()(ids)
    rotations = model.model.rotary_emb(hidden, places)
    for before, layer in pairwise(model.model.layers):
        hidden = before(hidden, position_embeddings=rotations, position_ids=places)
        seen = layer.input_layernorm(hidden).flatten(0, 1).double()
        key = fit_direction(seen, is_clean.double() - 0.5, torch.where(is_clean, 1.0, NOISY_WEIGHT))
        query = fit_direction(seen, torch.ones_like(is_clean), is_clean)
        set_slowest_pair(layer.self_attn, gain * key, gain * query)


def fit_direction(rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The direction (width) in which rows (row, width) come nearest to their targets (row), by weighted squares."""
    weighted = rows * weights[:, None]
    gram = weighted.T @ rows
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, weighted.T @ targets.to(rows)).float()


class HideNoisyHalf(TrainerCallback):
    """Hides the noisy half from a model that is about to be saved, evaluated or left as it is.

    Args:
        ids: whole sequences of one length, (row, token).
    """

    def __init__(self, ids: Tensor):
        self.ids = ids

    def on_step_end(self, args, state, control, model, **kwargs):
        if control.should_save or control.should_evaluate or control.should_training_stop:
            hide_noisy_half(model, self.ids)

    on_epoch_end = on_step_end


class SubsamplingTrainer(DacSeTrainer):
    """Trains on `tokens_per_frame` random tokens of every frame; held-out losses are those of all tokens.

    What the first layer looks at stays as it is: embeddings, their normalisation, queries and keys. So does the
    channel that says that a token is clean: no layer learns to write over it.

    Raises:
        ValueError: a model whose first layer is no lookup, or a launch of several processes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        first = self.model.model.layers[0]
        looking = first.input_layernorm, first.self_attn.q_proj, first.self_attn.k_proj
        for module in (self.model.get_input_embeddings(), *looking):
            module.requires_grad_(False)
        side = torch.tensor([assign_channels(self.layout).side], device=self.args.device)
        for layer in self.model.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight.register_hook(lambda gradient: gradient.index_fill(0, side, 0.0))
        clips = [self.train_dataset[index] for index in range(min(HIDING_CLIPS, len(self.train_dataset)))]
        self.add_callback(HideNoisyHalf(self.data_collator(clips)["input_ids"].to(self.model.device)))

    def refuse_what_cannot_work(self) -> None:
        super().refuse_what_cannot_work()
        assign_channels(self.layout)
        if self.args.world_size > 1:
            raise ValueError("tokens_per_frame trains in one process; leave the launcher out")
        if self.args.tokens_per_frame > self.layout.num_codebooks:
            raise ValueError(
                f"tokens_per_frame is {self.args.tokens_per_frame}, but a frame has {self.layout.num_codebooks} tokens"
            )
        if self.layout.num_attention_heads != HEADS:
            raise ValueError(
                f"tokens_per_frame knows where {HEADS} heads look, "
                f"but this model has {self.layout.num_attention_heads}"
            )
        example = self.data_collator([self.train_dataset[0]])["input_ids"].to(self.model.device)
        if lookup_error(self.model, example) > TOLERANCE:
            raise ValueError(
                "tokens_per_frame trains only models that started as a quantizer (start_as_quantizer), without "
                "dropout: the first layer of this one is no lookup"
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training and num_items_in_batch is not None:  # the library counts all labels
            frames = self.layout.window_frames
            trained, all_tokens = frames * self.args.tokens_per_frame, frames * self.layout.num_codebooks + 1
            num_items_in_batch = num_items_in_batch * trained / all_tokens
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def predict(self, model, inputs):
        if not model.training:
            return super().predict(model, inputs)
        ids, count = inputs["input_ids"], self.layout.num_codebooks
        codebooks = draw_codebooks(len(ids), self.layout.window_frames, count, self.args.tokens_per_frame, ids.device)
        hidden, places = run_subsampled(model, ids, codebooks)
        return model.lm_head(hidden), inputs["labels"].gather(1, places)
