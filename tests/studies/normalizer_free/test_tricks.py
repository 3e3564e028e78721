"""The arms of chapter 6: one network for every trick, and a recipe whose decay spares gains and biases."""

from __future__ import annotations

import pytest
import torch

from normlib.lab import Config
from normlib.probes import signal_propagation
from normlib.studies.common.arms import images_for
from normlib.studies.normalizer_free.tricks import QUICK, TRICKS, fit, resnet

C = Config(QUICK)
IMAGES, _ = images_for(C, 0)


@pytest.mark.parametrize("key", TRICKS)
def test_every_trick_builds_and_learns_something(key: str) -> None:
    net = resnet(C, IMAGES, key, 0)
    assert net(IMAGES.x_train[:8]).shape == (8, 10)
    history = fit(net, IMAGES, steps=60, rate=0.05, seed=0, batch=64)
    assert history.diverged_at is None and history.loss[-10:].mean() < 0.99 * history.loss[:3].mean()


def test_the_books_hold_and_the_network_without_norm_grows() -> None:
    c = Config({**QUICK, "stages": [6], "width": 64})
    x = torch.randn(32, 1, 8, 8)
    growth = {key: signal_propagation(resnet(c, IMAGES, key, 0), x, training=True)["variance"] for key in ("none", "nf")}
    assert growth["none"][-1] > 8 * growth["none"][0] and 0.5 < growth["nf"][-1] / growth["nf"][0] < 1.5


def test_weight_decay_spares_gains_and_biases() -> None:
    net = resnet(C, IMAGES, "batch", 0)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    fit(net, IMAGES, steps=2, rate=0.1, seed=0, batch=64, loss=lambda output, target: 0 * output.sum())
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.dim() == 1), name
