"""Gradient centering, put back: a gradient without means where batch norm would stand, and nothing else changed."""

from __future__ import annotations

import math

import torch

from normlib.lab import Config
from normlib.layers import batch_norm
from normlib.studies.common.arms import images_for
from normlib.studies.normalizer_free.hoedt2022_gradient_centering import Shift, network, removed_by_batch_norm, shares
from normlib.studies.normalizer_free.tricks import QUICK

C = Config(QUICK)
IMAGES, _ = images_for(C, 0)
X, Y = IMAGES.x_train[:64], IMAGES.y_train[:64]


def test_the_two_parts_are_what_batch_norm_takes_out() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(8, 3, 4, 4).double().requires_grad_(), 0.5 + torch.randn(8, 3, 4, 4).double()
    (left,) = torch.autograd.grad(batch_norm(x, eps=0.0), x, g)
    left = left * x.detach().std((0, 2, 3), correction=0, keepdim=True)
    kept = float(left.square().sum() / g.square().sum())
    torch.testing.assert_close(sum(removed_by_batch_norm(g, x)), 1 - kept)
    assert max(removed_by_batch_norm(left, x)) < 1e-12


def test_centering_changes_gradients_and_no_output() -> None:
    plain, shifted, centered = (network(C, IMAGES, arm, 0) for arm in ("nf", "nf + shift", "nf + shift + centering"))
    torch.testing.assert_close(plain(X), centered(X))
    assert max(shares(centered, X, Y)[0]) < 1e-10 < 1e-6 < min(shares(shifted, X, Y)[0])
    assert max(shares(network(C, IMAGES, "batch", 0), X, Y)[0]) < 1e-6
    torch.nn.functional.cross_entropy(centered(X), Y).backward()
    places = [module for module in centered.modules() if isinstance(module, Shift)]
    assert len(places) == 2 * len(centered.blocks) + 1 and all(place.bias.grad.abs().max() > 0 for place in places)
    assert centered.blocks[0].branch[0].bias.grad.abs().max() < 1e-6


def test_a_gradient_of_zero_has_no_shares() -> None:
    found = removed_by_batch_norm(torch.zeros(4, 2, 3, 3), torch.randn(4, 2, 3, 3))
    assert all(math.isnan(share) for share in found)
