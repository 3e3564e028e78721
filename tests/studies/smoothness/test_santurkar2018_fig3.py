"""Figure 3 of Santurkar et al.: the shift beside one computed by copies of the network, and how the table is read."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from normlib.lab import Config
from normlib.studies.common.arms import images_for
from normlib.studies.smoothness.nets import BATCH, fit, fit_linear, linear_loss, linear_task, vgg
from normlib.studies.smoothness.santurkar2018_fig3 import at_equal_loss
from normlib.studies.smoothness.shifts import gains, phase, probed_steps, ratios, shift_probe, weight_layers, with_depth_and_loss
from normlib.training.loop import data_order

SETTINGS = {"data": "digits", "train": 256, "test": 64, "validation": 64, "depth": 4, "width": 8}


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_shift_is_that_of_a_copy_whose_lower_layers_took_their_step(norm: str) -> None:
    images, _ = images_for(Config(SETTINGS), 0)
    network = vgg(Config(SETTINGS), images, norm, 0)
    names = weight_layers(network)
    assert len(names) == SETTINGS["depth"]
    before = copy.deepcopy(network).train()
    found = fit(
        network, images, steps=1, rate=0.1, seed=0, probe=shift_probe(F.cross_entropy, [names[2]]), probe_steps=[0]
    ).probes  # fmt: skip

    batch = next(data_order(len(images.x_train), BATCH, 0))
    x, y = images.x_train[batch], images.y_train[batch]
    F.cross_entropy(before(x), y).backward()
    mixed = copy.deepcopy(before)
    weight = f"{names[2]}.weight"
    order = [name for name, _ in before.named_parameters()]
    with torch.no_grad():  # only what stands before the layer moves: scales and biases of norms, too
        for (name, old), new in zip(before.named_parameters(), mixed.parameters(), strict=True):
            if order.index(name) < order.index(weight):
                assert old.grad is not None
                new.sub_(old.grad, alpha=0.1)
    mixed.zero_grad()
    F.cross_entropy(mixed(x), y).backward()
    layer, other = before.get_submodule(names[2]), mixed.get_submodule(names[2])
    g, h = (torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]) for module in (layer, other))
    assert found["shift"][0] == pytest.approx(float((g - h).norm()), rel=1e-3)
    assert found["gradient_norm"][0] == pytest.approx(float(g.norm()), rel=1e-4)
    assert found["cosine"][0] == pytest.approx(float(F.cosine_similarity(g, h, 0)), abs=1e-4)


def test_a_small_rate_makes_the_shift_small_and_measuring_changes_nothing() -> None:
    runs = {}
    for rate in (1e-7, 1e-8):
        probe = shift_probe(linear_loss, ["head"])
        _, runs[rate] = fit_linear("none", 0, "cpu", steps=3, rate=rate, probe=probe, probe_steps=[0])
    assert runs[1e-7].probes["shift"][0] / runs[1e-8].probes["shift"][0] == pytest.approx(10, rel=0.1)
    assert np.array_equal(runs[1e-7].loss, fit_linear("none", 0, "cpu", steps=3, rate=1e-7)[1].loss)
    assert linear_task(0, "cpu")[0].shape == (1000, 10)


def test_probes_come_with_layers_and_losses() -> None:
    probe = shift_probe(linear_loss, ["blocks.3.layer", "head"])
    _, history = fit_linear("none", 0, "cpu", steps=12, rate=1e-7, probe=probe, probe_steps=[0, 6])
    columns = with_depth_and_loss(history, [4, 25])
    assert columns["layer"] == [4, 25, 4, 25] and columns["step"] == [0, 0, 6, 6]
    assert columns["loss"][2] == pytest.approx(history.loss[1:11].mean()) and columns["loss"][0] == history.loss[0]
    steps = probed_steps(1000, 11)
    assert steps[0] == 0 and steps[-1] == 999 and len(steps) <= 22


def _table() -> pd.DataFrame:
    rows = [
        {"norm": norm, "rate": 0.1, "seed": seed, "step": step, "layer": layer, "loss": loss, "shift": shift, "cosine": cosine,
         "relative_shift": shift / 2}
        for seed in (0, 1)
        for norm, shift, cosine, losses in (("none", 1.0, 0.9, (2.3, 2.2, 1.7, 0.9)), ("batch", 3.0, 0.5, (2.5, 1.3, 0.3, 0.1)))
        for step, loss in zip((0, 10, 50, 99), losses, strict=True)
        for layer in (2, 3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_phases_and_ratios_are_read_seed_by_seed() -> None:
    table = _table()
    for name, steps in (("first", [0]), ("early", [10]), ("late", [99]), ("all", [10, 50, 99])):
        assert sorted(phase(table, name).step.unique()) == steps
    assert ratios(table, "shift")[0.1].tolist() == [3, 3]
    assert gains(table)[0.1].tolist() == pytest.approx([-0.4, -0.4])
    table.loc[(table.norm == "none") & (table.seed == 1), "shift"] = np.nan  # a diverged run
    assert np.isnan(ratios(table, "shift")[0.1].loc[1])


def test_equal_loss_leaves_out_levels_that_one_network_does_not_reach() -> None:
    found = at_equal_loss(_table(), 0.1)
    assert sorted(found.index.get_level_values("level").unique()) == [1.0, 1.4, 1.8]
    assert set(found["cosine"]["batch"] - found["cosine"]["none"]) == {0.5 - 0.9}
