from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from normlib.lab import Verdict
from normlib.networks import VGG
from normlib.studies.batch.ioffe2015_sigmoid import sigmoid, states


def test_states_are_read_off_the_sigmoids() -> None:
    net = VGG(11, width=1 / 16, in_channels=1, norm="none", activation="logistic", init="normal:std=1", seed=0)
    x = torch.randn(16, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    found = states(net, x, "start")
    maps = x.double()
    for position, block in enumerate(net.blocks):
        weight, bias = block.layer.weight.double(), block.layer.bias.double()
        maps = torch.sigmoid(torch.nn.functional.conv2d(maps, weight, bias, padding=1)).detach()
        extreme = ((maps <= 0.05) | (maps >= 0.95)).double().mean()
        assert found["saturation_start"][position] == pytest.approx(float(extreme), abs=1e-9)
        difference = maps.mean((2, 3)).var(0, correction=0).mean().sqrt()
        assert found["difference_start"][position] == pytest.approx(float(difference), rel=1e-6)
        maps = nn.functional.max_pool2d(maps, 2, ceil_mode=True) if position in net.pooled else maps
    assert max(found["saturation_start"]) > 0.05
    assert next(net.parameters()).dtype == torch.float32


def _table(saturated: float) -> pd.DataFrame:
    rows = [
        {
            "norm": norm, "rate": rate, "seed": seed, "layer": layer, "validation": right, "test_accuracy": right, "status": "ok",
            "running_validation": right, "saturation_end": saturated if norm == "none" else 0.1,
            "difference_start": 0.1 if norm == "batch" else 0.1 * 0.2 ** (layer - 1), "difference_end": 0.1,
        }
        for norm, right in (("none", 0.1), ("batch", 0.8)) for rate in (0.1, 0.3) for seed in range(3) for layer in range(1, 9)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_claims_can_turn_out_either_way() -> None:
    found = {claim.slug: claim.function(_table(0.05)) for claim in sigmoid.claims}
    assert {judgement.verdict for judgement in found.values()} == {Verdict.REPRODUCED}
    assert found["quarter"].value == pytest.approx(0.2) and found["alike"].value == pytest.approx(0.2**7)
    assert found["saturation"].value == pytest.approx(-0.05)
    found = {claim.slug: claim.function(_table(0.5)) for claim in sigmoid.claims}
    assert found["saturation"].verdict is Verdict.NOT_REPRODUCED
