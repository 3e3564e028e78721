"""What a standardized filter keeps of the variance of its taps, in closed form and by drawing filters; which layers are spared."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normlib.data.dataset import Dataset
from normlib.lab import Config
from normlib.studies.normalizer_free.brock2021a_depthwise import before_training, expected, kept, network, spatial
from normlib.weights import parametrize_weight


@pytest.fixture
def smooth() -> torch.Tensor:
    """Maps of four channels whose neighbors agree, and whose channels do not."""
    torch.manual_seed(0)
    return nn.functional.avg_pool2d(torch.randn(16, 4, 14, 14), 3, 1)


def standardized(outputs: int, groups: int) -> nn.Conv2d:
    return parametrize_weight(nn.Conv2d(4, outputs, 3, groups=groups), "scaled_weight")  # type: ignore[return-value]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_closed_form_is_the_mean_over_filters(smooth: torch.Tensor, groups: int) -> None:
    convolution = standardized(4_000, groups)
    assert kept(smooth, convolution) == pytest.approx(expected(smooth, convolution), rel=0.03)


def test_a_depthwise_filter_keeps_one_less_the_mean_correlation_of_its_taps(smooth: torch.Tensor) -> None:
    taps = [nn.functional.unfold(smooth[:, [channel]], 3).transpose(0, 1).flatten(1) for channel in range(4)]
    covariances = [torch.cov(nine) for nine in taps]
    within = sum(float(c.trace()) / 9 for c in covariances)
    between = sum(float(c.sum() - c.trace()) / 72 for c in covariances)
    assert expected(smooth, standardized(4, 4)) == pytest.approx(1 - between / within, rel=1e-4)
    assert 1 - between / within < 0.8


def test_a_constant_map_does_not_pass_a_standardized_depthwise_filter() -> None:
    map_ = torch.ones(1, 4, 5, 5)
    convolution = standardized(4, 4)
    assert nn.functional.conv2d(map_, convolution.weight, groups=4).abs().max() < 1e-5


def test_spared_filters_alone_are_plain_and_of_he_s_variance() -> None:
    x = torch.randn(4, 1, 8, 8)
    images = Dataset("noise", x, torch.arange(4), x, torch.arange(4), 4, "", official=False, source="made here")
    c = {"filters": "full", "stages": [1, 1], "width": 8}
    net = network(Config({**c, "arm": "spared"}), images, 0)
    plain = [module for module in net.modules() if isinstance(module, nn.Conv2d) and not parametrize.is_parametrized(module)]
    assert plain == list(spatial(net).values()) and len(plain) == 2
    assert float(plain[0].weight.detach().var()) * 9 * 48 == pytest.approx(2, rel=0.05)
    other = network(Config({**c, "arm": "nf", "filters": "depthwise"}), images, 0)
    assert [module.groups for module in spatial(other).values()] == [48, 96]
    found = before_training(other, x, 0)
    assert found["block"] == [0, 1] and all(value > 0 for value in found["kept"])
