"""Fits the codebooks of a codec to its latents, and moves them along. Knows codes and latents; knows no waveform."""

import torch
from torch import Tensor
from transformers import DacModel

ROUNDS = 8  # of k-means
MARGIN = 4.0  # how much further than the furthest code the constant coordinate lies
MEMORY = 0.99  # of the moving averages, a step
IDLE = 0.01  # of a code's fair share of the latents: below, it is restarted
RESTARTED = 0.2  # of a fair share: what a restarted code counts for at first


@torch.no_grad()
def fit_codebooks(model: DacModel, latents: Tensor, generator: torch.Generator) -> None:
    """Fits each codebook to what those before it leave of the latents, by k-means.

    `DacModel` looks codes up by their angle. With one coordinate that is the same large number R for every latent and
    code, and the others small beside it, the angle between latent x and code c grows with x.c - |c|^2 / 2: the nearest
    code in the ordinary sense is found. Codebook k lives in the directions in which its code vectors differ most,
    scaled so that they have a standard deviation of 1: its commitment loss is then near those of the other codebooks.

    Args:
        model: whose `codebook_dim` is at least 2; its last dimension becomes the constant one.
        latents: output of the encoder, (frame, hidden); several times as many frames as a codebook has codes.
        generator: draws the first codes.
    """
    residual, size = latents, model.config.codebook_size
    for quantizer in model.quantizer.quantizers:
        codes = k_means(residual, size, generator)
        directions = torch.linalg.svd(codes, full_matrices=False).Vh[: quantizer.codebook_dim - 1]
        codes = codes @ directions.T
        scale = 1 / codes.std()
        constant = MARGIN * scale * codes.norm(dim=1).max()
        quantizer.codebook.weight.copy_(torch.cat([scale * codes, constant.expand(size, 1)], 1))
        silent = torch.zeros_like(directions[:1])
        quantizer.in_proj.weight.copy_(torch.cat([scale * directions, silent])[..., None])
        quantizer.in_proj.bias.zero_()[-1] = constant
        quantizer.out_proj.weight.copy_(torch.cat([directions / scale, silent]).T[..., None])
        quantizer.out_proj.bias.zero_()
        residual = residual - quantizer(residual.T[None])[0][0].T


def k_means(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm: (point, dim) -> means (size, dim); a mean that loses all its points moves onto another.

    >>> points = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
    >>> k_means(points, 2, torch.Generator().manual_seed(0)).sort(0).values
    tensor([[0.1000],
            [5.1000]])
    """
    means = points[torch.randperm(len(points), generator=generator)[:size].to(points.device)]
    for _ in range(ROUNDS):
        nearest = (points @ means.T - means.square().sum(1) / 2).argmax(1)
        counts = torch.bincount(nearest, minlength=size)
        means = torch.zeros_like(means).index_add_(0, nearest, points) / counts.clamp(min=1)[:, None]
        lost = (counts == 0).nonzero().squeeze(1)
        means[lost] = points[torch.randint(len(points), (len(lost),), generator=generator).to(points.device)]
    return means


class MovingCodebooks:
    """Keeps every code at the moving average of the latents that chose it (arXiv 1711.00937, appendix A.1).

    No gradient moves them, and none moves the constant coordinate of `fit_codebooks`. Codes that are hardly chosen any
    more are put back among the latents (Jukebox, arXiv 2005.00341, section 4.1).

    Args:
        model: a codec with fitted codebooks.

    Attributes:
        counts: how often each code was chosen in a step, a moving average, (codebook, code).
        sums: of the latents that chose it, likewise, (codebook, code, dim).
    """

    def __init__(self, model: DacModel):
        self.quantizers = model.quantizer.quantizers
        self.reset()
        for quantizer in self.quantizers:
            quantizer.codebook.weight.requires_grad_(False)
            for parameter in quantizer.in_proj.parameters():
                moving = torch.ones_like(parameter)
                moving[-1] = 0.0
                parameter.register_hook(moving.mul)

    def reset(self) -> None:
        """Begins with the codebooks as they are, every code chosen equally often."""
        self.sums = torch.stack([quantizer.codebook.weight.detach() for quantizer in self.quantizers])
        self.counts = torch.ones_like(self.sums[..., 0])

    @torch.no_grad()
    def observe(self, projected_latents: Tensor, codes: Tensor) -> None:
        """Moves codes towards the latents (batch, codebook * dim, frame) that chose codes (batch, codebook, frame)."""
        chosen_codes, pools = codes.transpose(0, 1).flatten(1), self.pools(projected_latents)
        for quantizer, counts, sums, chosen, pool in zip(
            self.quantizers, self.counts, self.sums, chosen_codes, pools, strict=True
        ):
            now = torch.bincount(chosen, minlength=len(counts)).to(counts.dtype)
            counts.lerp_(now, 1 - MEMORY)
            sums.lerp_(torch.zeros_like(sums).index_add_(0, chosen, pool), 1 - MEMORY)
            quantizer.codebook.weight.copy_(sums / counts.clamp(min=1e-8)[:, None])

    def commitment(self, projected_latents: Tensor, codes: Tensor) -> Tensor:
        """How far latents are from the codes that they chose: the mean square over dimensions, summed over codebooks.

        From about 1 on it grows like the distance, not its square: a click makes latents tens of times as large as
        speech does, and one such frame would else turn the step of a whole batch.

        Args:
            projected_latents: (batch, codebook * dim, frame).
            codes: (batch, codebook, frame).
        """
        chosen_codes, pools = codes.transpose(0, 1).flatten(1), self.pools(projected_latents)
        squares = [
            (pool - quantizer.codebook.weight[chosen]).square().mean(-1)
            for quantizer, chosen, pool in zip(self.quantizers, chosen_codes, pools, strict=True)
        ]  # (place,) of each codebook
        return (2 * ((1 + torch.stack(squares)).sqrt() - 1)).sum(0).mean()

    def pools(self, projected_latents: Tensor) -> Tensor:
        """(batch, codebook * dim, frame) -> the latents of each codebook, (codebook, place, dim)."""
        return projected_latents.unflatten(1, (len(self.quantizers), -1)).permute(1, 0, 3, 2).flatten(1, 2)

    @torch.no_grad()
    def restart_idle(self, projected_latents: Tensor, generator: torch.Generator) -> int:
        """Puts codes that are hardly chosen onto random ones of these latents; returns how many."""
        restarted = 0
        pools = self.pools(projected_latents)
        for quantizer, counts, sums, pool in zip(self.quantizers, self.counts, self.sums, pools, strict=True):
            fair = counts.mean()
            idle = (counts < IDLE * fair).nonzero().squeeze(1)
            picks = torch.randint(len(pool), (len(idle),), generator=generator).to(pool.device)
            counts[idle] = RESTARTED * fair
            sums[idle] = RESTARTED * fair * pool[picks]
            quantizer.codebook.weight[idle] = pool[picks]
            restarted += len(idle)
        return restarted

    def state_dict(self) -> dict[str, Tensor]:
        """What a run that goes on needs beside the model."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over such a state."""
        for name in ("counts", "sums"):
            getattr(self, name).copy_(state[name])
