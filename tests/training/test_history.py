import numpy as np
import pytest
import torch

from normlib.errors import NormlibError
from normlib.training import History, append_rows, log_steps


@pytest.mark.parametrize(("total", "points"), [(1, 2), (2, 2), (7, 60), (1000, 20), (50_000, 60)])
def test_log_steps_are_few_ascending_and_hold_both_ends(total, points):
    steps = log_steps(total, points)
    assert len(steps) <= points
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, total - 1)


def test_log_steps_spread_evenly_on_the_log_axis():
    ratios = np.diff(np.log(np.array(log_steps(100_000, 30)[12:]) + 1))
    assert ratios.max() < 1.1 * ratios.min()


def test_log_steps_rejects_one_point():
    with pytest.raises(NormlibError, match="two points"):
        log_steps(10, 1)


def test_curve_averages_between_its_points_and_loses_nothing():
    loss = np.random.default_rng(0).normal(size=500)
    curve = History(loss).curve(12)
    widths = np.diff([-1, *curve["step"]])
    assert len(widths) <= 12
    assert widths @ curve["loss"] == pytest.approx(loss.sum())
    assert curve["loss"][0] == loss[0]


def test_curve_of_a_run_that_diverged_at_once_is_empty():
    assert History(np.zeros(0), diverged_at=0).curve() == {"step": [], "loss": []}


def test_rows_from_numbers_tensors_and_lists():
    columns = {}
    append_rows(columns, 0, {"a": torch.tensor(1.5), "b": np.float64(2)})
    append_rows(columns, 3, {"a": torch.tensor([1.0, 2.0]), "b": 7})
    assert columns == {"step": [0, 3, 3], "a": [1.5, 1.0, 2.0], "b": [2.0, 7, 7]}
    assert type(columns["b"][0]) is float


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(NormlibError, match="differ in length"):
        append_rows({}, 0, {"a": [1, 2], "b": [1]})
    columns = {"step": [0], "a": [1]}
    with pytest.raises(NormlibError, match="Keep the names"):
        append_rows(columns, 1, {"b": 1})
