"""Lp norms: the measure of a shift against a closed form, the gains against Gaussian moments, and the arms that have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from normlib.studies.smoothness.nets import linear_task
from normlib.studies.smoothness.santurkar2018_fig5 import deep_layer, moved, quantiles
from normlib.studies.smoothness.santurkar2018_fig5_linear import GAIN, gain_of, network


def test_a_shift_moves_a_distribution_by_itself_and_a_factor_by_the_mean_size() -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 8, 30, 30)
    start = quantiles(values)
    assert moved(start, quantiles(values + 0.7)) == pytest.approx(0.7, abs=1e-6)
    levels = np.linspace(0.01, 0.99, 99)
    assert moved(start, quantiles(3 * values)) == pytest.approx(2 * np.abs(norm.ppf(levels)).mean(), rel=0.02)


def test_the_deep_layer_is_the_eleventh_of_thirteen() -> None:
    assert [deep_layer(count) for count in (13, 6)] == [10, 4]


def test_the_gains_are_those_of_normal_values() -> None:
    largest = norm.ppf(0.5 ** (1 / 1000) / 2 + 0.5)  # the median of the largest of 1000 absolute values
    assert gain_of(1) == pytest.approx((np.pi / 2) ** 0.5, rel=0.01)
    assert gain_of(2) == pytest.approx(1, rel=0.01)
    assert gain_of(np.inf) == pytest.approx(1 / largest, rel=0.03)


def test_batch_norm_with_a_gain_starts_where_the_lp_norm_does() -> None:
    x, _ = linear_task(0, "cpu")
    for arm in ("lp:p=1", "lp:p=inf"):
        lp, gained = (network(name, 0)(x).detach() for name in (arm, arm + GAIN))
        ratio = (lp * gained).sum() / gained.square().sum()
        assert ratio == pytest.approx(1, abs=0.25)  # against 1.25 and 0.3 with gains of 1
        assert not torch.allclose(lp, gained, rtol=1e-3)
