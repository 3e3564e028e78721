"""The measures of the study against batch normalization written out, and its closed forms against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normlib.studies.batch.ioffe2015_invariance import TINY, descend, gradient, normalized
from normlib.studies.common.statements import gap, normal


def by_hand(weight: Tensor, u: Tensor, eps: float) -> Tensor:
    s = u @ weight.T
    s = s - s.mean(0)
    return s / (s.square().mean(0) + eps).sqrt()


@pytest.mark.parametrize("eps", [TINY, 1e-2])
def test_output_and_gradient_are_those_of_the_formula(eps: float) -> None:
    u, w, upstream = normal(0, 12, 5), normal(1, 3, 5).requires_grad_(), normal(2, 12, 3)
    assert gap(normalized(w.detach(), u, eps), by_hand(w.detach(), u, eps)) < 1e-14
    (expected,) = torch.autograd.grad(by_hand(w, u, eps), w, upstream)
    assert gap(gradient(w.detach(), u, upstream, eps), expected) < 1e-13
    assert gap(gradient(w.detach(), u, upstream, None), upstream.T @ u) < 1e-14


def test_the_gradient_along_the_weight_is_the_share_of_eps() -> None:
    """d/da of (g · BN(aWu)) at a = 1, by central differences, is eps / (s² + eps) of g · BN(Wu)."""
    u, w, upstream, eps, h = normal(0, 12, 5), normal(1, 3, 5), normal(2, 12, 3), 0.3, 1e-5
    slope = (upstream * (by_hand((1 + h) * w, u, eps) - by_hand((1 - h) * w, u, eps))).sum(0) / (2 * h)
    share = eps / ((u @ w.T).var(0, correction=0) + eps)
    assert gap((upstream * by_hand(w, u, eps)).sum(0) * share, slope) < 1e-8
    assert gap((gradient(w, u, upstream, eps) * w).sum(1), slope) < 1e-8


def test_descent_lengthens_the_weights_and_long_ones_less() -> None:
    u, w, labels = normal(0, 30, 5), normal(1, 3, 5), torch.arange(30) % 3
    short, long = descend(w, u, labels, TINY), descend(10 * w, u, labels, TINY)
    assert 0 < long < short / 1_000, "to first order the growth is as the inverse fourth power of the scale"
