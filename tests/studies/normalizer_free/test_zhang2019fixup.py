"""How far a step moves a residual network: the measure against automatic differentiation, the arms against the rules."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from normlib.lab import Config
from normlib.studies.normalizer_free.zhang2019fixup import change_per_rate, factors, network, of_branches, powers

SETTINGS = {"unit": "basic", "head": "drawn", "blocks": 4, "width": 4}


def net_of(arm: str, **settings: object):
    """Build a small network of an arm."""
    return network(Config({**SETTINGS, "arm": arm, **settings}), 1, seed=0)


@pytest.mark.parametrize("arm", ["none", "fixup_bias", "rezero"])
def test_the_change_is_the_derivative_along_the_step(arm: str) -> None:
    net, x, y = net_of(arm), torch.randn(8, 1, 5, 5).double(), torch.arange(8)
    found = change_per_rate(net, x, y, ["all", "branches"])
    for part, change in zip(["all", "branches"], found, strict=True):
        chosen = [p for name, p in net.named_parameters() if part == "all" or of_branches(name)]
        output = net(x)
        step = torch.autograd.grad(cross_entropy(output, y), chosen, retain_graph=True)
        along = torch.zeros_like(output, requires_grad=True)  # twice backward is once forward
        back = torch.autograd.grad(output, chosen, along, create_graph=True)
        (moved,) = torch.autograd.grad(sum((b * s).sum() for b, s in zip(back, step, strict=True)), along)
        assert change == pytest.approx(float(moved.square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize(("unit", "factor"), [("basic", 0.5), ("bottleneck", 4**-0.25)])
def test_only_fixups_factor_tells_the_two_arms_apart(unit: str, factor: float) -> None:
    zeros, fixup, plain = (net_of(arm, unit=unit) for arm in ("zeros", "fixup", "none"))
    convolutions = [[m for m in n.blocks[2].branch.modules() if isinstance(m, torch.nn.Conv2d)] for n in (zeros, fixup, plain)]
    *others, last = zip(*convolutions, strict=True)
    assert all(torch.allclose(a.weight, c.weight) and torch.allclose(factor * a.weight, b.weight) for a, b, c in others)
    assert not last[0].weight.any() and not last[1].weight.any() and last[2].weight.any()
    assert torch.equal(zeros.head.weight, fixup.head.weight) and torch.equal(zeros.stem.weight, plain.stem.weight)


def test_readings_of_a_known_table() -> None:
    rows = [
        {"arm": "zeros", "head": "drawn", "seed": s, "unit": u, "blocks": b, "by_branches": float(b) ** p, "change": 2.0**b}
        for s in range(2) for u, p in (("basic", 1.0), ("bottleneck", 0.5)) for b in (2, 4, 8)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    assert powers(table, "zeros").iloc[0].to_dict() == pytest.approx({"basic": 1.0, "bottleneck": 0.5})
    assert factors(table, "zeros")["basic"].tolist() == pytest.approx([2.0] * 2)
