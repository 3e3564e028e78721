"""The measures of the theorems against torch's batch norm, its whole Hessian, and a plane in which the lemma can be drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normlib.lab import Config
from normlib.studies.common.statements import normal
from normlib.studies.smoothness.santurkar2018_theorems import lemma, of_unit, rest_of_network, second_derivative, theorems

CONFIG = Config({"data": "digits", "pool": 1, "batch": 8, "activation": "tanh"})


def test_a_second_derivative_is_that_of_the_whole_hessian() -> None:
    labels, z, direction = torch.arange(5), normal(0, 5, 12), normal(1, 5, 12)
    loss = rest_of_network("tanh", labels, 3)
    whole = torch.autograd.functional.hessian(loss, z).reshape(60, 60)
    said = direction.flatten() @ whole @ direction.flatten()
    assert torch.allclose(second_derivative(loss, z, direction), said)


def test_one_unit_is_kept() -> None:
    assert of_unit(torch.ones(2, 3), 1).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_the_backward_pass_of_torch_takes_two_directions_out() -> None:
    y, above = normal(2, 16, 12), normal(3, 16, 12)
    y.requires_grad_()
    below = torch.autograd.grad((F.batch_norm(y, None, None, training=True, eps=1e-14) * above).sum(), y)[0]
    y_hat = (y - y.mean(0)) / y.std(0, correction=0)
    rest = above.square().sum(0) - above.sum(0).square() / 16 - (above * y_hat).sum(0).square() / 16
    assert torch.allclose(below.square().sum(0), rest / y.var(0, correction=0))


def test_a_trial_tells_the_mended_theorem_from_the_printed_one() -> None:
    found = theorems.trial_function(CONFIG, 0)
    assert found["first"] < 1e-12 and found["second"] < 1e-12 and found["fourth"] < 1e-12
    left, printed = torch.tensor(found["left"]), torch.tensor(found["printed"])
    assert (left >= printed * (1 - 1e-12)).all() and (left > 1.01 * printed).any()
    assert max(found["reached"]) < 1


def test_the_lemma_is_a_right_angle() -> None:
    found = lemma(normal(4, 30, 2) - normal(4, 30, 2).mean(0), normal(5, 30) - normal(5, 30).mean(), 0)
    assert found["lemma"] < 1e-12 and found["ray"] < 1e-12
