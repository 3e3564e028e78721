"""Descent against automatic differentiation of the losses, and the closed form against the map that it is the slope of."""

from __future__ import annotations

import numpy as np
import torch

from normlib.lab import Config
from normlib.studies.smoothness.kohler2019 import Problem, closed_form, descend, draw

C = Config({"dimension": 6, "slow": 1.0, "rest": [4.0, 20.0], "target": "random"})


def by_autograd(problem: Problem, arm: str, rate: float) -> float:
    """Take one step by the gradient of the loss of the layer g · vᵀx / ‖v‖, and return the excess."""
    s, best, v = (torch.tensor(part) for part in (problem.s, problem.best, problem.start))
    size = (s * v * v).sum().sqrt()
    g = size if arm == "joint" else (s * v * best).sum() / size
    v, g = v.clone().requires_grad_(), g.clone().requires_grad_()

    def loss(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 0.5 * (s * (g * v / (s * v * v).sum().sqrt() - best).square()).sum()

    dg, dv = torch.autograd.grad(loss(g, v), (g, v))
    if arm == "joint":
        return loss(g - rate * dg, v - rate * dv).item()
    v = v - rate * size**2 / g**2 * dv
    return loss((s * v * best).sum() / (s * v * v).sum().sqrt(), v).item()


def test_a_step_is_one_along_the_gradient() -> None:
    problem = draw(C, 0)
    for arm in ("joint", "alternating"):
        assert np.isclose(descend(problem, arm, 0.03, 1)[1], by_autograd(problem, arm, 0.03), rtol=1e-12)


def test_plain_descent_has_its_closed_form() -> None:
    problem = draw(C, 1)
    error = (1 - 0.05 * problem.s) ** 7 * (problem.start - problem.best)
    assert np.isclose(descend(problem, "plain", 0.05, 7)[7], 0.5 * (problem.s * error**2).sum(), rtol=1e-12)


def test_the_slope_in_the_end_is_that_of_the_closed_form() -> None:
    for target in ("random", "slowest"):
        problem = draw(Config({**C, "target": target}), 2)
        curve = descend(problem, "alternating", 0.05, 400)
        assert np.isclose(curve[-1] / curve[-2], closed_form(problem, 0.05), rtol=0.02)
    assert np.isclose(closed_form(problem, 0.01), (1 - 0.01 * 4) ** 2)  # the slowest direction is taken out


def test_start_and_target_have_one_length_and_one_side() -> None:
    problem = draw(C, 3)
    assert np.isclose(problem.length(problem.best), 1) and np.isclose(problem.length(problem.start), 1)
    assert problem.towards(problem.start) > 0
