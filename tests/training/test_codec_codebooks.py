"""Codebooks: fitted ones find the nearest code; they follow the latents that choose them, and idle codes come back."""

import itertools

import pytest
import torch
from transformers import DacModel

from tests.training.tiny_codec import CONFIG, shape_with
from training_dacse.codec.codebooks import MEMORY, MovingCodebooks, fit_codebooks


@torch.no_grad()
def test_fitted_codebooks_find_the_nearest_codes_and_leave_less_with_each():
    codec, generator = DacModel(shape_with(n_codebooks=3)), torch.Generator().manual_seed(0)
    latents = torch.randn(800, 3, generator=generator) @ torch.randn(3, codec.config.hidden_size, generator=generator)
    fit_codebooks(codec, latents, generator)
    left, energies = latents, [latents.square().mean()]
    for quantizer in codec.quantizer.quantizers:
        assert quantizer.codebook.weight[:, :-1].std() == pytest.approx(1, rel=0.05)
        added = quantizer.out_proj(quantizer.codebook.weight.T[None])[0].T
        codes = quantizer(left.T[None])[3][0]
        assert (codes == torch.cdist(left, added).argmin(1)).float().mean() > 0.9
        left = left - added[codes]
        energies.append(left.square().mean())
    assert all(after < 0.5 * before for before, after in itertools.pairwise(energies))


def latents_at(values):
    """Projected latents (1, codebook * dim, frame): one frame for each value, the same in all dimensions."""
    return torch.tensor(values).expand(CONFIG.n_codebooks * CONFIG.codebook_dim, -1)[None].clone()


def test_codes_move_towards_the_mean_of_the_latents_that_chose_them():
    codec = DacModel(CONFIG)
    codebooks = MovingCodebooks(codec)
    weight = codec.quantizer.quantizers[0].codebook.weight
    before = weight.clone()
    codes = torch.tensor([0, 0, 1]).expand(1, CONFIG.n_codebooks, -1)
    codebooks.observe(latents_at([4.0, 6.0, 1.0]), codes)
    new = 1 - MEMORY
    torch.testing.assert_close(weight[0], (MEMORY * before[0] + new * 10.0) / (MEMORY + new * 2))
    torch.testing.assert_close(weight[1], (MEMORY * before[1] + new * 1.0) / (MEMORY + new))
    torch.testing.assert_close(weight[2:], before[2:])
    for _ in range(1000):
        codebooks.observe(latents_at([4.0, 6.0, 1.0]), codes)
    torch.testing.assert_close(weight[:2], torch.tensor([[5.0], [1.0]]).expand(2, 4), rtol=1e-3, atol=0)


def test_idle_codes_move_onto_latents_of_the_batch():
    codec = DacModel(CONFIG)
    codebooks = MovingCodebooks(codec)
    codes = torch.zeros(1, 2, 3, dtype=torch.long)
    for _ in range(1000):
        codebooks.observe(latents_at([5.0, 5.0, 5.0]), codes)
    assert codebooks.restart_idle(latents_at([7.0, 7.0, 7.0]), torch.Generator().manual_seed(0)) == 2 * 15
    for quantizer in codec.quantizer.quantizers:
        torch.testing.assert_close(quantizer.codebook.weight[0], torch.full((4,), 5.0), rtol=1e-3, atol=0)
        assert torch.all(quantizer.codebook.weight[1:] == 7)
    assert codebooks.restart_idle(latents_at([9.0, 9.0, 9.0]), torch.Generator().manual_seed(0)) == 0


def test_no_gradient_moves_codes_or_the_constant_coordinate():
    codec = DacModel(CONFIG)
    MovingCodebooks(codec)
    codec.quantizer(torch.randn(2, codec.config.hidden_size, 5))[0].square().sum().backward()
    for quantizer in codec.quantizer.quantizers:
        assert quantizer.codebook.weight.grad is None
        for gradient in (quantizer.in_proj.weight.grad, quantizer.in_proj.bias.grad):
            assert torch.all(gradient[-1] == 0) and torch.all(gradient[:-1] != 0)


def test_commitment_is_the_square_of_small_distances_and_grows_like_large_ones():
    codec = DacModel(CONFIG)
    codebooks = MovingCodebooks(codec)
    for quantizer in codec.quantizer.quantizers:
        quantizer.codebook.weight.zero_()
    codes = torch.zeros(1, CONFIG.n_codebooks, 1, dtype=torch.long)
    small, far, further = (float(codebooks.commitment(latents_at([value]), codes)) for value in (0.1, 100.0, 200.0))
    assert small == pytest.approx(CONFIG.n_codebooks * 0.1**2, rel=0.01)
    assert further == pytest.approx(2 * far, rel=0.02)


def test_commitment_moves_latents_towards_the_code_each_of_them_chose():
    codec = DacModel(CONFIG)
    codebooks = MovingCodebooks(codec)
    latents = latents_at([1.0, -1.0]).requires_grad_(True)
    chosen = torch.tensor([[3, 5]]).expand(1, CONFIG.n_codebooks, -1)
    codebooks.commitment(latents, chosen).backward()
    codes = torch.cat([each.codebook.weight[[3, 5]] for each in codec.quantizer.quantizers], 1).T[None]
    assert torch.equal(latents.grad.sign(), (latents - codes).detach().sign())
