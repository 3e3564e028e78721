"""Closed forms of the post's figures against sampling and against the networks themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from normlib.lab import Config
from normlib.studies.normalizer_free import hoedt2022_moments as joins
from normlib.studies.normalizer_free.bottlenecks import ARMS, STAGES, first_blocks, network, predicted
from normlib.studies.normalizer_free.hoedt2022_published import PUBLISHED
from normlib.studies.normalizer_free.kernel import HALF_GAUSSIAN, Moments, arc_cosine, gate_moments, largest_of


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_kernel_is_what_a_wide_relu_layer_does_to_mean_and_variance() -> None:
    for rho in (0.0, 0.3, 0.9):
        shared, one, other = normal(3, 400_000)
        a, b = (math.sqrt(rho) * shared + math.sqrt(1 - rho) * own for own in (one, other))
        sampled = float((a.relu() * b.relu()).mean() / a.relu().square().mean())
        assert arc_cosine(rho) == pytest.approx(sampled, abs=0.01)
    behind = Moments(0.0, 3.0).through(1)
    assert behind.squared_mean == pytest.approx(3 / math.pi) and behind.variance == pytest.approx(3 * HALF_GAUSSIAN)


def test_moments_of_a_maximum_and_of_a_gate_are_those_of_samples() -> None:
    largest = normal(200_000, 9).amax(1)
    form = largest_of(9)
    assert form.squared_mean == pytest.approx(float(largest.mean() ** 2), rel=0.01)
    assert form.variance == pytest.approx(float(largest.var()), rel=0.02)
    shared, own = normal(1000, 1), normal(1000, 400)
    gate = torch.sigmoid(-1 + math.sqrt(0.5) * shared + math.sqrt(2.0) * own)
    means = gate.mean(1)
    sampled = [gate.square().mean(), (1 - gate).square().mean(), means.square().mean(), (1 - means).square().mean()]
    assert gate_moments(-1.0, Moments(0.5, 2.0)) == pytest.approx([float(one) for one in sampled], rel=0.04)


def test_joins_follow_their_closed_forms() -> None:
    form = joins.closed_form("sum", "he", 5)
    assert [one.square for one in form] == pytest.approx([2.0, 4.0, 8.0, 16.0, 32.0])
    assert [one.square for one in joins.closed_form("scaled_sum", "he", 3)] == pytest.approx([1.0] * 3)
    assert joins.closed_form("small", "scaled", 2)[-1].variance == pytest.approx(1.04**2)
    assert [one.square for one in joins.closed_form("concat", "he", 3)] == pytest.approx([1.0] * 3)


def test_a_gate_mixes_its_two_inputs() -> None:
    c = Config({**joins.moments.quick, "skip": "gate", "weights": "scaled_weight:gain=relu"})
    gate = joins.stack(c, 0)[0].join
    x, f = normal(2, 3, 32, 4, 4).float()
    t = (gate(x, f) - x) / (f - x)
    assert torch.allclose(t, torch.sigmoid(gate.layer(x.relu()) + joins.BIAS), atol=1e-2)
    assert gate.layer.weight.flatten(1).sum(1).abs().max() < 1e-5


def test_predicted_curves_are_the_closed_forms_of_the_sheet() -> None:
    batch = predicted("batch")
    stage = batch.loc[8:13]  # the third, of six blocks
    steps = np.arange(2, 8)
    assert np.allclose(stage.variance, steps * HALF_GAUSSIAN) and np.allclose(stage.squared_mean, steps / math.pi)
    plain = predicted("none")
    square = plain.squared_mean + plain.variance
    assert np.allclose(square[2:] / square[1:-1].to_numpy(), 2)
    assert first_blocks() == [4, 8, 14] and all(len(curve) == 16 for arm in PUBLISHED.values() for curve in arm.values())


def test_the_first_norm_and_activation_stand_before_the_pooling() -> None:
    net = network(ARMS["batch"], 8, "zeros", 0).train()
    seen: list[torch.Tensor] = []
    net.blocks[0].shortcut.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    stem: list[torch.Tensor] = []
    net.stem.register_forward_hook(lambda module, args, output: stem.append(output))
    net(normal(4, 3, 32, 32).float())
    assert torch.equal(seen[0], stem[0]) and stem[0].min() >= 0
    assert len(net.blocks) == sum(STAGES)
