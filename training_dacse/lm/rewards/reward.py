"""What answers are scored by, and how scores become advantages. Knows waveforms and numbers: no model, no token."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-4  # spread of a group's scores below which their differences count less and less


class Reward(Protocol):
    """Scores waveforms; the higher, the better."""

    def __call__(
        self, waveforms: list[np.ndarray], references: list[np.ndarray] | None, sampling_rate: int
    ) -> dict[str, np.ndarray]:
        """Scores of waveforms.

        Args:
            waveforms: float32 (sample,) each.
            references: the clean recording of each, where there are any.
            sampling_rate: of all, in Hz.

        Returns:
            By name, float (waveform,); nan where a score says nothing.
        """


def group_advantages(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """How much better than its group each answer is, (prompt, answer).

    Every score is first brought to mean 0 and spread 1 within its group, so that a weight says how much a score counts
    whatever its unit (GDPO, arXiv 2601.05242); nan counts as the mean.

    >>> scores = {"mos": torch.tensor([[1.0, 3.0]]), "decibel": torch.tensor([[20.0, -20.0]])}
    >>> group_advantages(scores, {"mos": 3.0, "decibel": 1.0}).round(decimals=2).tolist()
    [[-0.5, 0.5]]

    Args:
        scores: by name, (prompt, answer).
        weights: of those that count.

    Raises:
        ValueError: there is no score of a name.
    """
    total = 0.0
    for name, weight in weights.items():
        if name not in scores:
            raise ValueError(f"no reward is named {name!r}; there are {', '.join(sorted(scores))}")
        distance = (scores[name] - scores[name].nanmean(1, keepdim=True)).nan_to_num(0.0)
        spread = distance.square().mean(1, keepdim=True).sqrt()
        total = total + weight * distance / (spread + SMALLEST)
    return (total / sum(map(abs, weights.values()))).float()


def by_prompt(scores: Mapping[str, np.ndarray], answers: int) -> dict[str, Tensor]:
    """Scores (row,) as (prompt, answer)."""
    return {name: torch.as_tensor(values).double().view(-1, answers) for name, values in scores.items()}
