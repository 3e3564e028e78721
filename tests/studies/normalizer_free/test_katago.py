"""One batch norm before the head: where it stands, what it sees, and the share of a gap that it closes."""

from __future__ import annotations

import pandas as pd
import torch
from torch.nn.functional import relu

from normlib.data import load
from normlib.lab import Config
from normlib.layers import BatchNorm
from normlib.studies.normalizer_free.katago import closed, largest_rate, network

CONFIG = Config({"stages": [1, 1], "width": 8})


def test_one_norm_stands_before_the_last_activation() -> None:
    images = load("digits")
    x = images.x_train[:16]
    plain, one = (network(CONFIG, images, arm, 0).train() for arm in ("nf", "nf + one batch"))
    assert [type(m) for m in one.modules() if isinstance(m, BatchNorm)] == [BatchNorm]
    with torch.no_grad():
        maps = plain.blocks(plain.stem(x))
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), correction=0, keepdim=True)
        expected = plain.head(relu((maps - mean) / (variance + 1e-5).sqrt()).mean((2, 3)))
        torch.testing.assert_close(one(x), expected)
        assert not torch.allclose(plain(x), expected, atol=1e-2)


def test_constants_take_alpha_one_and_weights_as_they_are() -> None:
    net = network(CONFIG, load("digits"), "constants", 0)
    assert all(block.join.branch_scale == 1 for block in net.blocks)
    assert not any("parametrizations" in name for name, _ in net.named_parameters())


def test_the_share_is_of_the_gap_and_there_is_none_without_a_gap() -> None:
    losses = {0: {"batch": 1.0, "nf": 3.0, "nf + one batch": 1.5}, 1: {"batch": 1.0, "nf": 0.9, "nf + one batch": 0.8}}
    rows = [(arm, 0.1, seed, loss, 50.0) for seed, arms in losses.items() for arm, loss in arms.items()]
    table = pd.DataFrame(rows, columns=["arm", "rate", "seed", "last_loss", "held_out"])
    share = closed(table, "nf", "batch", "last_loss")
    assert share[0] == 0.75 and pd.isna(share[1])


def test_the_largest_rate_is_the_highest_that_trains() -> None:
    losses = {0.1: 0.5, 0.3: 0.9, 1.0: 2.3, 3.0: float("nan")}
    table = pd.DataFrame([("nf", rate, 0, loss) for rate, loss in losses.items()], columns=["arm", "rate", "seed", "last_loss"])
    assert largest_rate(table, "nf").tolist() == [0.3]
    assert largest_rate(table.assign(last_loss=2.3), "nf").tolist() == [0.0]
