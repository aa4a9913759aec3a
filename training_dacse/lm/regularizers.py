"""Keeps a fine-tuned model near the weights it began with. Knows parameters and gradients; no data, no task names."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class Anchor(TrainerCallback):
    """Adds the gradient of `strength / 2 * sum(importance * (weight - anchor) ** 2)` before every optimizer step.

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

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        for name, weight in getattr(model, "module", model).named_parameters():
            if weight.grad is None:  # frozen
                continue
            pull = self.strength * (weight - self.anchor[name])
            weight.grad += pull if self.importance is None else pull * self.importance[name]


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
            squares[name] += weight.grad.square()
    model.zero_grad()
    mean = sum(square.sum() for square in squares.values()) / sum(square.numel() for square in squares.values())
    return {name: square / mean for name, square in squares.items()}
