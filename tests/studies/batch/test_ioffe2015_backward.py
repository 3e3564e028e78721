"""The backward pass: the written forms against finite differences, and against a regression on x̂."""

from __future__ import annotations

import torch

from normlib.layers import batch_norm
from normlib.studies.batch.ioffe2015_backward import by_chain_rule, compact, held_constant, identities
from normlib.studies.common.statements import gap, normal

EPS, AT = 0.7, 1e-6


def test_both_forms_are_the_slope_of_the_loss() -> None:
    x, gamma, gradient = 2 + 3 * normal(0, 4, 2, 3), 1 + normal(1, 2), normal(2, 4, 2, 3)
    slopes = torch.zeros_like(x)
    for at in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype).index_fill(0, torch.tensor(at), AT).view_as(x)
        up, down = (float((gradient * batch_norm(x + side * step, gamma, eps=EPS)).sum()) for side in (1, -1))
        slopes.view(-1)[at] = (up - down) / (2 * AT)
    assert gap(by_chain_rule(x, gamma, gradient, EPS)[0], slopes) < 1e-7
    assert gap(compact(x, gamma, gradient, EPS), slopes) < 1e-7
    assert gap(held_constant(x, gamma, gradient, EPS), slopes) > 0.1


def test_without_eps_it_is_the_residual_of_a_regression() -> None:
    x, gradient = normal(3, 20, 1), normal(4, 20, 1)
    one_and_x = torch.cat([torch.ones_like(x), x], 1)
    residual = gradient - one_and_x @ torch.linalg.lstsq(one_and_x, gradient).solution
    assert gap(compact(x, torch.ones(1).double(), gradient, 0.0) * x.var(0, correction=0).sqrt(), residual) < 1e-12


def test_the_identities_hold_for_an_eps_that_matters() -> None:
    found = identities((6, 2, 5), True, seed=5)
    assert found["eps"] > 0.5 and max(value for name, value in found.items() if name != "eps") < 1e-12
