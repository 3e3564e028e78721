"""The Fisher matrix against its definition by sampled scores' expectation, and descent against a loop by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.ba2016_geometry import NORMS, turn
from normlib.studies.flavors.fisher import fisher, logits, printed_fisher


def by_scores(norm: str, weight: Tensor, x: Tensor) -> Tensor:
    """Average the outer products of the gradients of log p(y | x) over inputs and over all labels y, weighted by p."""
    total = torch.zeros(weight.numel(), weight.numel(), dtype=weight.dtype)
    for n in range(len(x)):
        w = weight.clone().requires_grad_()
        log_p = logits(norm, w, x)[n].log_softmax(0)
        for y in range(len(log_p)):
            score = torch.autograd.grad(log_p[y], w, retain_graph=True)[0].flatten()
            total += log_p[y].detach().exp() * torch.outer(score, score) / len(x)
    units, features = weight.shape
    return total.view(units, features, units, features).transpose(1, 2)


@pytest.mark.parametrize("norm", list(NORMS))
def test_fisher_is_the_mean_outer_product_of_scores(norm: str) -> None:
    weight, x = normal(0, 4, 3), normal(1, 6, 3)
    assert gap(fisher(norm, weight, x), by_scores(norm, weight, x)) < 1e-12


def test_the_printed_form_is_exact_where_units_do_not_share_statistics() -> None:
    weight, x = normal(0, 4, 3), normal(1, 6, 3)
    found = {norm: gap(printed_fisher(norm, weight, x), fisher(norm, weight, x)) for norm in NORMS}
    assert found["batch"] < 1e-12 and found["weight"] < 1e-12 and found["layer"] > 0.01


def test_a_vector_has_no_curvature_along_itself() -> None:
    weight, x = normal(0, 4, 3), normal(1, 6, 3)
    for norm in ("batch", "weight"):
        block = fisher(norm, weight, x)[0, 0]
        assert float((block @ weight[0]).abs().max()) < 1e-12 * float(block.norm())


def test_an_angle_is_the_arc_tangent_of_the_step_across() -> None:
    weight, gradient = torch.tensor([[3.0, 0.0]]), torch.tensor([[5.0, 2.0]])
    assert abs(turn(weight, gradient, "vector") - 1e-3 * 2 / 3) < 1e-9


def test_logits_are_those_of_torch() -> None:
    weight, x = normal(0, 4, 3), normal(1, 6, 3)
    assert gap(logits("layer", weight, x), F.layer_norm(x @ weight.T, [4], eps=0.0)) < 1e-12
    assert gap(logits("weight", 5 * weight, x), x @ F.normalize(weight, dim=1).T) < 1e-12
