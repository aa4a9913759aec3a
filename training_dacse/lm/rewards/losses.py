"""What is minimised when answers have been scored: GSPO, GRPO and DPO. Knows log-probabilities, no token or model.

`own` are log-probabilities by the model that is trained, `old` by the one that drew the answers, `start` by the one
the run began with: (row, token) each, and 0 where `mask`, bool (row, token), has no token of an answer.
"""

import torch
from torch import Tensor, nn

CLIPS = {"gspo": 4e-4, "grpo": 0.2}  # of the papers; a sequence's ratio varies less than a token's


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Means over the tokens of each row, (row,)."""
    return (values * mask).sum(1) / mask.sum(1)


def gspo_loss(own: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, clip: float = CLIPS["gspo"]) -> Tensor:
    """Group sequence policy optimisation (arXiv 2507.18071, eq. 5 to 7): one clipped ratio for each answer, (row,)."""
    ratio = mean_over(own - old, mask).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def grpo_loss(own: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, clip: float = CLIPS["grpo"]) -> Tensor:
    """Group relative policy optimisation (arXiv 2402.03300, eq. 3): a clipped ratio for each token, (row,)."""
    ratio, advantages = (own - old).exp(), advantages[:, None]
    return -mean_over(torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask)


def kl_to_start(own: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """Estimate of the divergence from the start in nats per token, never negative (Schulman 2020, "k3"), (row,).

    >>> own, start = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.0]])
    >>> round(float(kl_to_start(own, start, torch.tensor([[True, True]]))), 3)
    0.359
    """
    distance = start - own
    return mean_over(distance.exp() - distance - 1, mask)


def dpo_loss(own: Tensor, start: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7) of pairs of rows, the preferred one first, (pair,).

    Args:
        own, start, mask: of rows as above.
        beta: the higher, the nearer to the start.
    """
    preferred, other = ((own - start) * mask).sum(1).view(-1, 2).unbind(1)
    return -nn.functional.logsigmoid(beta * (preferred - other))
