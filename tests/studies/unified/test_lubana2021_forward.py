"""Growth of variances inside stages: fits against sequences that are known, the reflected walk against a simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from normlib.lab import Config
from normlib.networks import ResNet
from normlib.studies.common.arms import images_for
from normlib.studies.unified.growth import fits, reflected_walk
from normlib.studies.unified.lubana2021_forward import HALF_GAUSSIAN, forward


def config(network: str, norm: str) -> Config:
    return Config(next(c for c in forward.configurations("quick") if (c["network"], c["norm"]) == (network, norm)))


def test_the_reflected_walk_is_that_of_a_simulation_and_grows_by_its_limit() -> None:
    generator, x, found = np.random.default_rng(0), np.zeros(400_000), []
    for _ in range(6):
        x = np.maximum(x + generator.standard_normal(len(x)), 0)
        found.append(x.var())
    assert reflected_walk(6) == pytest.approx(found, rel=0.01)
    far = reflected_walk(300)
    assert far[-1] - far[-2] == pytest.approx(1 - 2 / np.pi, rel=0.02)


def table_of(stages: list[list[float]]) -> pd.DataFrame:
    rows = [(stage, value) for stage, values in enumerate(stages, 1) for value in values]
    run = pd.DataFrame(rows, columns=["stage", "variance"]).assign(network="v2", norm="batch", seed=0)
    return run.assign(block=range(1, len(run) + 1))


def test_a_line_and_an_exponential_are_told_apart() -> None:
    line = fits(table_of([[1.0, 3.0, 5.0, 7.0, 9.0], [2.0, 4.0, 6.0, 8.0, 10.0]]), "v2", "batch").loc[0]
    assert (line.slope, line["line"], line.halves) == pytest.approx((2, 1, 1)) and line.exponential < 0.98
    doubling = fits(table_of([[1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 6.0, 12.0, 24.0, 48.0]]), "v2", "batch").loc[0]
    assert (doubling.factor, doubling.exponential, doubling.halves) == pytest.approx((2, 1, 4)) and doubling["line"] < 0.9


@pytest.mark.parametrize(("padding", "column"), [("zeros", "variance"), ("circular", "circular")])
def test_the_two_variances_are_those_of_networks_built_with_either_padding(padding: str, column: str) -> None:
    c = config("v2", "batch")
    images, _ = images_for(c, 0)
    net = ResNet([c.blocks] * 3, c.width, in_channels=1, norm="batch", padding_mode=padding, seed=0)
    signal = net.blocks[:2](net.stem(images.x_train[: c.batch])).detach()
    expected = float(signal.transpose(0, 1).flatten(1).var(1, correction=0).mean())
    assert forward.trial_function(c, 0)[column][1] == pytest.approx(expected, rel=1e-4)


def test_a_branch_of_batch_norm_adds_the_variance_of_half_a_gaussian() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 64, 4, 4)
    block = ResNet([1], 64, version=2, norm="batch", padding_mode="circular").blocks.get_submodule("0")
    branch = block.get_submodule("branch")(block.get_submodule("before")(x)).detach()
    assert float(branch.transpose(0, 1).flatten(1).var(1).mean()) == pytest.approx(HALF_GAUSSIAN, rel=0.05)
