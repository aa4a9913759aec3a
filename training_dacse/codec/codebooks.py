"""Fits the codebooks of a codec to its latents, and keeps codes in use. Knows codes and latents; knows no waveform."""

import torch
from torch import Tensor
from transformers import DacModel

ROUNDS = 8  # of k-means
MARGIN = 4.0  # how much further than the furthest code the constant coordinate lies


@torch.no_grad()
def fit_codebooks(model: DacModel, latents: Tensor, generator: torch.Generator) -> None:
    """Fits each codebook to what those before it leave of the latents, by k-means.

    `DacModel` looks codes up by their angle. With one coordinate that is the same large number R for every latent and
    code, and the others small beside it, the angle between latent x and code c grows with x.c - |c|^2 / 2: the nearest
    code in the ordinary sense is found. Codebook k lives in the directions in which its code vectors differ most.

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
        constant = MARGIN * codes.norm(dim=1).max()
        quantizer.codebook.weight.copy_(torch.cat([codes, constant.expand(size, 1)], 1))
        quantizer.in_proj.weight.copy_(torch.cat([directions, torch.zeros_like(directions[:1])])[..., None])
        quantizer.in_proj.bias.zero_()[-1] = constant
        quantizer.out_proj.weight.copy_(torch.cat([directions.T, torch.zeros_like(directions[:1].T)], 1)[..., None])
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


class CodebookWatch:
    """Counts the use of every code and puts unused ones back among the latents (Jukebox, arXiv 2005.00341, 4.1)."""

    def __init__(self, model: DacModel):
        self.quantizers = model.quantizer.quantizers
        config = model.config
        self.counts = torch.zeros(config.n_codebooks, config.codebook_size, dtype=torch.long, device=model.device)

    @torch.no_grad()
    def observe(self, codes: torch.Tensor) -> None:
        """Adds the codes of one batch, (batch, codebook, frame)."""
        flat = codes.transpose(0, 1).flatten(1)
        self.counts.scatter_add_(1, flat, torch.ones_like(flat))

    def used(self) -> list[int]:
        """How many codes of each codebook were seen since the counts were last set to zero."""
        return (self.counts > 0).sum(1).tolist()

    @torch.no_grad()
    def restart(self, projected_latents: torch.Tensor, generator: torch.Generator) -> None:
        """Moves each code that was not seen onto a random one of these latents, (batch, codebook * dim, frame)."""
        latents = projected_latents.unflatten(1, (len(self.quantizers), -1))
        for index, quantizer in enumerate(self.quantizers):
            dead = (self.counts[index] == 0).nonzero().squeeze(1)
            pool = latents[:, index].transpose(1, 2).flatten(0, 1)
            picks = torch.randint(len(pool), (len(dead),), generator=generator).to(pool.device)
            quantizer.codebook.weight[dead] = pool[picks]
