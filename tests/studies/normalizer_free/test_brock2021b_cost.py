"""The steps whose cost is measured: what is timed computes what its name says, and ratios are of one repetition."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from normlib.lab import Config
from normlib.layers import BatchNorm
from normlib.studies.normalizer_free.brock2021b_cost import (
    AGC,
    ARMS,
    INFERENCE,
    network,
    prediction,
    ratios,
    seconds_of,
    training_step,
)  # fmt: skip
from normlib.surgery import fold_batch_norm
from normlib.training import make_clip, make_loss

SETTINGS = {"stages": [1, 1], "width": 8, "channels_last": False, "precision": "float32", "execution": "eager", "rounds": 2}


@pytest.fixture
def c() -> Config:
    return Config({**SETTINGS, "seconds": 0.0})


@pytest.mark.parametrize(("trained", "prepared"), [("batch", "batch_folded"), ("nf", "nf_fixed")])
def test_what_is_prepared_for_inference_predicts_the_same(c: Config, trained: str, prepared: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(prediction(c, trained, 0, x)(), prediction(c, prepared, 0, x)(), atol=1e-5)
    assert not prediction(c, prepared, 0, x)().requires_grad


def test_a_norm_folds_only_where_it_alone_follows_a_convolution(c: Config) -> None:
    net = network(c, INFERENCE["batch"].trick, 0).eval()
    count = [sum(isinstance(module, BatchNorm) for module in model.modules()) for model in (net, fold_batch_norm(net))]
    assert count == [5, 3]  # those of the two sums and of the stem stay: a shortcut hears these too


def test_the_step_with_agc_is_an_update_of_clipped_gradients(c: Config) -> None:
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    net = network(c, ARMS["nf_agc"].trick, 0)
    loss = make_loss("cross_entropy")(net(x), y)
    loss.backward()
    before = net.stem.parametrizations.weight.original.grad.clone()  # type: ignore[union-attr]
    make_clip(AGC, net)()
    after = net.stem.parametrizations.weight.original.grad  # type: ignore[union-attr]
    assert torch.allclose(training_step(c, ARMS["nf_agc"], 0, x, y)(), loss)
    assert float(after.norm()) < float(before.norm())


def test_a_step_costs_what_it_does(c: Config) -> None:
    a = torch.randn(400, 400)
    found = seconds_of(c, {"once": lambda: a @ a, "often": lambda: [a @ a for _ in range(40)]})
    assert found["often"] > 5 * found["once"]


def test_ratios_are_taken_within_a_repetition() -> None:
    rows = [
        {"seed": seed, "batch": 2, "mode": "training", "arm": arm, "ms": ms, "precision": "float32", "execution": "eager"}
        for seed, scale in ((0, 1.0), (1, 10.0)) for arm, ms in (("batch", 3 * scale), ("nf", scale))
    ]  # fmt: skip
    assert ratios(pd.DataFrame(rows), "batch", "nf")[2].tolist() == [3.0, 3.0]
