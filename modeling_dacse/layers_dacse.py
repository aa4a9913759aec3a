"""A Llama's layers over buffers of keys and values, for prompts and the tokens behind them. Knows no codebook or id.

The library's layers are made to be read and changed; these are made to be run, token by token, on weights that do not
change meanwhile: projections of one input are one product, keys and values go to their final place, and on a CPU one
token's attention is two plain products, which read their memory faster than the fused kernel does. What comes out is
the same up to rounding.
"""

import mmap
from collections.abc import Callable, Sequence

import torch
from torch import nn

# Larger matrices are read from memory anyway, and a second copy of them costs more than the call it saves.
JOINT_WEIGHTS = 2**21


def join_projections(projections: Sequence[nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    """One function for several projections of the same input, their outputs side by side.

    >>> first, second = nn.Linear(2, 3), nn.Linear(2, 1)
    >>> x = torch.ones(1, 2)
    >>> torch.allclose(join_projections([first, second])(x), torch.cat([first(x), second(x)], -1))
    True

    Plain and small ones become one product on a copy of their weights, which is kept as (input, output): a CPU reads
    it for a single token twice as fast as (output, input), where outputs are many. Others, such as those that an
    adapter has changed, are called one by one.
    """
    is_plain = all(type(projection) is nn.Linear for projection in projections)
    if not is_plain or sum(projection.weight.numel() for projection in projections) > JOINT_WEIGHTS:
        return lambda hidden: torch.cat([projection(hidden) for projection in projections], dim=-1)
    weight = torch.cat([projection.weight for projection in projections]).t().contiguous()
    if projections[0].bias is None:
        return lambda hidden: hidden @ weight
    bias = torch.cat([projection.bias for projection in projections])
    return lambda hidden: hidden @ weight + bias


def zeros_to_stream(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, on a CPU in the system's large pages where it has them: an eighth less time to read all of it."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


class CachedLayers:
    """The layers of a model, and what they remember of `columns` tokens in each of some rows.

    Args:
        model (`LlamaModel`): Its weights and adapters, as they are now.
        rows, columns (`int`): Size of the buffers, which are zero at first.
    """

    def __init__(self, model: nn.Module, rows: int, columns: int):
        config = self.config = model.config
        self.model = model
        shape = config.num_hidden_layers, 2, rows, config.num_key_value_heads, columns, config.head_dim
        self.caches = zeros_to_stream(shape, model.dtype, model.device)
        self.joint = [
            (
                join_projections([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                join_projections([layer.mlp.gate_proj, layer.mlp.up_proj]),
            )
            for layer in model.layers
        ]
        places = torch.arange(columns, device=model.device)[None]
        cos, sin = (part[0] for part in model.rotary_emb(self.caches, places))
        sign = torch.ones_like(sin[0])
        sign[: config.head_dim // 2] = -1
        self.cos, self.sin = cos, sin * sign  # rotate_half(x) * sin is the halves of x exchanged, times this

    def feed(
        self, ids: torch.LongTensor, positions: torch.LongTensor, place: tuple, stop: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Runs some columns of some rows, and remembers them.

        Args:
            ids (`torch.LongTensor` of shape `(row, token)`): What stands in these columns.
            positions (`torch.LongTensor` of shape `(row, token)`): For the rotation of queries and keys.
            place (`tuple`): Indices of the columns in a tensor `(row, column)`: two slices, or two index tensors.
            stop (`int`): The column behind the last that is seen.
            mask (`torch.BoolTensor` of shape `(row, 1, token, column)`, *optional*): Which columns each token sees; by
                default every one up to its own, the last one's being `stop - 1`.

        Returns:
            Hidden states of shape `(row, token, hidden)`.
        """
        config, num_heads = self.config, self.config.num_attention_heads
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        sizes = [num_heads + config.num_key_value_heads, config.num_key_value_heads]
        rows = place[0] if isinstance(place[0], slice) else slice(None)
        hidden = self.model.embed_tokens(ids)
        for layer, (project, widen), caches in zip(self.model.layers, self.joint, self.caches, strict=True):
            heads = project(layer.input_layernorm(hidden)).unflatten(-1, (-1, config.head_dim))
            turned, value = heads.split(sizes, dim=2)
            turned = torch.addcmul(turned * cos, turned.roll(config.head_dim // 2, -1), sin)
            query, key = turned.split([num_heads, config.num_key_value_heads], dim=2)
            # As (row, column, head, size), where `place` fits.
            caches[0].transpose(1, 2)[place], caches[1].transpose(1, 2)[place] = key, value
            keys, values = caches[:, rows, :, :stop]
            hidden = hidden + layer.self_attn.o_proj(_attend(query.transpose(1, 2), keys, values, mask))
            gate, up = widen(layer.post_attention_layernorm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        return hidden


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of queries (row, head, token, size) to (row, key-value head, column, size): (row, token, hidden)."""
    num_rows, num_heads, num_tokens, _ = query.shape
    if num_tokens == 1 and query.device.type == "cpu":
        return _attend_once(query[:, :, 0], keys, values, mask)[:, None]
    mixed = nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and num_tokens > 1,
        enable_gqa=keys.shape[1] < num_heads,
    )
    return mixed.transpose(1, 2).flatten(2)


def _attend_once(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None):
    """Attention of one token, queries (row, head, size), by plain products: (row, hidden)."""
    num_rows, num_heads, size = query.shape
    grouped = (query * size**-0.5).view(num_rows * keys.shape[1], -1, size)  # queries that share keys and values
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    # In this order: on slices of the buffers it takes between a third and the whole of the time of `query @ keys.T`.
    scores = torch.bmm(keys, grouped.transpose(1, 2)).transpose(1, 2)
    if mask is not None:
        hidden = ~mask.view(len(mask), 1, -1).expand(num_rows, num_heads, -1).reshape(scores.shape)
        scores = scores.masked_fill(hidden, -torch.inf)
    shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(shares, values).view(num_rows, num_heads * size)
