"""Keeps the codes of a codec in use while it is trained. Knows codes and latents; knows no waveform."""

import torch
from transformers import DacModel


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
