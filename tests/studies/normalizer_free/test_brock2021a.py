"""Signal propagation of normalizer-free networks: predictions against sums and samples, networks against their books."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from normlib.studies.normalizer_free.brock2021a_gains import in_equation_and_code
from normlib.studies.normalizer_free.brock2021a_predicted import (
    KEPT,
    batch_norm_first,
    he_weights,
    missing,
    scaled_weights,
)
from normlib.studies.normalizer_free.brock2021a_spp import network
from normlib.studies.normalizer_free.kernel import arc_cosine
from normlib.weights import activation_moments


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_the_kernel_is_the_mean_product_of_two_correlated_rectified_normals(rho: float) -> None:
    a, b = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0)).double()
    product = 2 * (a.relu() * (rho * a + (1 - rho**2) ** 0.5 * b).relu()).mean()
    assert arc_cosine(rho) == pytest.approx(float(product), abs=5e-3)


def test_what_relu_keeps_of_its_mean() -> None:
    mean, variance = activation_moments("relu")
    assert pytest.approx(mean**2 / variance) == KEPT


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (8, 2), (32, 1)])
def test_missing_taps_are_counted(side: int, stride: int) -> None:
    taps = F.conv2d(torch.ones(1, 1, side, side), torch.ones(1, 1, 3, 3), stride=stride, padding=1) / 9
    assert missing(side) == pytest.approx(1 - float(taps.mean()), abs=1e-6)


def test_the_mean_square_doubles_without_books_and_follows_them_with() -> None:
    powers = [one.squared_mean + one.variance for one in he_weights([2, 2], books=False)]
    assert powers == pytest.approx([2, 4, 8, 16])
    powers = [one.squared_mean + one.variance for one in he_weights([2, 2], books=True)]
    assert powers == pytest.approx([2, 3, 2, 3])


def test_one_layer_of_a_branch_behind_a_fresh_start_is_that_of_batch_norm() -> None:
    first, *_ = he_weights([1], books=True, layers=1)
    assert first == pytest.approx(batch_norm_first(1))


def test_scaled_weights_follow_the_books_without_a_border_and_stay_below_with_it() -> None:
    assert [one.variance for one in scaled_weights([2, 2], 8, zeros=False)] == pytest.approx([2, 3, 2, 3])
    bordered = scaled_weights([2, 2], 8, zeros=True)
    lost = 1 - (1 - KEPT) * missing(8)
    assert bordered[0].residual_variance == pytest.approx((1 - missing(8)) * lost)
    assert bordered[2].residual_variance == pytest.approx(bordered[1].variance / 3 * lost)  # β² = 3, on the map of the first stage
    assert bordered[3].residual_variance < bordered[2].residual_variance


def test_the_networks_have_the_first_rows_that_the_predictions_start_from() -> None:
    for arm in ("nf_he", "none"):
        weight = network(arm, [1, 1], 8, seed=0).stem.weight
        assert float(weight.detach().square().sum((1, 2, 3)).mean()) == pytest.approx(1, abs=1e-5)
    rows = network("nf_ws", [1, 1], 8, seed=0).stem.weight
    assert torch.allclose(rows.square().sum((1, 2, 3)), torch.ones(8), atol=1e-5)
    assert network("nf_he", [1, 1], 8, seed=0).blocks[1].entry.factor == pytest.approx(1 / math.sqrt(2))


def test_the_two_orders_are_one_at_scale_one_and_differ_for_tanh() -> None:
    assert in_equation_and_code("tanh", 1.0) == pytest.approx((1, 1))
    equation, code = in_equation_and_code("tanh", 2.0)
    z = 2 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).double()
    gamma = 1 / activation_moments("tanh")[1] ** 0.5
    assert equation == pytest.approx(1, abs=1e-9)
    assert code == pytest.approx(float((gamma * z.tanh() / 2).var()), rel=1e-2)
