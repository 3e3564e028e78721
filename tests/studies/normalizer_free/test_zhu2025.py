"""Dynamic tanh in studies: the layer without its tanh, and what is read from the squashing layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.data.dataset import Dataset
from normlib.lab import Config
from normlib.layers import ChannelsLast, DynamicTanh
from normlib.studies.normalizer_free.zhu2025_bn import largest_rates, network
from normlib.studies.normalizer_free.zhu2025_dyt import PlainScaling, slope_follows, squashes, transformer


@pytest.fixture
def images() -> Dataset:
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    return Dataset("noise", x, y, x, y, 4, "", official=False, source="made here")


def arm(norm: str) -> Config:
    return Config({"norm": norm, "patch": 4, "dim": 8, "depth": 1, "stages": [1, 1], "width": 4})


def test_without_tanh_a_layer_is_linear_and_no_tanh_is_left(images: Dataset) -> None:
    layer = PlainScaling(3, alpha=0.25)
    x = torch.randn(5, 3)
    assert torch.allclose(layer(x), x / 4)
    net = transformer(arm("scaling"), images, 0)
    found = [module.norm for module in net.modules() if isinstance(module, ChannelsLast)]
    assert len(found) == 3 and all(type(norm) is PlainScaling for norm in found)


def test_squashing_layers_are_read_at_their_input(images: Dataset) -> None:
    net = transformer(arm("dyt"), images, 0)
    first = next(module for module in net.modules() if isinstance(module, DynamicTanh))
    torch.nn.init.constant_(first.alpha, 4.0)
    tokens = net.embed(images.x_train)
    found = squashes(net, images.x_train)
    assert found["layer"] == [0, 1, 2] and found["alpha"] == [4.0, 0.5, 0.5]
    assert found["std"][0] == pytest.approx(float(tokens.detach().std(correction=0)), rel=1e-5)
    assert found["saturated"][0] == pytest.approx(float(((4 * tokens).tanh().abs() >= 0.9).double().mean()))


def test_correlation_is_of_slopes_with_one_over_deviations() -> None:
    run = {"norm": "dyt", "train": 9, "rate": 0.1, "step": 5, "seed": 0, "held_out": 50.0, "layer": [0, 1, 2, 3]}
    table = pd.DataFrame({**run, "alpha": [0.5, 1.0, 0.25, 2.0], "std": [2.0, 1.0, 4.0, 0.5]})
    assert slope_follows(table).tolist() == pytest.approx([1.0])


def test_largest_rate_leaves_out_what_diverged() -> None:
    table = pd.DataFrame({"norm": "dyt", "seed": 0, "rate": [0.1, 0.3, 1.0], "held_out": [80.0, 76.0, np.nan]})
    assert largest_rates(table)["dyt"].tolist() == [0.3]


def test_only_the_network_with_nothing_has_biases_in_its_convolutions(images: Dataset) -> None:
    def biased(norm: str) -> bool:
        names = [name for name, _ in network(arm(norm), images, 0).named_parameters()]
        return any(name.endswith("layer.bias") for name in names)

    assert [biased(norm) for norm in ("batch", "dyt", "none")] == [False, False, True]
    assert sum(isinstance(module, DynamicTanh) for module in network(arm("dyt"), images, 0).modules()) == 6  # stem, 2 · 2, shortcut
