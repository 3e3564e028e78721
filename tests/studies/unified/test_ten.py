"""The ten normalizers and their networks: sizes of the paper, activations that keep unit variance, one start for all."""

from __future__ import annotations

import torch

from normlib.lab import Config
from normlib.studies.common.arms import images_for
from normlib.studies.unified.ten import QUICK, TEN, cnn, fit, normalizer, plan, resnet

IMAGES, _ = images_for(Config(QUICK), 0)


def test_plans_have_the_sizes_of_the_paper() -> None:
    def weights(layers: int) -> float:
        channels, _ = plan(layers, 64)
        return sum(9 * before * after for before, after in zip([3, *channels], channels, strict=False)) / 1e6

    assert round(weights(10), 1) == 9.4 and round(weights(20), 1) == 13.3 and round(weights(40)) == 42


def test_there_are_ten_and_each_builds_both_networks_from_the_same_weights() -> None:
    assert len(TEN) == 10
    c = Config(QUICK)
    for build in (cnn, resnet):
        nets = {key: build(c, IMAGES, key, 3) for key in ("none", *TEN)}
        first = {key: next(p for name, p in net.named_parameters() if p.dim() == 4) for key, net in nets.items()}
        assert all(torch.equal(weight, first["none"]) for key, weight in first.items() if not normalizer(key).parametric)
        for net in nets.values():
            assert net(IMAGES.x_train[:8]).shape == (8, 10)


def test_weight_norm_keeps_the_variance_with_its_activation_and_not_with_a_plain_relu() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(64, 1, 8, 8), cnn(Config({**QUICK, "width": 64, "strides": 0}), IMAGES, "weight", 0)
    blocks = net.get_submodule("blocks")
    assert 0.5 < blocks[:8](x).var() < 2
    for block in blocks:
        block.activation = torch.nn.ReLU()
    assert blocks[:8](x).var() < 0.01


def test_the_rate_falls_once_after_three_quarters() -> None:
    net = cnn(Config(QUICK), IMAGES, "batch", 0)
    rates: list[float] = []
    fit(
        net,
        IMAGES,
        steps=8,
        rate=0.1,
        seed=0,
        batch=64,
        probe=lambda step, model: rates.append(step.rate) or {},
        probe_steps=range(8),
    )
    assert [round(rate, 3) for rate in rates] == [0.1] * 6 + [0.01] * 2
