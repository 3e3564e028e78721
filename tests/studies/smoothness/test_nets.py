"""The set-ups of Santurkar et al.: the start of the linear task, its recipe step by step, and one start for every norm."""

from __future__ import annotations

import torch

from normlib.lab import Config
from normlib.networks import DeepLinearNet
from normlib.studies.common.arms import images_for
from normlib.studies.smoothness.nets import LINEAR_RATE, fit, fit_linear, linear_loss, linear_task, vgg


def test_the_linear_task_starts_where_the_paper_does() -> None:
    losses = [float(linear_loss(torch.zeros(1000, 10), linear_task(seed, "cpu")[1])) for seed in range(20)]
    assert abs(sum(losses) / 20 / 5e4 - 1) < 0.1  # half of 1000 samples, 10 outputs, each of variance 10


def test_a_linear_step_is_gradient_descent_on_all_samples() -> None:
    net, (x, y) = DeepLinearNet(norm="batch", seed=3), linear_task(3, "cpu")
    loss = linear_loss(net(x), y)
    loss.backward()
    trained, history = fit_linear("batch", 3, "cpu", steps=1, rate=LINEAR_RATE)
    assert abs(history.loss[0] / loss.item() - 1) < 1e-5
    for old, new in zip(net.parameters(), trained.parameters(), strict=True):
        assert torch.allclose(old - LINEAR_RATE * old.grad, new, atol=1e-6)


def test_every_norm_starts_from_the_same_weights_and_learns() -> None:
    c = Config({"data": "digits", "train": 256, "test": 64, "validation": 64, "depth": 4, "width": 8})
    tune, _ = images_for(c, 0)
    nets = [vgg(c, tune, norm, 1) for norm in ("none", "batch", "lp:p=1")]
    first = [net.get_submodule("blocks").get_parameter("0.layer.weight") for net in nets]
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    history = fit(nets[1], tune, steps=80, rate=0.1, seed=0)
    assert history.loss[-5:].mean() < 0.7 * history.loss[0]
