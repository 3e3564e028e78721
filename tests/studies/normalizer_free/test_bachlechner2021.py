"""The deep fully connected network, its spectrum, and the steps that are counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.studies.normalizer_free.bachlechner2021 import ARMS, DeepNet, ratio, trunk_spectrum


@pytest.mark.parametrize("arm", list(ARMS))
def test_the_trunk_is_what_the_equations_say(arm: str) -> None:
    net = DeepNet(5, 6, 3, 2, arm, seed=0)
    x = torch.randn(7, 5)
    h = net.entry(x)
    for branch in net.branches:
        f = h @ branch.layer.weight.T
        f = (f - f.mean(0)) / (f.var(0, correction=0) + 1e-5).sqrt() if arm == "batch" else f
        h = {"plain": 0, "rezero": 1}.get(arm, 1) * h + (0 if arm == "rezero" else 1) * f.relu()
    assert torch.allclose(net(x), net.head(h), atol=1e-4)


def test_the_spectrum_of_two_layers_without_shortcut() -> None:
    net, x = DeepNet(5, 6, 2, 2, "plain", seed=0), torch.randn(1, 5)
    (first, second), h = net.branches, net.entry(x)[0]
    one = (first.layer.weight @ h > 0).float()
    two = (second.layer.weight @ (one * (first.layer.weight @ h)) > 0).float()
    jacobian = two[:, None] * second.layer.weight @ (one[:, None] * first.layer.weight)
    assert trunk_spectrum(net, x)["largest"] == pytest.approx(float(torch.linalg.svdvals(jacobian.detach())[0]), rel=1e-4)
    assert trunk_spectrum(DeepNet(5, 6, 2, 2, "rezero", seed=0), x)["from_one"] < 1e-12


def test_steps_are_compared_at_the_tuned_rates() -> None:
    rows = [
        {"arm": arm, "rate": rate, "seed": s, "reached": 10.0 * rate * k, "held_out": rate * k, "steps": 80}
        for arm, k in (("sum", 4), ("rezero", 1)) for rate in (1, 2) for s in range(2)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    assert ratio(table, "sum", "rezero").tolist() == [4.0, 4.0]
    table.loc[table.arm == "sum", "reached"] = np.inf
    assert ratio(table, "sum", "rezero").tolist() == [8.0, 8.0]
