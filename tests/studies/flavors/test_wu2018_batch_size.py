"""Statistics over so many images, and errors under a choice of statistics, against independent computation."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from normlib.lab import Config
from normlib.layers import BatchNorm
from normlib.studies.common.arms import images_for
from normlib.studies.flavors.convnets import convnet, fit
from normlib.studies.flavors.rule_of_thumb import ahead
from normlib.studies.flavors.wu2018_batch_size import BASE, batch_size, read
from normlib.studies.flavors.wu2018_damage import BATCH, TESTS, errors_by_statistics, over

C = Config({"data": "digits", "train": 1_152, "test": 128, "depth": 4, "width": 8})


def test_statistics_over_so_many_images_are_those_of_each_part_by_itself() -> None:
    tune, _ = images_for(C, 0)
    net = convnet(C, tune, "batch", 0)
    x = tune.x_train[:8]
    apart = torch.cat([net.train()(part) for part in x.split(2)])  # of two images, each part is a batch
    before = net.blocks[0].norm.running_mean.clone()
    assert torch.allclose(over(net, 2).train()(x), apart, atol=1e-5)
    assert torch.equal(net.blocks[0].norm.running_mean, before) and net.blocks[0].norm.ghost is None, "the network is left alone"


def test_errors_are_those_of_the_statistics_that_are_named() -> None:
    tune, images = images_for(C, 0)
    net = convnet(C, tune, "batch:ghost=4", 0)
    fit(net, tune, epochs=1, rate=0.1, seed=0, batch=BATCH)
    found = errors_by_statistics(net, 4, tune, images)
    assert list(found) == TESTS

    def error(outputs: torch.Tensor) -> float:
        return 100 * float((outputs.argmax(1) != images.y_test).double().mean())

    with torch.no_grad():
        assert found["running"] == pytest.approx(error(net.eval()(images.x_test)))
        one_by_one = torch.cat([over(net, 1).train()(image[None]) for image in images.x_test])
    assert found["1"] == pytest.approx(error(one_by_one))
    assert len({round(value, 3) for value in found.values()}) > 3, "the statistics matter in the test"


def test_an_average_of_small_statistics_leaves_the_scatter_of_means_out() -> None:
    """What `average` and `pooled` differ in: the variance of the means, which the first layer shows exactly."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 5, 5) + torch.randn(64, 3, 1, 1)
    layer = BatchNorm(3, momentum=None, ghost=1)
    layer.train()(x)
    within = x.var((2, 3), correction=1).mean(0)
    assert torch.allclose(layer.running_var, within, rtol=1e-4)
    assert (x.var((0, 2, 3)) > 1.5 * within).all()
    assert torch.allclose(layer.running_mean, x.mean((0, 2, 3)), atol=1e-5)


def test_updates_and_rates_follow_the_images_per_worker() -> None:
    settings = batch_size.configurations("laptop")
    found = [read(c["run"]) for c in settings]
    assert len(found) == len(set(found)) == 14
    assert all(rate == BASE[norm] for norm, images, rate in found if images < 32)
    assert {BASE[norm] for norm in BASE} <= {rate for _, images, rate in found if images == 32}


def test_ahead_is_the_lead_over_the_better_rival() -> None:
    columns = pd.MultiIndex.from_product([[5], ["group", "layer", "batch"]])
    scores = pd.DataFrame([[10.0, 12.0, 9.0], [10.0, 7.0, 9.0]], columns=columns)
    assert ahead(scores, 5, "layer").tolist() == [-3.0, 2.0]
