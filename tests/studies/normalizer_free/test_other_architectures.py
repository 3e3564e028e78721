"""Other architectures without norms: how their arms are built, and what is measured before training."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from normlib.data.dataset import Dataset
from normlib.lab import Config
from normlib.layers import BatchNorm, LayerNorm
from normlib.networks.densenet import DenseLayer
from normlib.studies.normalizer_free.other_architectures import NETWORKS, WAYS, build, other, passed_on, points, steps_off


@pytest.fixture
def images() -> Dataset:
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    return Dataset("noise", x, y, x, y, 4, "", official=False, source="made here")


def arm(network: str, way: str) -> Config:
    return Config({**other.configurations("quick")[0], "network": network, "way": way, "layers": [2, 1]})


@pytest.mark.parametrize("network", NETWORKS)
def test_a_norm_of_activations_stands_in_one_arm_only(network: str, images: Dataset) -> None:
    for way in WAYS:
        net = build(arm(network, way), images, 0)
        norms = [m for m in net.modules() if isinstance(m, BatchNorm | LayerNorm)]
        assert bool(norms) == (way == "norm")
        assert any("parametrizations" in name for name, _ in net.named_modules()) == (way == "nf")
        assert all(np.isfinite(passed_on(net, images.x_train)))


def variance(x: torch.Tensor) -> float:
    return float(x.transpose(0, 1).flatten(1).var(1, correction=0).mean())


def test_what_the_plain_net_and_the_densenet_pass_on(images: Dataset) -> None:
    x = images.x_train
    with torch.no_grad():
        net = build(arm("plain", "nf"), images, 0)
        sums = [net.blocks[0].layer(x)]
        for at, block in enumerate(net.blocks[1:], start=1):
            h = sums[-1].relu()
            sums.append(block.layer(net.pool(h) if at - 1 in net.pooled else h))
        assert passed_on(net, x) == pytest.approx([variance(s) / variance(sums[0]) for s in sums[1:]], rel=1e-4)

        net = build(arm("dense", "none"), images, 0)
        h = stem = net.stem(x)
        put_out = []
        for block in net.blocks:
            if isinstance(block, DenseLayer):
                put_out.append(variance(block.branch(h)) / variance(stem))
            h = block(h)
        assert len(put_out) == 3 and passed_on(net, x) == pytest.approx(put_out, rel=1e-4)


def test_the_transformer_keeps_books(images: Dataset) -> None:
    net = build(arm("vit", "nf"), images, 0)
    x = torch.randn(4, 4, 16)
    for at, sublayer in enumerate((net.blocks[0].attention, net.blocks[0].mlp)):
        beta = math.sqrt(1 + 0.04 * at)
        assert torch.allclose(sublayer(x), x + 0.2 * sublayer.branch(x / beta), atol=1e-5)
    mlp = net.blocks[0].mlp.branch
    for layer in (net.blocks[0].attention.branch.qkv, mlp.layer, mlp.out):
        assert torch.allclose(layer.weight.norm(dim=1), torch.ones(len(layer.weight)), atol=1e-2)
    z = torch.randn(4_000, 32)  # behind the activation the other gain has been made up for
    assert float(mlp.activation(z).var()) == pytest.approx(1, abs=0.05)
    assert isinstance(net.final, nn.Identity)


def test_margins_are_read_at_each_arm_s_own_rate() -> None:
    rows = []
    for network in NETWORKS:
        for way, own in (("norm", 0.3), ("nf", 0.1), ("none", 0.1)):
            for rate in (0.1, 0.3):
                score = {"norm": 80.0, "nf": 79.0, "none": 60.0}[way] - (0 if rate == own else 30)
                row = {"network": network, "way": way, "rate": rate, "multiple": rate / 0.1, "seed": 0}
                rows += [{**row, "held_out": score, "accuracy": score, "passed": passed} for passed in (0.25, 1.0)]
    table = pd.DataFrame(rows)
    assert points(table, "norm", "nf").to_numpy().tolist() == [[1.0] * 4]
    assert steps_off(table).to_numpy().tolist() == [[-1.0] * 4]
