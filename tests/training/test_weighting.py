"""Weights of the tasks' losses, on toy problems whose answers are known."""

import json

import pytest
import torch
from transformers import TrainerState

from tests.tiny import tiny_model
from tests.training.tiny_tokens import Rows, tiny_trainer
from training_dacse.lm.adapters import add_adapter
from training_dacse.lm.arguments import AdapterArguments
from training_dacse.lm.kinds import make_kind, read_kind
from training_dacse.lm.weighting import (
    WEIGHTINGS,
    DynamicWeightAverage,
    FixedWeights,
    GradNorm,
    Uncertainty,
    last_trained,
)

TASKS = ["noise", "room"]
ALL = torch.tensor([True, True])


def test_uncertainty_settles_where_its_objective_is_lowest():
    weighting, losses = Uncertainty(TASKS), torch.tensor([0.5, 4.0])
    for _ in range(3000):
        weighting.update(losses, ALL)
    torch.testing.assert_close(weighting.weights, 1 / (2 * losses))  # d/ds of exp(-s) loss + s / 2 is zero


def test_gradnorm_evens_gradient_norms_out_when_tasks_train_equally_fast():
    weighting, norms = GradNorm(TASKS, learning_rate=0.003), torch.tensor([1.0, 9.0])
    for step in range(2000):
        weighting.update(torch.full((2,), 0.999**step), ALL, norms)
    weighted = weighting.weights * norms
    assert weighting.weights.sum().item() == pytest.approx(2)
    # the sign of the slope leaves a ripple of one step
    assert weighted[0].item() == pytest.approx(weighted[1].item(), rel=0.1)


def test_gradnorm_lifts_the_task_that_trains_slower():
    weighting = GradNorm(TASKS, learning_rate=0.01)
    for step in range(200):
        weighting.update(torch.tensor([0.99**step, 1.0]), ALL, torch.ones(2))
    assert weighting.weights[1] > 1.1 > 0.9 > weighting.weights[0]


def test_dynamic_weight_average_is_a_softmax_over_the_rates_of_change():
    weighting = DynamicWeightAverage(TASKS, period=1)
    weighting.update(torch.tensor([2.0, 2.0]), ALL)
    torch.testing.assert_close(weighting.weights, torch.ones(2))
    weighting.update(torch.tensor([1.0, 2.0]), ALL)
    torch.testing.assert_close(weighting.weights, 2 * torch.softmax(torch.tensor([0.5, 1.0]) / 2, 0))


def test_dynamic_weight_average_is_at_work_in_a_run_of_minutes():
    weighting = DynamicWeightAverage(TASKS)
    for step in range(50):
        weighting.update(torch.tensor([0.98**step, 1.0]), ALL)
    assert weighting.weights[1] > 1.05 > 0.95 > weighting.weights[0]


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_an_absent_task_moves_nothing_and_a_checkpoint_restores_all(name):
    own = ({"weights": {"b": 2.0}},) if name == "fixed" else ({},)
    weighting, restored = (WEIGHTINGS[name](["a", "b", "c"], **own[0]) for _ in range(2))
    norms = torch.ones(3)
    for step in range(3):
        weighting.update(torch.tensor([1.0 + step, 2.0, 0.0]), torch.tensor([True, True, False]), norms)
    saved = json.loads(json.dumps(weighting.state()))
    restored.on_train_begin(None, TrainerState(stateful_callbacks={type(weighting).__name__: saved}), None)
    for one in (weighting, restored):
        one.update(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([True, True, True]), norms)
    torch.testing.assert_close(restored.weights, weighting.weights)
    assert weighting.weights.isfinite().all()


def test_fixed_weights_are_those_of_the_tasks_by_name():
    assert FixedWeights(TASKS, {"room": 3.0}).weights.tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="weight of task 'rom' is 3.0; the tasks are noise, room"):
        FixedWeights(TASKS, {"rom": 3.0})


def test_a_weight_changes_what_a_task_pulls(tmp_path):
    fixed = [{"kind": "fixed", "weights": {"noise": share, "room": share}} for share in (1.0, 0.0)]
    runs = [
        tiny_trainer(tmp_path, model=tiny_model(attention_dropout=0.0), weighting=weighting, max_steps=1)
        for weighting in ("equal", *fixed)
    ]
    for run in runs:
        run.train()
    equal, ones, zeros = (torch.cat([w.detach().flatten() for w in run.model.parameters()]) for run in runs)
    start = torch.cat([w.detach().flatten() for w in tiny_model().parameters()])
    assert torch.equal(equal, ones) and torch.equal(zeros, start) and not torch.equal(equal, start)


@pytest.mark.parametrize("modules", [["q_proj", "o_proj"], ["gate_proj", "down_proj"]])
def test_gradnorm_measures_at_what_an_adapter_trains(tmp_path, modules):
    model = add_adapter(tiny_model(), AdapterArguments(modules=modules))
    shared = last_trained(model)
    assert [tuple(weight.shape) for weight in shared] in ([(8, 32), (32, 8)], [(8, 64), (32, 8)])
    run = tiny_trainer(tmp_path, Rows(8), model, weighting="gradnorm", max_steps=2)
    run.train()
    assert not torch.equal(run.strategy.weighting.weights, torch.ones(2))


def test_gradnorm_measures_at_the_last_matrix_of_a_whole_model():
    model = tiny_model()
    (shared,) = last_trained(model)
    assert shared is model.model.layers[-1].mlp.down_proj.weight
    for weight in model.parameters():
        weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no matrix of the last layer is trained"):
        last_trained(model)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("magic", "weighting is 'magic'; choose one of equal, fixed"),
        ({"kind": "gradnorm", "beta": 1}, "weighting gradnorm has no setting 'beta'; it has alpha, learning_rate"),
        ({"weights": {}}, "weighting is None; choose one of"),
        ('{"kind": "equal", "alpha": 1}', "equal has no setting 'alpha'; it has none"),
    ],
)
def test_an_unknown_kind_or_setting_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_kind("weighting", value, WEIGHTINGS)


def test_a_kind_s_settings_are_its_own():
    settings = read_kind("weighting", {"kind": "gradnorm", "alpha": 0.5}, WEIGHTINGS)
    assert make_kind(settings, WEIGHTINGS, TASKS).alpha == 0.5
