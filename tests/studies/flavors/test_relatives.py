"""Arms as they are read and built; ghost batches against workers that are run one by one; what is read off networks and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from normlib.lab import Config, Verdict
from normlib.layers import EvoNormB0, SwitchNorm
from normlib.studies import get_study
from normlib.studies.common.arms import images_for
from normlib.studies.flavors.convnets import Workers
from normlib.studies.flavors.hoffer2017 import SQRT
from normlib.studies.flavors.luo2019 import pooling_gap, shares
from normlib.studies.flavors.relatives import GHOSTS, chosen_rates, coupling, learned, network_of, read_arm

SMALL = {"data": "digits", "train": 128, "test": 64, "validation": 64, "depth": 4, "width": 8}


def network(arm: str) -> tuple[Any, torch.Tensor]:
    c = Config({**SMALL, "arm": arm})
    tune, _ = images_for(c, 0)
    return network_of(c, tune, 0), tune.x_train[:8]


def test_an_arm_is_read() -> None:
    assert read_arm("group:size=8 + silu") == ("group:size=8", "silu", 64, False)
    assert read_arm("evonorm_b0 + per 2") == ("evonorm_b0", "relu", 2, False)
    assert read_arm("frn + warm-up") == ("frn", "relu", 64, True)


@pytest.mark.parametrize("kind", [EvoNormB0, SwitchNorm])
def test_ghosts_are_workers_in_value_gradient_and_running_statistics(kind: Any) -> None:
    torch.manual_seed(0)
    x = (1 + torch.randn(8, 6, 5, 5)).double()
    ghosts, plain = GHOSTS[kind](6, 2).double(), kind(6).double()
    with torch.no_grad():
        for parameter, twin in zip(ghosts.parameters(), plain.parameters(), strict=True):
            twin.copy_(parameter.normal_())
    outputs = ghosts(x), Workers(plain, 2)(x)
    assert torch.allclose(outputs[0], outputs[1], atol=1e-12) and not torch.allclose(outputs[0], plain(x), atol=1e-2)
    pairs = zip(outputs, (ghosts, plain), strict=True)
    first, second = (torch.autograd.grad((y**3).sum(), tuple(net.parameters())) for y, net in pairs)
    assert all(torch.allclose(a, b) for a, b in zip(first, second, strict=True))
    between = torch.stack([part.var((0, 2, 3)) for part in x.split(2)]).mean(0)
    assert torch.allclose(ghosts.running_var, 0.9 + 0.1 * between)
    plain.load_state_dict(ghosts.state_dict())
    assert torch.equal(ghosts.eval()(x), plain.eval()(x))


def test_arms_are_built() -> None:
    net, _ = network("group:size=8 + silu")
    assert all(type(block.activation) is nn.SiLU for block in net.blocks)
    net, x = network("switch + per 2")
    assert all(block.norm.images == 2 for block in net.blocks)
    parts: dict[str, Any] = shares(net)
    assert parts["block"] == [1, 1, 2, 2, 3, 3]
    assert np.allclose(sum(np.array(parts[name]) for name in ("instance", "layer", "batch")), 1)
    assert shares(network("batch")[0])["moment"] == ""
    assert pooling_gap(x.double()) < 1e-12


@pytest.mark.parametrize(("arm", "tied"), [("frn", False), ("evonorm_s0:size=8", False), ("batch", True), ("evonorm_b0", True)])
def test_coupling_is_found_where_samples_are_tied(arm: str, tied: bool) -> None:
    net, x = network(arm)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = coupling(net, x)
    assert all((found[name] > 1e-2) == tied and (tied or found[name] < 1e-12) for name in ("coupling", "modes"))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()) and net.training


def test_quartiles_of_what_is_learned() -> None:
    net, _ = network("frn")
    net.blocks[1].norm.tau.data.copy_(torch.arange(8.0))
    found = learned(net, "tau")
    assert found["layer"] == [1, 2, 3] and found["middle"] == [0.0, 3.5, 0.0] and found["low"][1] == 1.75
    assert np.isnan(learned(network("batch")[0], "tau")["middle"])


def test_a_rate_at_the_end_is_said() -> None:
    table = pd.DataFrame({"rate": [0.1, 0.2, 0.4]})
    said = chosen_rates(table, {"a": 0.4, "b": 0.2, "c": 0.4}, {"a": "A", "b": "B", "c": "C"})
    assert said == "0.2 for B; 0.4 for A, C (at an end of the rates tried)"


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [([30, 20, 25], Verdict.REPRODUCED), ([30, 20, 15], Verdict.NOT_REPRODUCED), ([30, 20], Verdict.UNRESOLVED)],
)
def test_the_square_root_is_judged_from_the_rate_of_the_small_batch(errors: list[float], verdict: Verdict) -> None:
    rates = [0.1 * SQRT**power for power in range(len(errors))]
    rows = [
        {"arm": arm, "rate": rate, "seed": seed, "held_out_error": error + 0.1 * seed}
        for seed in range(3)
        for rate, error, small in zip(rates, errors, [10, 20, 30], strict=False)
        for arm, error in (("large", error), ("small", small))
    ]
    claim = next(claim for claim in get_study("hoffer2017.ghost").claims if claim.slug == "square-root")
    assert claim.function(pd.DataFrame(rows)).verdict is verdict
