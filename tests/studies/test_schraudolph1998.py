"""Hand-written gradients against autograd, and what centering may and may not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normlib.studies.origins.schraudolph1998 import ARMS, Network, identity_error, parity


def autograd_directions(net: Network, x: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Differentiate the loss of the same network, written anew."""
    weights = [torch.tensor(w, requires_grad=True) for w in net.weights]
    biases = [torch.tensor(b, requires_grad=True) for b in net.biases]
    seen = torch.tensor(x)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        sums = seen @ weight + bias
        if layer < len(weights) - 1:
            activity = torch.sigmoid(sums)
            seen = torch.cat([seen, activity], dim=1) if net.shortcuts else activity
    loss = torch.nn.functional.cross_entropy(sums, torch.tensor(target))
    found = torch.autograd.grad(loss, [*weights, *biases])
    return [(-w.numpy(), -b.numpy()) for w, b in zip(found[: len(weights)], found[len(weights) :], strict=True)]


@pytest.mark.parametrize("shortcuts", [False, True])
def test_without_centering_the_directions_are_the_gradient(shortcuts: bool) -> None:
    x, target = parity(4)
    net = Network([4, 5, 6, 2], shortcuts, "none", seed=0)
    _, directions = net.updates(x, target)
    for (weight, bias), (by_autograd, bias_by_autograd) in zip(directions, autograd_directions(net, x, target), strict=True):
        np.testing.assert_allclose(weight, by_autograd, atol=1e-14)
        np.testing.assert_allclose(bias, bias_by_autograd, atol=1e-14)


def test_centering_the_activity_leaves_the_mean_sum_to_the_error() -> None:
    """The bias takes over what the new weights do to the mean, so the top layer's mean moves by the mean error alone."""
    x, target = parity(4)
    net = Network([4, 5, 2], False, "activity", seed=1)
    seen, log_probability = net.forward(x)
    weight, bias = net.updates(x, target)[1][-1]
    moved = (seen[-1] @ weight + bias).mean(axis=0)
    np.testing.assert_allclose(moved, -(np.exp(log_probability) - target).mean(axis=0), atol=1e-14)


@pytest.mark.parametrize("centering", ARMS)
def test_every_arm_descends(centering: str) -> None:
    x, target = parity(3)
    losses = Network([3, 8, 2], True, centering, seed=0).descend(x, target, rate=0.1, steps=50, until=0.0)
    assert len(losses) == 50 and losses[-1] < losses[0]


def test_identity_of_centered_factors() -> None:
    rng = np.random.default_rng(0)
    assert identity_error(rng.random((40, 7)) + 3, rng.random((40, 5)) - 2) < 1e-14
