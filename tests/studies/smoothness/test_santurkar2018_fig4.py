"""The landscape studies measure what they say: extremes on a bowl, curvature along a gradient, bands and their ratios."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from normlib.studies.smoothness import landscape_protocol
from normlib.studies.smoothness.santurkar2018_fig4 import LENGTHS, at_equal_loss, landscape, probe_steps, ratios
from normlib.studies.smoothness.santurkar2018_plateau import farthest, sharpness
from normlib.studies.smoothness.santurkar2018_plateau_linear import ranges
from normlib.training import Step

CURVES = torch.tensor([1.0, 4.0])
START = torch.tensor([3.0, 1.0])


def bowl_step() -> tuple[Step, nn.Module]:
    """Return a step on the loss (w₁² + 4 w₂²) / 2 at w = (3, 1), whose gradient is (3, 4), of length 5."""
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.copy_(START)

    def loss(output, target):
        return 0.5 * output.square().sum()

    x, y = CURVES.sqrt().diag(), torch.zeros(2, 1)
    objective = lambda model, x, y: loss(model(x), y)  # noqa: E731
    return Step(0, model=net, x=x, y=y, rate=0.1, loss=loss, _objective=objective), net


def test_the_probe_finds_the_extremes_on_a_bowl() -> None:
    step, net = bowl_step()
    found = landscape(0.1)(step, net)
    g, origin = CURVES * START, START
    for unit, scale in (("rate", 1.0), ("distance", 1 / 5), ("weight_norm", 0.1 * origin.norm().item() / 5)):
        points = [origin - 0.1 * scale * length * g for length in LENGTHS]
        losses = [0.5 * (CURVES * w.square()).sum().item() for w in points]
        changes = [(CURVES * w - g).norm().item() for w in points]
        np.testing.assert_allclose(found[f"loss_min_{unit}"], min(losses), rtol=1e-5)
        np.testing.assert_allclose(found[f"loss_max_{unit}"], max(losses), rtol=1e-5)
        np.testing.assert_allclose(found[f"change_max_{unit}"], max(changes), rtol=1e-5)
        np.testing.assert_allclose(found[f"smoothness_{unit}"], (CURVES * g).norm().item() / 5, rtol=1e-4)


def test_sharpness_is_the_rayleigh_quotient_of_the_gradient() -> None:
    step, net = bowl_step()
    g = CURVES * START
    np.testing.assert_allclose(sharpness(step, net), ((CURVES * g) @ g / (g @ g)).item(), rtol=1e-5)


def test_probes_are_denser_at_the_start_and_end_at_the_end() -> None:
    steps = probe_steps(400, 24)
    assert steps[0] == 0 and steps[-1] == 400 and len(steps) == 25 and np.all(np.diff(np.diff(steps)) >= -1)


def test_ratios_compare_arms_of_one_seed() -> None:
    rows = [
        {"arm": arm, "seed": seed, "step": step, "steps": 10, "loss": loss, "high": width * (1 + seed)}
        for arm, width in (("none", 6.0), ("none, He", 4.0), ("batch", 2.0))
        for seed in (0, 1)
        for step, loss in ((0, 2.3), (5, 0.7), (10, 0.3 if arm != "batch" else 0.01))
    ]
    table = pd.DataFrame(rows)
    for unit in ("rate", "distance", "weight_norm"):
        table[f"loss_min_{unit}"], table[f"loss_max_{unit}"] = 0.0, table.high
    assert ratios(table, "width_rate", 0, 1).tolist() == [3.0, 3.0]
    assert np.allclose(at_equal_loss(table, "width_rate", "none, He"), 2.0)  # only the class that both visit counts
    nothing = table.assign(loss=np.where(table.arm == "batch", 5.0, table.loss))
    assert at_equal_loss(nothing, "width_rate").isna().all()


def test_farthest_and_ranges_take_the_worst_and_the_extremes() -> None:
    assert farthest(pd.DataFrame({0.1: [1.1, 0.5], 0.2: [0.95, 1.2]})).tolist() == [1.1, 0.5]
    probe = {"norm": "none", "rate": 1e-6, "seed": 0, "steps": 1, "step": 0, "start_loss": 4.0}
    rows = [{**probe, "loss": loss, "gradient_change": 2 * loss, "smoothness": 1 / loss} for loss in (1.0, 5.0, np.inf)]
    found = ranges(pd.DataFrame(rows)).iloc[0]
    assert (found.low, found.high, found.change, found.beta) == (1.0, np.inf, np.inf, 1.0)


def test_the_protocol_calls_one_bowl_rough_and_another_smooth() -> None:
    losses = {f"model_{rate:g}": [0.5 * (1 - rate) ** (2 * step) for step in range(3)] for rate in landscape_protocol.RATES}
    table = pd.DataFrame({"step": range(3), "steps": 2, "low": 0.1, "high": 0.3, **losses})
    found = landscape_protocol.bands(table)
    assert found.models[0] == 0 and found.models[1] == 0.5 * (0.95**2 - 0.6**2)  # whatever the bowl, which is one and the same
    assert np.allclose(found.gradient, 0.2)
    assert np.allclose(landscape_protocol.bands(table, (0.05, 0.1)).models[1], 0.5 * (0.95**2 - 0.9**2))
