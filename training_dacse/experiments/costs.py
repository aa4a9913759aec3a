"""What training a model costs, from its configuration alone. Knows no data."""

import torch
from torch import Tensor
from transformers import PretrainedConfig

STATE_BYTES = 16  # per parameter: float32 weight and gradient, two float32 moments of AdamW


def training_flops(config: PretrainedConfig, lengths: Tensor) -> float:
    """Floating-point operations of one step, forward and backward, over sequences of these lengths (sequence,).

    `6 * weights` of each token and `12 * layers * width` of each pair of tokens (Chowdhery et al. 2022, arXiv
    2204.02311, appendix B: a causal mask saves nothing); the output layer counts for half of the tokens, for only the
    clean half goes through it.
    """
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = 2 * width * heads + 2 * width * keys + 3 * width * config.intermediate_size
    weights = config.num_hidden_layers * layer + width * config.vocab_size / 2
    tokens, pairs = int(lengths.sum()), int(lengths.square().sum())
    return 6.0 * weights * tokens + 12.0 * config.num_hidden_layers * heads * pairs


def training_flops_per_token(config: PretrainedConfig) -> float:
    """Those of one token of a full context."""
    context = config.max_position_embeddings
    return training_flops(config, torch.tensor([context])) / context


def training_memory(config: PretrainedConfig, parameters: int, tokens: int) -> dict[str, int]:
    """Bytes of training with AdamW and bf16 autocast, one sequence at a time.

    Args:
        config: of the model.
        parameters: their number.
        tokens: length of the sequence.

    Returns:
        `state` (weights, gradients, moments), `activations` kept for the backward pass, and
        `activations_checkpointed` with gradient checkpointing (the input of every layer and the inside of one).
        Estimates: per layer and token about `14 * width + 4 * intermediate` numbers of 2 bytes with fused attention,
        and 3 float32 numbers per token of the clean half and vocabulary entry for the loss.
    """
    inside = 2 * tokens * (14 * config.hidden_size + 4 * config.intermediate_size)
    loss = 4 * 3 * (tokens // 2) * config.vocab_size
    boundaries = 2 * tokens * config.hidden_size * config.num_hidden_layers
    return {
        "state": STATE_BYTES * parameters,
        "activations": inside * config.num_hidden_layers + loss,
        "activations_checkpointed": boundaries + inside + loss,
    }
