"""Anchors hold weights where two pulls are even, and what was forgotten is written down."""

import json

import pytest
import torch
from torch import nn

from training_dacse.lm.anchors import Anchor, fisher_information
from training_dacse.lm.forgetting import ForgettingMatrix


@pytest.mark.parametrize("importance", [None, 4.0])
def test_an_anchor_holds_a_weight_where_both_pulls_are_even(importance):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    anchor = Anchor(model, 0.5, importance and {"weight": torch.full((1, 1), importance)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (0.5 * (model.weight - 3.0) ** 2 + anchor.penalty(model)).sum().backward()
        optimizer.step()
    # minimum of (w - 3)^2 / 2 + strength * importance * w^2 / 2
    assert model.weight.item() == pytest.approx(3.0 / (1 + 0.5 * (importance or 1.0)), rel=1e-4)


def test_an_anchor_leaves_frozen_weights_alone():
    model = nn.Linear(1, 1)
    anchor = Anchor(model, 0.5)
    with torch.no_grad():
        model.bias.add_(7.0)
        model.weight.add_(2.0)
    model.bias.requires_grad_(False)
    assert anchor.penalty(model).item() == pytest.approx(0.25 * 4)


def test_fisher_information_is_the_mean_squared_gradient():
    model = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    fisher = fisher_information(model, (model(row).sum() for row in inputs))
    squares = inputs.square().mean(0, keepdim=True)
    torch.testing.assert_close(fisher["weight"], squares / squares.mean())


def test_a_forgetting_matrix_is_saved_plotted_and_read_back(tmp_path):
    matrix = ForgettingMatrix(["noise", "room"])
    matrix.add("start", {"noise": 3.0, "room": 2.0})
    matrix.add("noise", {"room": 2.5, "noise": 1.0})
    matrix.save(tmp_path)
    assert ForgettingMatrix.load(tmp_path) == matrix
    assert json.loads((tmp_path / "forgetting.json").read_text())["forgetting"] == {"noise": 0.0, "room": 0.5}
    assert (tmp_path / "forgetting.png").read_bytes().startswith(b"\x89PNG")
