"""The step against torch's optimizer, the equivalence by the schedule of the library, and what is trained in each setup."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from normlib.data import load
from normlib.lab import Config
from normlib.studies.smoothness.li2020 import SETUPS, build, convolutions, step
from normlib.training import make_schedule

C = {"depth": 4, "width": 4, "trained": "all"}
IMAGES = load("digits").subset(64, 8, 0).standardized()
X, Y = IMAGES.x_train.double(), IMAGES.y_train


def test_a_step_is_that_of_torch() -> None:
    net = build(Config(C), IMAGES, 0)
    other = copy.deepcopy(net)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, weight_decay=0.2)
    for _ in range(3):
        step(net, X, Y, {"convolutions": (0.1, 0.2), "others": (0.1, 0.2)})
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(X), Y).backward()
        optimizer.step()
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)


def test_the_rising_rate_is_the_schedule_of_the_library() -> None:
    decayed, rate, decay, steps = build(Config({**C, "trained": "invariant"}), IMAGES, 0), 0.1, 0.2, 5
    rising = copy.deepcopy(decayed)
    shrink = 1 - rate * decay
    at = make_schedule(f"exponential:growth={shrink**-2!r}", rate / shrink, steps)
    for t in range(steps):
        step(decayed, X, Y, {"convolutions": (rate, decay), "others": (0, 0)})
        step(rising, X, Y, {"convolutions": (at(t), 0.0), "others": (0, 0)})
    for w, v in zip(convolutions(decayed), convolutions(rising), strict=True):
        assert torch.allclose(w, shrink**steps * v, rtol=1e-9)


@pytest.mark.parametrize("trained", list(SETUPS))
def test_the_loss_is_blind_to_lengths_of_convolutions(trained: str) -> None:
    net = build(Config({**C, "trained": trained}), IMAGES, 0).train()
    before = net(X).detach()
    with torch.no_grad():
        for weight in convolutions(net):
            weight.mul_(1e-3)
    assert torch.allclose(net(X), before, rtol=1e-9) == (trained != "eps")
    kinds = {weight.ndim for weight in net.parameters() if weight.requires_grad}
    assert kinds == {"invariant": {4}, "eps": {4}, "affine": {4, 1}, "head": {4, 2, 1}}.get(trained, {4, 2, 1})
