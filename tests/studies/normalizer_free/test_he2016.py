"""The three kinds of networks of He et al.: the same convolutions, and no shortcut in the plain one."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from normlib.data import Dataset
from normlib.lab import Config
from normlib.studies.normalizer_free.he2016 import errors, first_over_last, more_with_depth, network


@pytest.fixture
def images() -> Dataset:
    x, y = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 10
    return Dataset("noise", x, y, x, y, 10, "", False, "made here")


def net(images: Dataset, kind: str, layers: int = 14) -> nn.Module:
    return network(Config({"kind": kind, "layers": layers, "width": 4}), images, 0)


def _is_wide(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size[0] == 3


def test_layers_count_the_convolutions_on_the_way_and_the_head(images: Dataset) -> None:
    for kind, beside in (("plain", 0), ("v1", 2), ("v2", 2)):  # two projections
        made = [m for m in net(images, kind).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(made) == 14 + beside
    first, second = ([m.weight for m in net(images, kind).modules() if _is_wide(m)] for kind in ("plain", "v2"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_plain_network_is_a_chain(images: Dataset) -> None:
    plain = net(images, "plain")
    x = plain.stem(images.x_train)
    for block in plain.blocks:
        (one, two) = block.branch
        hidden = one.norm(one.layer(x)).relu()
        x = two.norm(two.layer(hidden)).relu()
    torch.testing.assert_close(plain.head(x.mean((2, 3))), plain(images.x_train))


def test_the_ratio_of_gradients_does_not_see_the_size_of_weights(images: Dataset) -> None:
    made = net(images, "v1").double()
    x, y = images.x_train.double(), images.y_train
    before = first_over_last(made, x, y)
    with torch.no_grad():
        made.blocks[0].branch[0].layer.weight.mul_(50)
    assert first_over_last(made, x, y) == pytest.approx(before, rel=0.05)  # eps is left


def test_errors_are_read_at_the_rate_that_held_out_images_choose() -> None:
    rows = [
        {"kind": "plain", "layers": layers, "rate": rate, "seed": seed, "held_out_error": held, "training_error": error + seed}
        for layers, rate, held, error in ((8, 0.1, 30, 20), (8, 0.3, 40, 10), (26, 0.1, 70, 50), (26, 0.3, 60, 55))
        for seed in range(3)
    ]
    table = pd.DataFrame(rows)
    assert errors(table)["plain"][26].tolist() == [55, 56, 57]
    assert more_with_depth(table, "plain").tolist() == [35, 35, 35]
