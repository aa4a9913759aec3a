"""Picks codes from the scores of one codebook: minimum risk, warpers, draws. Knows scores: no model, no cache."""

import torch
from transformers.generation import LogitsProcessor

from modeling_dacse.grid_dacse import gumbel_noise, negate_risk


class Choice:
    """Picks codes from the scores of one codebook.

    Args:
        vectors: (codebook, code, size): take the code of the least expected error (`negate_risk`); or None.
        warpers: Applied to the scores before an id is drawn.
        row_seeds: (row, 1): draw by `gumbel_noise`, each row for itself.
        do_sample: Without `row_seeds`: draw from torch's global generator, or take the likeliest.
    """

    def __init__(
        self,
        vectors: torch.FloatTensor | None,
        warpers: list[LogitsProcessor],
        row_seeds: torch.LongTensor | None,
        do_sample: bool,
    ):
        self.vectors, self.warpers, self.row_seeds, self.do_sample = vectors, warpers, row_seeds, do_sample

    def pick(self, scores: torch.Tensor, codebook: int, rows: slice, tokens: torch.LongTensor, first: int):
        """Codes (row,) from scores (row, code) of a codebook.

        Args:
            scores: Of the rows `rows`.
            codebook: Which one.
            rows: Which ones.
            tokens: (row, 1): how many new tokens each row has.
            first: Id of the codebook's first code.
        """
        scores = scores.float()
        if self.vectors is not None:
            scores = negate_risk(scores, self.vectors[codebook])
        for warper in self.warpers:
            scores = warper(None, scores)
        if self.row_seeds is not None:
            ids = first + torch.arange(scores.shape[1], device=scores.device)
            scores = scores + gumbel_noise(self.row_seeds[rows], tokens, ids)
        elif self.do_sample:
            shares = scores.softmax(-1)
            # As `torch.multinomial` draws, which waits for the device to check the shares.
            scores = shares / torch.empty_like(shares).exponential_()
        return scores.argmax(-1)
