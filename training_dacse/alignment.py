"""Starts a language model with heads that already listen to the noisy frame they are to clean. Knows no data."""

import torch

from modeling_dacse import DacSeForEnhancement

CONSTANT = 0.5  # one channel that is the same for every token, from which queries and keys are made
MARGIN = 6.0  # nats by which the aligned token stands above its neighbours


@torch.no_grad()
def align_attention(model: DacSeForEnhancement, frames: int) -> None:
    """Has three heads of the first layer of a new model attend to the aligned noisy frame, the next and the last.

    In `[bos] noisy [start_clean] clean`, the noisy token that belongs to the clean one being predicted lies a fixed
    distance back when all clips have one length. With rotary positions a head whose query is its key turned back by
    that distance looks exactly there, whatever the tokens are; the first such head also starts by copying what it sees
    to the output. A model from random weights otherwise spends most of a short training on finding the place.

    Args:
        model: new, with at least three heads and as many key-value heads.
        frames: of every training clip.

    Raises:
        ValueError: the model has too few heads, or shares keys between heads.
    """
    config, layer = model.config, model.model.layers[0].self_attn
    if not 3 <= config.num_attention_heads == config.num_key_value_heads:
        raise ValueError(
            f"{config.num_attention_heads} heads with {config.num_key_value_heads} of keys: alignment needs at least "
            "three, each with keys of its own; leave out window_frames or give more"
        )
    width, dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    frequencies = model.model.rotary_emb.inv_freq
    model.get_input_embeddings().weight[:, 0] = CONSTANT
    normed = CONSTANT / (config.initializer_range**2 + CONSTANT**2 / width) ** 0.5  # behind the first RMSNorm
    gain = (MARGIN * dim**0.5 / (1 - frequencies.cos()).sum()) ** 0.5 / normed
    aligned = frames * config.num_codebooks
    for head, distance in enumerate((aligned, aligned - config.num_codebooks, aligned + config.num_codebooks)):
        rows, turn = slice(head * dim, (head + 1) * dim), distance * frequencies
        for projection, halves in ((layer.k_proj, (0 * turn, 0 * turn)), (layer.q_proj, (turn, turn))):
            projection.weight[rows] = 0.0
            projection.weight[rows, 0] = gain * torch.cat([halves[0].cos(), -halves[1].sin()])
    directions = torch.linalg.qr(torch.randn(width, dim, device=frequencies.device)).Q.T  # (dim, width), orthonormal
    directions[:, 0] = 0.0
    layer.v_proj.weight[:dim] = directions
    layer.o_proj.weight[:, :dim] = directions.T
    layer.v_proj.weight[dim : 3 * dim].normal_(0.0, width**-0.5)
    layer.o_proj.weight[:, dim : 3 * dim].normal_(0.0, 0.3 * (2 * dim) ** -0.5)
