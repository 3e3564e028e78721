"""Shattered gradients: the derivative against finite differences, the weights that arms share, what claims read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from normlib.lab import Verdict
from normlib.studies.smoothness.balduzzi2017 import NETWORKS, build, on_the_line, shattered


@pytest.mark.parametrize("network", ["plain", "residual"])
def test_the_derivative_is_that_at_held_statistics(network: str) -> None:
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    net = build(network, "batch", 4, 12, seed=1)
    gradient, switching = on_the_line(net, x)  # leaves the network in evaluation, with the statistics of x
    with torch.no_grad():
        difference = (net(x + 1e-7) - net(x - 1e-7)).flatten() / 2e-7
    assert torch.allclose(gradient, difference, rtol=1e-5, atol=1e-6)
    assert 0 < switching <= 1
    norm = next(m for m in net.modules() if hasattr(m, "running_mean"))
    assert torch.allclose(norm.running_mean, net[0](x).mean(0))


def test_plain_and_residual_networks_differ_in_the_shortcuts_alone() -> None:
    nets = [build(network, "none", 3, 6, seed=0) for network in NETWORKS]
    weights = [[m.weight for m in net.modules() if isinstance(m, nn.Linear)] for net in nets]
    assert all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))
    x = torch.linspace(-2, 2, 5)[:, None]
    h = nets[0][0](x)
    first = [net[1][0](h) for net in nets]
    assert torch.allclose(first[1], h + first[0]) and torch.allclose(first[2], h + 0.1 * first[0])


def test_claims_read_the_deepest_networks() -> None:
    rows = []
    for seed in range(3):
        for network in NETWORKS:
            for norm in ("none", "batch"):
                for depth in (2, 9):
                    value = 0.02 if (network, norm, depth) == ("plain", "batch", 9) else 0.8
                    lag5 = 0.6 if "×" in network else 0.2
                    columns = {"lag": [0, 1, 5], "gradient_correlation": [1.0, value, lag5], "x": [0.0, 0.1, 0.2]}
                    columns |= {"white": [0.0, 1.0, 0.0], "brown": [0.0, 1.0, 1.0], "gradient": [0.0, 1.0, 2.0]}
                    columns |= {"white_correlation": [1.0, 0.0, 0.0], "brown_correlation": [1.0, 1.0, 0.9]}
                    run = pd.DataFrame(columns).assign(network=network, norm=norm, depth=depth, seed=seed, points=64)
                    rows.append(run.assign(switching=0.2 if norm == "none" else 1.0))
    found = {claim.slug: claim.function(pd.concat(rows)) for claim in shattered.claims}
    assert found["plain-with-bn"].verdict is Verdict.REPRODUCED
    assert found["plain-without-bn"].value == 0.8 and found["plain-without-bn"].verdict is not Verdict.REPRODUCED
    assert np.isclose(found["residual-resists"].value, 0.8)
    assert np.isclose(found["small-branches"].value, 0.4) and np.isclose(found["switching"].value, 0.2)
