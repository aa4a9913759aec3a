"""A Llama's layers over buffers of keys and values, for prompts and the tokens behind them. Knows no codebook or id.

The library's layers are made to be read and changed; these are made to be run, token by token, on weights that do not
change meanwhile: projections of one input are one product, keys and values go to their final place, and on a CPU one
token's attention is two plain products, which read their memory faster than the fused kernel does. A GPU decodes by
[`CachedLayers.step`], which can be captured. What comes out is the same up to rounding.
"""

import mmap
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

# On a CPU larger matrices are read from memory anyway, and a second copy of them costs more than the call it saves.
JOINT_WEIGHTS = 2**21
FREE_SHARE = 0.25  # of a GPU's free memory that second copies may take; there every call counts
PART = 512  # columns; buffers for `step` are whole parts of them
PROCESSORS = 128  # of a large GPU: an H100 has 132


def join_projections(projections: Sequence[nn.Module], limit: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """One function for several projections of the same input, their outputs side by side.

    >>> first, second = nn.Linear(2, 3), nn.Linear(2, 1)
    >>> x = torch.ones(1, 2)
    >>> torch.allclose(join_projections([first, second], limit=8)(x), torch.cat([first(x), second(x)], -1))
    True

    Plain ones of at most `limit` weights become one product on a copy of their weights. On a CPU it is kept as
    (input, output), which is read for a single token twice as fast as (output, input), where outputs are many. Others,
    such as those that an adapter has changed, are called one by one.
    """
    is_plain = all(type(projection) is nn.Linear for projection in projections)
    if not is_plain or sum(projection.weight.numel() for projection in projections) > limit:
        return lambda hidden: torch.cat([projection(hidden) for projection in projections], dim=-1)
    weight = torch.cat([projection.weight for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias for projection in projections])
    if weight.device.type != "cpu":
        return lambda hidden: nn.functional.linear(hidden, weight, bias)
    weight = weight.t().contiguous()
    return (lambda hidden: hidden @ weight) if bias is None else (lambda hidden: hidden @ weight + bias)


def joint_weights(model: nn.Module) -> int:
    """How many weights projections may have to be joined: on a GPU any, if copies of all fit a share of the rest."""
    if model.device.type != "cuda":
        return JOINT_WEIGHTS
    copied = sum(parameter.nbytes for parameter in model.layers.parameters())  # at most
    return sys.maxsize if copied < FREE_SHARE * torch.cuda.mem_get_info(model.device)[0] else JOINT_WEIGHTS


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
        self.is_small = rows * config.num_attention_heads < PROCESSORS
        limit = joint_weights(model)
        self.joint = [
            (
                join_projections([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj], limit),
                join_projections([layer.mlp.gate_proj, layer.mlp.up_proj], limit),
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

    def reach(self, stop: int) -> int:
        """How many columns [`CachedLayers.step`] is to look at, to see those before `stop`: few different numbers."""
        columns = self.caches.shape[-2]
        return columns if self.is_small else min(-(-stop // PART) * PART, columns)

    def step(
        self, ids: torch.LongTensor, positions: torch.LongTensor, column: torch.LongTensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Runs one column of every row, and remembers it: in few kernels, all of one shape wherever the column is.

        Nothing here waits for the device, and all that varies is read from tensors: a CUDA graph can hold it.

        Args:
            ids (`torch.LongTensor` of shape `(row, 1)`): What stands in the column.
            positions (`torch.LongTensor` of shape `(row, 1)`): For the rotation of queries and keys.
            column (`torch.LongTensor` of shape `(1,)`): Which one it is.
            bias (`torch.Tensor` of shape `(row or 1, 1, column)`): 0 for each column that is seen, or -inf; as many as
                [`CachedLayers.reach`] says.

        Returns:
            Hidden states of shape `(row, hidden)`.
        """
        num_heads, num_shared = self.config.num_attention_heads, self.config.num_key_value_heads
        attend = _attend_in_parts if self.is_small or num_shared < num_heads else _attend_fused
        cos, sin = torch.diag_embed(self.cos[positions[:, 0]]), torch.diag_embed(self.sin[positions[:, 0]])
        rotation = cos + sin.roll(self.config.head_dim // 2, -2)  # one product instead of three kernels
        hidden = self.model.embed_tokens(ids)[:, 0]
        for layer, (project, widen), caches in zip(self.model.layers, self.joint, self.caches, strict=True):
            heads = project(_normalize(layer.input_layernorm, hidden)).unflatten(-1, (-1, self.config.head_dim))
            turned, value = heads.split([num_heads + num_shared, num_shared], dim=1)
            query, key = torch.bmm(turned, rotation).split([num_heads, num_shared], dim=1)
            caches[0].index_copy_(2, column, key[:, :, None])
            caches[1].index_copy_(2, column, value[:, :, None])
            keys, values = caches[:, :, :, : bias.shape[-1]]
            hidden = _add_product(hidden, layer.self_attn.o_proj, attend(query, keys, values, bias))
            gate, up = widen(_normalize(layer.post_attention_layernorm, hidden)).chunk(2, dim=-1)
            hidden = _add_product(hidden, layer.mlp.down_proj, layer.mlp.act_fn(gate) * up)
        return hidden


def _normalize(norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """`norm(hidden)` in one kernel, if it is Llama's: that one rounds once more on its way."""
    if type(norm) is not LlamaRMSNorm:
        return norm(hidden)
    return nn.functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _add_product(hidden: torch.Tensor, linear: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """`hidden + linear(inputs)`, written over `hidden` in one kernel if the layer is plain."""
    if type(linear) is not nn.Linear or linear.bias is not None:
        return hidden + linear(inputs)
    return hidden.addmm_(inputs, linear.weight.t())


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


def _attend_fused(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention of one token, queries (row, head, size), bias (row or 1, 1, column), in one kernel: (row, hidden).

    It gives each row and head to one processor of a GPU, which is fast where there are enough of them.
    """
    mixed = nn.functional.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=bias[:, None])
    return mixed.flatten(1)


def _attend_in_parts(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor):
    """The same by plain products, which use all of a GPU for a single row: the sum over columns is taken in parts.

    Keys and values may have fewer heads than queries. Parts are for whole buffers; less of them is one part.
    """
    num_rows, num_heads, size = query.shape
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    groups, columns, _ = keys.shape
    scores = torch.bmm(query.reshape(groups, -1, size), keys.transpose(1, 2)).view(num_rows, num_heads, columns)
    shares = torch.add(bias, scores, alpha=size**-0.5).softmax(-1)  # in float32, whatever comes in and goes out
    parts = columns // PART if values.is_contiguous() else 1
    shares = shares.view(groups, -1, parts, columns // parts).transpose(1, 2).flatten(0, 1)
    sums = torch.bmm(shares, values.view(groups * parts, columns // parts, size) if parts > 1 else values)
    return sums.view(groups, parts, -1, size).sum(1).view(num_rows, num_heads * size)
