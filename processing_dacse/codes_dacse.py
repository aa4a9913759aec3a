"""Turns codes into token ids and back. Knows no audio, model or file."""

import torch


def _codebook_offsets(
    num_codebooks: int, codebook_size: int, first_code_id: int, device: torch.device
) -> torch.Tensor:
    """Id of code 0 of every codebook, (codebook,)."""
    return first_code_id + codebook_size * torch.arange(num_codebooks, device=device)


def codes_to_ids(codes: torch.Tensor, codebook_size: int, first_code_id: int) -> torch.Tensor:
    """Lays codes out as token ids, frame by frame, codebook by codebook within a frame (arXiv 2510.02187, section 3).

    Args:
        codes: LongTensor (batch, codebook, frame), each in `[0, codebook_size)`.
        codebook_size: codes per codebook.
        first_code_id: id of code 0 of the first codebook; the ids below it are special tokens.

    Returns:
        LongTensor (batch, frame * codebook) with `id = first_code_id + codebook * codebook_size + code`.

    Raises:
        ValueError: a code lies outside its codebook.

    >>> codes_to_ids(torch.tensor([[[0, 1], [2, 3]]]), codebook_size=10, first_code_id=5)
    tensor([[ 5, 17,  6, 18]])
    """
    outside = (codes < 0) | (codes >= codebook_size)
    if outside.any():
        raise ValueError(f"code {codes[outside][0]} is outside its codebook; codes go from 0 to {codebook_size - 1}")
    offsets = _codebook_offsets(codes.shape[1], codebook_size, first_code_id, codes.device)
    return (codes + offsets[:, None]).transpose(1, 2).flatten(1)


def ids_to_codes(ids: torch.Tensor, num_codebooks: int, codebook_size: int, first_code_id: int) -> torch.Tensor:
    """Reads token ids back as codes: the inverse of `codes_to_ids`.

    Args:
        ids: LongTensor (batch, frame * codebook), whole frames, no special tokens.
        num_codebooks: codebooks per frame.
        codebook_size: codes per codebook.
        first_code_id: id of code 0 of the first codebook.

    Returns:
        LongTensor (batch, codebook, frame).

    Raises:
        ValueError: the ids are not whole frames, or an id does not belong to the codebook whose turn it is.

    >>> ids_to_codes(torch.tensor([[5, 17, 6, 18]]), num_codebooks=2, codebook_size=10, first_code_id=5)
    tensor([[[0, 1],
             [2, 3]]])
    """
    num_frames, rest = divmod(ids.shape[1], num_codebooks)
    if rest:
        raise ValueError(f"{ids.shape[1]} tokens is not a multiple of {num_codebooks} codebooks; give whole frames")
    offsets = _codebook_offsets(num_codebooks, codebook_size, first_code_id, ids.device)
    codes = ids.unflatten(1, (num_frames, num_codebooks)) - offsets
    outside = (codes < 0) | (codes >= codebook_size)
    if outside.any():
        row, frame, codebook = outside.nonzero()[0].tolist()
        position = frame * num_codebooks + codebook
        low = offsets[codebook].item()
        raise ValueError(
            f"token {ids[row, position]} at position {position} is off the grid; "
            f"codebook {codebook} has the ids {low} to {low + codebook_size - 1}"
        )
    return codes.transpose(1, 2)
