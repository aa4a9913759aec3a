"""Muon and AdamW as one optimizer."""

import torch
from torch import nn

from training_dacse.codec.optimizer import CodecOptimizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(32, 48, 7, padding=3), nn.Conv1d(48, 12, 3, padding=1))


def run(layers, optimizer, steps, share=1.0):
    losses = []
    for seed in steps:
        x = torch.randn(8, 32, 40, generator=torch.Generator().manual_seed(seed))
        loss = (layers(x) - x[:, :12]).square().mean()
        loss.backward()
        optimizer.step(share)
        losses.append(float(loss))
    return losses


def spread(matrix):
    """How far the singular values of a matrix lie apart."""
    values = torch.linalg.svdvals(matrix)
    return values.max() / values.median()


def test_wide_convolutions_move_by_nearly_orthogonal_matrices_of_the_wanted_size():
    layers = network()
    optimizer = CodecOptimizer(layers, 1e-3, 2e-3)
    assert [list(matrix.shape) for matrix in optimizer.matrices] == [[48, 32 * 7]]
    before = layers[0].weight.detach().clone()
    gradients = []
    layers[0].weight.register_hook(gradients.append)
    run(layers, optimizer, [0])
    update = (layers[0].weight - before).detach().flatten(1)
    assert spread(update) < 2 < 3 < spread(gradients[0].flatten(1))
    torch.testing.assert_close(update.square().mean().sqrt(), torch.tensor(0.2 * 2e-3), rtol=0.5, atol=0)


def test_it_trains_and_goes_on_from_its_state():
    whole, parts = network(), network()
    optimizer = CodecOptimizer(whole, 1e-2, 1e-2)
    losses = run(whole, optimizer, range(40))
    assert losses[-1] < 0.5 * losses[0]
    first = CodecOptimizer(parts, 1e-2, 1e-2)
    run(parts, first, range(20))
    second = CodecOptimizer(parts, 1e-2, 1e-2)
    second.load_state_dict(first.state_dict())
    run(parts, second, range(20, 40))
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), parts.parameters(), strict=True))


def test_without_a_learning_rate_nothing_moves():
    layers, untouched = network(), network()
    run(layers, CodecOptimizer(layers, 1e-2, 1e-2), range(3), share=0.0)
    assert all(torch.equal(*pair) for pair in zip(layers.parameters(), untouched.parameters(), strict=True))
