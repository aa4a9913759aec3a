"""Codes of several clips joined into one batch of ids with labels and masks. Knows the token layout, no audio."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from processing_dacse.codes_dacse import codes_to_ids

IGNORED = -100  # label of what the loss does not see


@dataclass
class TokenCollator:
    """Makes `[bos] noisy [start_clean] clean [eos]` of every example and pads the batch.

    Args:
        config: names the token layout (`first_code_id`, `codebook_size`, special ids).
        padding_side: "right" (training: no mask is needed in front of a causal model) or "left" (generation).

    An example holds `noisy` and `clean` codes (codebook, frame) and the number of its `task`. The batch holds
    `input_ids` and `labels` (batch, token), labels -100 up to and including `start_clean` and on padding, `task`
    (batch,), and `attention_mask` where anything was padded: without it attention stays on its fastest path.
    """

    config: PretrainedConfig
    padding_side: str = "right"

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        rows = [self.sequence(example) for example in examples]
        longest = max(len(ids) for ids, _ in rows)
        batch = {"input_ids": [], "labels": [], "attention_mask": []}
        for ids, masked in rows:
            labels = torch.cat([torch.full((masked,), IGNORED), ids[masked:]])
            batch["input_ids"].append(self.pad(ids, longest, self.config.pad_token_id))
            batch["labels"].append(self.pad(labels, longest, IGNORED))
            batch["attention_mask"].append(self.pad(torch.ones_like(ids), longest, 0))
        tensors = {name: torch.stack(rows) for name, rows in batch.items()}
        if tensors["attention_mask"].all():
            del tensors["attention_mask"]
        return {**tensors, "task": torch.tensor([example["task"] for example in examples])}

    def sequence(self, example: dict) -> tuple[Tensor, int]:
        """Ids of one example and how many of them, from the first, are masked in its labels."""
        config = self.config
        noisy, clean = (
            codes_to_ids(example[side][None], config.codebook_size, config.first_code_id)[0]
            for side in ("noisy", "clean")
        )
        bos, start, eos = (
            torch.tensor([token]) for token in (config.bos_token_id, config.start_clean_token_id, config.eos_token_id)
        )
        return torch.cat([bos, noisy, start, clean, eos]), len(noisy) + 2

    def pad(self, row: Tensor, length: int, value: int) -> Tensor:
        """One row filled up to `length`."""
        missing = row.new_full((length - len(row),), value)
        return torch.cat([row, missing] if self.padding_side == "right" else [missing, row])
