"""Codes of several clips joined into one batch of ids with labels and masks. Knows the token layout, no audio."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from processing_dacse.codes_dacse import codes_to_ids

IGNORED = -100  # label of what the loss does not see
SPECIAL_IDS = 3  # [bos], [start_clean] and [eos]


def sequence_length(num_frames: Tensor, num_codebooks: int) -> Tensor:
    """Tokens of `[bos] noisy [start_clean] clean [eos]` of clips of so many frames.

    >>> int(sequence_length(torch.tensor(345), 9))
    6213
    """
    return 2 * num_frames * num_codebooks + SPECIAL_IDS


def training_sequence(example: dict, config: PretrainedConfig) -> tuple[Tensor, Tensor]:
    """Ids `[bos] noisy [start_clean] clean [eos]` of an example and its labels, (token,) each: -100 up to and
    including `start_clean`.

    Args:
        example: `noisy` and `clean` codes (codebook, frame).
        config: names the token layout (`first_code_id`, `codebook_size`, special ids).
    """
    noisy, clean = (
        codes_to_ids(example[side][None], config.codebook_size, config.first_code_id)[0] for side in ("noisy", "clean")
    )
    bos, start, eos = (
        torch.tensor([token]) for token in (config.bos_token_id, config.start_clean_token_id, config.eos_token_id)
    )
    ids = torch.cat([bos, noisy, start, clean, eos])
    return ids, torch.cat([torch.full((len(noisy) + 2,), IGNORED), ids[len(noisy) + 2 :]])


@dataclass
class TokenCollator:
    """Makes a padded batch of examples: `noisy` and `clean` codes (codebook, frame) and the number of their `task`.

    Args:
        config: names the token layout.
        padding_side: "right" (training: no mask is needed before a causal model) or "left" (generation).

    The batch holds `input_ids` and `labels` (example, token), `task` (example,), and `attention_mask` where anything
    was padded: without it attention stays on its fastest path.
    """

    config: PretrainedConfig
    padding_side: str = "right"

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        rows = [training_sequence(example, self.config) for example in examples]
        longest = max(len(ids) for ids, _ in rows)
        batch = {
            "input_ids": [self.pad(ids, longest, self.config.pad_token_id) for ids, _ in rows],
            "labels": [self.pad(labels, longest, IGNORED) for _, labels in rows],
            "attention_mask": [self.pad(torch.ones_like(ids), longest, 0) for ids, _ in rows],
        }
        tensors = {name: torch.stack(values) for name, values in batch.items()}
        if tensors["attention_mask"].all():
            del tensors["attention_mask"]
        return {**tensors, "task": torch.tensor([example["task"] for example in examples])}

    def pad(self, row: Tensor, length: int, value: int) -> Tensor:
        """One row filled up to `length`."""
        missing = row.new_full((length - len(row),), value)
        return torch.cat([row, missing] if self.padding_side == "right" else [missing, row])


@dataclass
class PackingCollator:
    """Makes one row of several examples, one after the other, each of which sees itself alone.

    Args:
        config: names the token layout.
        flash_attention: tell it where the examples begin (`cu_seq_lens_q`, ...); other kinds of attention read it
            off `position_ids`, which begin again with each example.

    The batch holds `input_ids`, `labels`, `position_ids` and `example` (1, token), the number of the example that a
    token is of; `logits_to_keep` (kept,), the tokens after which a label comes; and `task` (example,).
    """

    config: PretrainedConfig
    flash_attention: bool = False

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        rows = [training_sequence(example, self.config) for example in examples]
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        labels = torch.cat([labels for _, labels in rows])
        batch = {
            "input_ids": torch.cat([ids for ids, _ in rows])[None],
            "labels": labels[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "example": torch.arange(len(rows)).repeat_interleave(lengths)[None],
            "logits_to_keep": (labels[1:] != IGNORED).nonzero().flatten(),
            "task": torch.tensor([example["task"] for example in examples]),
        }
        if self.flash_attention:
            bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            longest = self.config.max_position_embeddings  # an upper bound: the same for all batches when compiled
            batch |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
            batch |= {"max_length_q": longest, "max_length_k": longest}
        return batch
