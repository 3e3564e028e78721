"""The arms of figure 6, and how one curve's height above another is read off a table."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from normlib.lab import Config
from normlib.layers import BatchNorm
from normlib.studies.common.inputs import load
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.ba2016_fig6 import ARMS, UNBIASED, UnbiasedBatchNorm, above, best, fastest, make_network


def test_the_unbiased_variance() -> None:
    norm = UnbiasedBatchNorm(3, eps=1e-12).double()
    torch.nn.init.constant_(norm.weight, 2.0)
    torch.nn.init.constant_(norm.bias, 5.0)
    norm.requires_grad_(False)
    x = 3 + normal(0, 4, 3)
    assert gap(norm(x), 5 + 2 * (x - x.mean(0)) / x.std(0)) < 1e-10
    assert float((norm(x) - 5).var(0, correction=0).mean()) == pytest.approx(4 * 3 / 4)  # of a gain of 2, 3/4 of the variance

    usual = BatchNorm(3, eps=1e-12).double()
    usual.load_state_dict(norm.state_dict())
    assert torch.equal(norm.eval()(x), usual.eval()(x))


@pytest.mark.parametrize("arm", list(ARMS))
def test_arms_share_weights_and_differ_in_where_they_normalize(arm: str) -> None:
    images = load(Config({"data": "digits", "train": 40}))
    net, plain = make_network(arm, 8, images, 0), make_network("none", 8, images, 0)
    weights = [p for name, p in net.named_parameters() if name.endswith("layer.weight") or name.endswith("head.weight")]
    expected = [p for name, p in plain.named_parameters() if name.endswith("weight")]
    assert len(weights) == 3 and all(map(torch.equal, weights, expected))

    logits = net(images.x_train).detach()
    assert (float(logits.mean(0).abs().max()) < 1e-5) == ("logits" in arm)
    kinds = {type(m).__name__ for m in net.modules() if "Norm" in type(m).__name__}
    layer = {"none": set(), "layer": {"ChannelLayerNorm"}, UNBIASED: {"UnbiasedBatchNorm"}}
    assert kinds == layer.get(arm, {"BatchNorm"})


def test_a_curve_twice_as_high_at_its_fastest_rate() -> None:
    def run(arm: str, rate: float, height: float, held_out: float, seed: int) -> list[dict[str, object]]:
        return [
            {
                "batch": 128,
                "arm": arm,
                "rate": rate,
                "seed": seed,
                "epoch": epoch,
                "nll": height * 2.0**-epoch,
                "held_out": held_out,
            }
            for epoch in (1, 2)
        ]

    rows = [
        row
        for seed in (0, 1, 2)
        for row in [
            *run("layer", 0.1, 1.0, 20.0, seed),
            *run("layer", 0.2, 3.0, 10.0, seed),
            *run("batch", 0.1, 2.0, 20.0, seed),
            *run("batch", 0.2, math.nan, math.nan, seed),
        ]
    ]
    table = pd.DataFrame(rows)
    assert above(table, 128, "batch").tolist() == pytest.approx([2.0] * 3)
    assert fastest(table)[1] == {(128, "layer"): 0.1, (128, "batch"): 0.1}
    assert best(table)[1] == {(128, "layer"): 0.2, (128, "batch"): 0.1}
