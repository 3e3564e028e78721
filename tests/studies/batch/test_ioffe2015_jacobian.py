"""The conjecture on Jacobians: the closed forms and the measures against independent computation."""

from __future__ import annotations

import math

import pytest
import torch

from normlib.lab import Config
from normlib.studies.batch.ioffe2015_jacobian import between_norms, law, noise
from normlib.studies.batch.yang2019 import growth


def test_the_law_has_the_known_values() -> None:
    assert law("identity") == pytest.approx(1, abs=1e-9)
    assert law("relu") == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), abs=1e-6)
    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = ((1 - x.tanh().square()).square().mean() / x.tanh().var()).sqrt()
    assert law("tanh") == pytest.approx(float(drawn), rel=3e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "silu", "softplus", "leaky_relu"])
def test_no_activation_is_below_one(activation: str) -> None:
    assert law(activation) > 1  # the Gaussian Poincaré inequality


def test_the_map_goes_from_one_normalized_vector_to_the_next() -> None:
    c = Config({"activation": "relu", "norm": "batch", "weights": "gaussian"})
    function, point = between_norms(c, 0, 6, 40)
    assert torch.allclose(point.mean(0), torch.zeros(6), atol=1e-5) and torch.allclose(
        point.var(0, correction=0), torch.ones(6), atol=1e-3
    )
    after = function(point)
    assert torch.allclose(after.mean(0), torch.zeros(6), atol=1e-5)
    weight = torch.linalg.lstsq(point.relu() - point.relu().mean(0), after).solution
    assert torch.allclose((point.relu() - point.relu().mean(0)) @ weight, after, atol=1e-4)


def test_the_factor_is_that_of_gradients_by_hand() -> None:
    c = Config({"activation": "relu", "norm": "none", "batch": 8, "width": 16, "depth": 7})
    table = growth.measure(c, [0])[0]
    net_norms = torch.tensor(table["gradient"])
    by_hand = float((net_norms[3] / net_norms[-1]) ** (1 / (len(net_norms) - 4)))
    assert table["factor"] == pytest.approx(by_hand, rel=1e-6)
    assert noise(0, 2).tolist() != noise(1, 2).tolist()
