"""Balancing, sampling, anchors and the forgetting matrix on toy problems whose answers are known."""

import json

import pytest
import torch
from torch import nn
from transformers import TrainerState

from training_dacse.lm.balancing import BALANCINGS, DynamicWeightAverage, GradNorm, Uncertainty
from training_dacse.lm.forgetting import ForgettingMatrix
from training_dacse.lm.regularizers import Anchor, fisher_information
from training_dacse.lm.sampling import EASIEST, TaskSampler

ALL = torch.tensor([True, True])


def test_uncertainty_settles_where_its_objective_is_lowest():
    balancing, losses = Uncertainty(2), torch.tensor([0.5, 4.0])
    for _ in range(3000):
        balancing.update(losses, ALL)
    torch.testing.assert_close(balancing.weights, 1 / (2 * losses))  # d/ds of exp(-s) loss + s / 2 is zero


def test_gradnorm_evens_gradient_norms_out_when_tasks_train_equally_fast():
    balancing, norms = GradNorm(2, learning_rate=0.003), torch.tensor([1.0, 9.0])
    for step in range(2000):
        balancing.update(torch.full((2,), 0.999**step), ALL, norms)
    weighted = balancing.weights * norms
    assert balancing.weights.sum().item() == pytest.approx(2)
    assert weighted[0].item() == pytest.approx(
        weighted[1].item(), rel=0.1
    )  # the sign of the slope leaves a ripple of one step


def test_gradnorm_lifts_the_task_that_trains_slower():
    balancing = GradNorm(2, learning_rate=0.01)
    for step in range(200):
        balancing.update(torch.tensor([0.99**step, 1.0]), ALL, torch.ones(2))
    assert balancing.weights[1] > 1.1 > 0.9 > balancing.weights[0]


def test_dynamic_weight_average_is_a_softmax_over_the_rates_of_change():
    balancing = DynamicWeightAverage(2, period=1)
    balancing.update(torch.tensor([2.0, 2.0]), ALL)
    torch.testing.assert_close(balancing.weights, torch.ones(2))
    balancing.update(torch.tensor([1.0, 2.0]), ALL)
    torch.testing.assert_close(balancing.weights, 2 * torch.softmax(torch.tensor([0.5, 1.0]) / 2, 0))


def test_dynamic_weight_average_is_at_work_in_a_run_of_minutes():
    balancing = DynamicWeightAverage(2)
    for step in range(50):
        balancing.update(torch.tensor([0.98**step, 1.0]), ALL)
    assert balancing.weights[1] > 1.05 > 0.95 > balancing.weights[0]


@pytest.mark.parametrize("name", list(BALANCINGS))
def test_an_absent_task_moves_nothing_and_a_checkpoint_restores_all(name):
    balancing, norms = BALANCINGS[name](3), torch.ones(3)
    for step in range(3):
        balancing.update(torch.tensor([1.0 + step, 2.0, 0.0]), torch.tensor([True, True, False]), norms)
    restored, saved = BALANCINGS[name](3), json.loads(json.dumps(balancing.state()))
    restored.on_train_begin(None, TrainerState(stateful_callbacks={type(balancing).__name__: saved}), None)
    for one in (balancing, restored):
        one.update(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([True, True, True]), norms)
    torch.testing.assert_close(restored.weights, balancing.weights)
    assert balancing.weights.isfinite().all()


def test_every_row_once_an_epoch_in_an_order_of_seed_and_epoch():
    tasks, snr = torch.arange(20) % 2, torch.randn(20)
    orders = []
    for epoch in (0, 1, 0):
        sampler = TaskSampler(tasks, snr, seed=3)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert sorted(orders[0]) == list(range(20))
    assert orders[0] == orders[2] != orders[1]


def test_balanced_sampling_meets_a_rare_task_as_often_as_a_frequent_one():
    tasks = torch.tensor([0] * 5 + [1] * 995)
    drawn = tasks[list(TaskSampler(tasks, torch.zeros(1000), balanced=True))]
    assert 0.45 < drawn.float().mean() < 0.55  # 3 standard deviations


def test_a_curriculum_begins_with_the_easiest_clips_and_ends_with_all():
    tasks, snr = torch.zeros(1000, dtype=torch.long), torch.linspace(-10, 30, 1000)
    sampler = TaskSampler(tasks, snr, curriculum_examples=2000)
    drawn = snr[list(sampler)]
    assert drawn[:100].min() > torch.quantile(snr, 1 - EASIEST - 0.05)
    assert drawn[-100:].min() < drawn[:100].min()
    sampler.set_epoch(2)
    assert snr[list(sampler)].min() < -9


@pytest.mark.parametrize("importance", [None, 4.0])
def test_an_anchor_holds_a_weight_where_both_pulls_are_even(importance):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    anchor = Anchor(model, 0.5, importance and {"weight": torch.full((1, 1), importance)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (0.5 * (model.weight - 3.0) ** 2).sum().backward()
        anchor.on_pre_optimizer_step(None, None, None, model=model)
        optimizer.step()
    # minimum of (w - 3)^2 / 2 + strength * importance * w^2 / 2
    assert model.weight.item() == pytest.approx(3.0 / (1 + 0.5 * (importance or 1.0)), rel=1e-4)


def test_an_anchor_leaves_frozen_weights_alone():
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    anchor = Anchor(model, 0.5)
    model(torch.ones(1, 1)).sum().backward()
    anchor.on_pre_optimizer_step(None, None, None, model=model)
    assert model.bias.grad is None


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
