"""Orders of clips: pure functions of seed and epoch that do what their names say."""

import pytest
import torch

from tests.training.tiny_tokens import Rows
from training_dacse.lm.sampling import EASIEST, SAMPLINGS, Balanced, EasyFirst, TasksInTurn


def rows_of(task_numbers, difficulty=None, tasks=None):
    rows = Rows(1)
    rows.codes = rows.codes * len(task_numbers)
    rows.task_numbers = task_numbers
    rows.difficulty = torch.rand(len(task_numbers)) if difficulty is None else difficulty
    rows.tasks = tasks or [f"task {number}" for number in range(int(task_numbers.max()) + 1)]
    return rows


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_an_order_is_a_function_of_seed_and_epoch_and_as_long_as_the_rows(name):
    rows, order = rows_of(torch.arange(60) % 3), SAMPLINGS[name]()
    first, again, later, other = order(rows, 0, 3), order(rows, 0, 3), order(rows, 1, 3), order(rows, 0, 4)
    assert len(first) == 60 and 0 <= first.min() <= first.max() < 60
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, other)


def test_shuffled_meets_every_row_once():
    assert SAMPLINGS["shuffled"]()(Rows(20), 0, 0).sort().values.tolist() == list(range(20))


def test_balanced_sampling_meets_a_rare_task_as_often_as_a_frequent_one():
    rows = rows_of(torch.tensor([0] * 5 + [1] * 995))
    assert 0.45 < rows.task_numbers[Balanced()(rows, 0, 0)].float().mean() < 0.55  # 3 standard deviations


def test_a_curriculum_begins_with_what_was_changed_least_and_ends_with_all():
    difficulty = torch.linspace(0, 1, 1000)
    rows, order = rows_of(torch.zeros(1000, dtype=torch.long), difficulty), EasyFirst(epochs=2)
    drawn = difficulty[order(rows, 0, 0)]
    assert drawn[:100].max() < EASIEST + 0.05
    assert drawn[-100:].max() > drawn[:100].max()
    assert difficulty[order(rows, 2, 0)].max() > 0.98


def test_clips_that_were_changed_alike_are_no_easier_for_a_low_number():
    """Lost packets change as many codes in all clips: those that are met first are any of them."""
    rows = rows_of(torch.arange(900) % 3, torch.zeros(900))
    drawn = EasyFirst(epochs=1)(rows, 0, 0)[:60]
    assert (rows.task_numbers[drawn].bincount(minlength=3) >= 10).all()
    assert drawn.max() > 700 and drawn.float().mean() > 300


def test_tasks_come_in_one_after_the_other_and_none_leaves():
    rows, order = rows_of(torch.arange(900) % 3), TasksInTurn(epochs=2, order=["task 1", "task 2", "task 0"])
    met = [rows.task_numbers[order(rows, epoch, 0)] for epoch in range(3)]
    assert set(met[0].tolist()) == {1}
    assert set(met[1].tolist()) == {1, 2}
    assert set(met[2].tolist()) == {0, 1, 2}
    assert (met[2].bincount() > 250).all()


def test_a_task_without_clips_holds_nobody_up():
    rows = rows_of(torch.tensor([2] * 50 + [0] * 50), tasks=["a", "b", "c"])
    drawn = rows.task_numbers[TasksInTurn(epochs=1, order=["b", "c", "a"])(rows, 0, 0)]
    assert set(drawn[:20].tolist()) == {2} and set(TasksInTurn(epochs=1)(rows, 1, 0).tolist())


def test_an_order_that_leaves_a_task_out_is_refused():
    with pytest.raises(ValueError, match="tasks_in_turn needs every task once: task 0, task 1; see 'task 1'"):
        TasksInTurn(order=["task 0"])(rows_of(torch.arange(4) % 2), 0, 0)
