"""A Llama's layers over buffers of keys and values, for prompts and the tokens after them. Knows no codebook or id.

The library's layers are made to be read and changed; these are made to be run, token by token, on weights that do not
change meanwhile: projections of one input are one product, keys and values go to their final place, and on a CPU one
token's attention is two plain products where they are faster than the fused kernel. A GPU decodes by
`CachedLayers.step`, which can be captured. What comes out is the same up to rounding.
"""

import contextlib
import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

# On a CPU larger matrices are read from memory anyway, and a second copy of them costs more than the call it saves.
JOINT_WEIGHTS = 2**21
JOINT_ROWS = 8
FEW_TOKENS = 128  # of more, the usual order of a product is as fast
FREE_SHARE = 0.25  # of a GPU's free memory that second copies may take; there every call counts
PART = 512  # columns; buffers for `step` are whole parts of them
PROCESSORS = 128  # of a large GPU: an H100 has 132


def join_projections(
    projections: Sequence[nn.Module], limit: int, is_alone: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """One function for several projections of the same input, their outputs side by side.

    >>> first, second = nn.Linear(2, 3), nn.Linear(2, 1)
    >>> x = torch.ones(1, 2)
    >>> torch.allclose(join_projections([first, second], limit=8)(x), torch.cat([first(x), second(x)], -1))
    True

    Plain ones of at most `limit` weights become one product on a copy of their weights. On a CPU, if a single token is
    to be read at a time (`is_alone`), it is kept as (input, output), which is read twice as fast as (output, input),
    where outputs are many. Others, such as those that an adapter has changed, are called one by one.
    """
    is_plain = all(map(is_plain_linear, projections))
    if not is_plain or sum(projection.weight.numel() for projection in projections) > limit:
        return lambda hidden: torch.cat([projection(hidden) for projection in projections], dim=-1)
    weight = torch.cat([projection.weight for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias for projection in projections])
    if weight.device.type != "cpu" or not is_alone:
        return lambda hidden: multiply(hidden, weight, bias)
    weight = weight.t().contiguous()
    return (lambda hidden: hidden @ weight) if bias is None else (lambda hidden: hidden @ weight + bias)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of plain numbers: no adapter's, and no quantized one."""
    return type(module) is nn.Linear and type(module.weight.data) is torch.Tensor


def multiply(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` of `(token, size)`; of a few tokens in float32 on a CPU up to three times as fast.

    There it is `(weight @ hidden.T).T`, for which the weights are read where they lie and not copied first.
    """
    if not _is_few(hidden):
        return nn.functional.linear(hidden, weight, bias)
    product = nn.functional.linear(weight, hidden.contiguous()).t()
    return product if bias is None else product + bias


def _is_few(hidden: torch.Tensor) -> bool:
    return hidden.device.type == "cpu" and hidden.dtype == torch.float32 and 1 < len(hidden) <= FEW_TOKENS


def sum_up(linear: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of `hidden` and `inputs`, both `(token, size)`: `hidden + linear(inputs)`, written over `hidden`.

    >>> linear = nn.Linear(2, 2, bias=False)
    >>> x, y = torch.ones(2, 1, 2)
    >>> torch.allclose(sum_up(linear)(x.clone(), y), x + linear(y))
    True
    """
    if not is_plain_linear(linear) or linear.bias is not None:
        return lambda hidden, inputs: hidden.add_(linear(inputs))
    weight = linear.weight

    def add(hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return hidden.add_(multiply(inputs, weight)) if _is_few(inputs) else hidden.addmm_(inputs, weight.t())

    return add


def normalize(norm: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that does what a norm does, in few kernels if it is Llama's. (That one rounds once more on its way.)

    >>> norm = LlamaRMSNorm(3, eps=0.1)
    >>> x = torch.tensor([[0.0, 1.0, 2.0], [0.1, 0.0, 0.0]])
    >>> torch.allclose(normalize(norm)(x), norm(x))
    True
    """
    if type(norm) is not LlamaRMSNorm:
        return norm
    weight, size = norm.weight, norm.weight.numel()
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return lambda hidden: nn.functional.rms_norm(hidden, weight.shape, weight, norm.variance_epsilon)
    # The mean of squares is that of the length. A CPU's `rms_norm` is twice as many kernels.
    scale, least = weight * size**0.5, torch.tensor((size * norm.variance_epsilon) ** 0.5)
    return lambda hidden: hidden / torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).hypot_(least) * scale


def joint_weights(model: nn.Module, rows: int) -> int:
    """How many weights projections may have to be joined: on a GPU any, if copies of all fit a share of the rest.

    On a CPU those of a few rows, where a call weighs as much as its product.
    """
    if model.device.type != "cuda":
        return JOINT_WEIGHTS if rows <= JOINT_ROWS else 0
    copied = sum(parameter.nbytes for parameter in model.layers.parameters())  # at most
    return sys.maxsize if copied < FREE_SHARE * torch.cuda.mem_get_info(model.device)[0] else JOINT_WEIGHTS


def zeros_to_stream(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, on a CPU in the system's large pages where it has them: an eighth less time to read all of it."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


@dataclass(frozen=True)
class Layer:
    """What is called of a decoder layer, in this order; hidden states are `(token, size)`."""

    normalize_input: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]  # to queries, keys and values side by side
    add_mixed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden states, and attention's output
    normalize_mixed: Callable[[torch.Tensor], torch.Tensor]
    widen: Callable[[torch.Tensor], torch.Tensor]  # to gate and values side by side
    activate: Callable[[torch.Tensor], torch.Tensor]
    add_narrowed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden states, and gated values


class CachedLayers:
    """The layers of a model, and what they remember of `columns` tokens in each of some rows.

    Args:
        model: A `LlamaModel`, its weights and adapters as they are now.
        rows: Of the buffers, which are zero at first.
        columns: Of the buffers.
    """

    def __init__(self, model: nn.Module, rows: int, columns: int):
        config = self.config = model.config
        self.model = model
        shape = config.num_hidden_layers, 2, rows, config.num_key_value_heads, columns, config.head_dim
        self.caches = zeros_to_stream(shape, model.dtype, model.device)
        self.is_small = rows * config.num_attention_heads < PROCESSORS
        self.heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        limit, is_alone = joint_weights(model, rows), rows == 1
        self.layers = [
            Layer(
                normalize(layer.input_layernorm),
                join_projections([attention.q_proj, attention.k_proj, attention.v_proj], limit, is_alone),
                sum_up(attention.o_proj),
                normalize(layer.post_attention_layernorm),
                join_projections([layer.mlp.gate_proj, layer.mlp.up_proj], limit, is_alone),
                layer.mlp.act_fn,
                sum_up(layer.mlp.down_proj),
            )
            for layer in model.layers
            for attention in [layer.self_attn]
        ]
        places = torch.arange(columns, device=model.device)[None]
        cos, sin = (part[0] for part in model.rotary_emb(self.caches, places))
        sign = torch.ones_like(sin[0])
        sign[: config.head_dim // 2] = -1
        self.cos, self.sin = cos, sin * sign  # rotate_half(x) * sin is the halves of x exchanged, times this

    def feed(
        self,
        ids: torch.LongTensor,
        positions: torch.LongTensor,
        place: tuple[slice, slice],
        mask: torch.BoolTensor | None,
    ) -> torch.Tensor:
        """Runs some columns of some rows, and remembers them.

        Only each row's last token is asked for: the last layer gives the others no more than keys and values.

        Args:
            ids: (row, token): what stands in these columns.
            positions: (row, token): for the rotation of queries and keys.
            place: Which rows and columns of a tensor (row, column).
            mask: (row or 1, 1, token, column): which columns each token sees; None for every one up to its own.

        Returns:
            Hidden states of each row's last token, (row, 1, hidden).
        """
        num_heads, num_shared, size = self.heads
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        rows, columns = place
        hidden = self.model.embed_tokens(ids).flatten(0, 1)
        for layer, caches in zip(self.layers, self.caches, strict=True):
            heads = layer.project(layer.normalize_input(hidden)).view(*ids.shape, -1, size)
            turned, value = heads.split([num_heads + num_shared, num_shared], dim=2)
            turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
            query, key = turned.split([num_heads, num_shared], dim=2)
            # As (row, column, head, size), where `place` fits.
            caches[0].transpose(1, 2)[place], caches[1].transpose(1, 2)[place] = key, value
            keys, values = caches[:, rows, :, : columns.stop]
            if layer is self.layers[-1]:
                hidden, query = hidden.view(*ids.shape, -1)[:, -1], query[:, -1:]
                mask = None if mask is None else mask[:, :, -1:]
            hidden = layer.add_mixed(hidden, _attend(query.transpose(1, 2), keys, values, mask))
            gate, up = layer.widen(layer.normalize_mixed(hidden)).chunk(2, dim=-1)
            hidden = layer.add_narrowed(hidden, layer.activate(gate) * up)
        return hidden.view(len(ids), -1, hidden.shape[-1])

    def share(self, rows: slice, stop: int, count: int) -> None:
        """Has every `count` rows remember of the columns before `stop` what the first of them does."""
        kept = self.caches[:, :, rows, :, :stop].unflatten(2, (-1, count))
        kept[:, :, :, 1:] = kept[:, :, :, :1]

    def reach(self, stop: int) -> int:
        """How many columns `CachedLayers.step` is to look at, to see those before `stop`: few different numbers."""
        columns = self.caches.shape[-2]
        return columns if self.is_small else min(-(-stop // PART) * PART, columns)

    def step(
        self, ids: torch.LongTensor, positions: torch.LongTensor, column: torch.LongTensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Runs one column of every row, and remembers it: in few kernels, all of one shape wherever the column is.

        Nothing here waits for the device, and all that varies is read from tensors: a CUDA graph can hold it.

        Args:
            ids: (row, 1): what stands in the column.
            positions: (row, 1): for the rotation of queries and keys.
            column: (1,): which one it is.
            bias: (row or 1, 1, column): 0 for each column that is seen, or -inf; as many as `reach` says.

        Returns:
            Hidden states (row, hidden).
        """
        num_heads, num_shared, size = self.heads
        attend = _attend_in_parts if self.is_small or num_shared < num_heads else _attend_fused
        cos, sin = torch.diag_embed(self.cos[positions[:, 0]]), torch.diag_embed(self.sin[positions[:, 0]])
        rotation = cos + sin.roll(size // 2, -2)  # one product instead of three kernels
        hidden = self.model.embed_tokens(ids)[:, 0]
        for layer, caches in zip(self.layers, self.caches, strict=True):
            heads = layer.project(layer.normalize_input(hidden)).view(len(ids), -1, size)
            turned, value = heads.split([num_heads + num_shared, num_shared], dim=1)
            query, key = torch.bmm(turned, rotation).split([num_heads, num_shared], dim=1)
            caches[0].index_copy_(2, column, key[:, :, None])
            caches[1].index_copy_(2, column, value[:, :, None])
            keys, values = caches[:, :, :, : bias.shape[-1]]
            hidden = layer.add_mixed(hidden, attend(query, keys, values, bias))
            gate, up = layer.widen(layer.normalize_mixed(hidden)).chunk(2, dim=-1)
            hidden = layer.add_narrowed(hidden, layer.activate(gate) * up)
        return hidden


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of queries (row, head, token, size) to (row, key-value head, column, size): (row * token, hidden)."""
    num_rows, num_heads, num_tokens, _ = query.shape
    if num_tokens == 1 and query.device.type == "cpu":
        return _attend_once(query[:, :, 0], keys, values, mask)
    mixed = nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and num_tokens > 1,
        enable_gqa=keys.shape[1] < num_heads,
    )
    return mixed.transpose(1, 2).reshape(num_rows * num_tokens, -1)


def _attend_once(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None):
    """Attention of one token, queries (row, head, size), on a CPU: (row, hidden)."""
    num_rows, num_heads, size = query.shape
    grouped = query.contiguous().view(num_rows, keys.shape[1], -1, size)  # queries that share keys and values
    if num_heads > keys.shape[1] and query.dtype == torch.float32:
        # They are as the tokens of one head.
        return nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(num_rows, -1)
    grouped = grouped.flatten(0, 1) * size**-0.5
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
