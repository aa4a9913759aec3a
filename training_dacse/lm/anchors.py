"""Keeps a fine-tuned model near the weights it began with. Knows parameters and gradients; no data, no task names."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Anchor:
    """The pull `strength / 2 * sum(importance * (weight - anchor) ** 2)`, a part of what is minimised.

    With importance 1 this is L2-SP (Li, Grandvalet, Davoine 2018, arXiv 1802.01483, eq. 2); with the diagonal Fisher
    information it is EWC (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3).

    Args:
        model: its present weights are the anchor.
        strength: of the pull.
        importance: of every weight, by name; 1 where left out.
    """

    def __init__(self, model: nn.Module, strength: float, importance: dict[str, Tensor] | None = None):
        self.strength, self.importance = strength, importance
        self.anchor = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def penalty(self, model: nn.Module) -> Tensor:
        """The pull on a model's trained weights."""
        total = next(model.parameters()).new_zeros((), dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                squares = (weight - self.anchor[name]).square()
                total = total + (squares if self.importance is None else squares * self.importance[name]).sum()
        return self.strength / 2 * total


def fisher_information(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: the mean squared gradient of every weight, scaled to a mean of 1.

    Args:
        model: its gradients are cleared.
        losses: the loss of one batch each, with its graph.
    """
    squares = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for loss in losses:
        model.zero_grad()
        loss.backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:  # not frozen
                squares[name] += weight.grad.square()
    model.zero_grad()
    mean = sum(square.sum() for square in squares.values()) / sum(square.numel() for square in squares.values())
    return {name: square / mean for name, square in squares.items()}
