"""The contrast of an image: what its levels are, and where instance norm removes them exactly."""

from __future__ import annotations

import pytest
import torch

from normlib.lab import Config
from normlib.studies.flavors.ulyanov2016 import CIRCULAR, LEVELS, ON_IMAGE, contrast, leveled, logit_change, network_of, prepared


def small(**settings: object) -> Config:
    return Config({**contrast.quick, "task": "class", **settings})


@pytest.mark.parametrize("task", list(LEVELS))
def test_an_image_shows_its_label_in_one_moment_and_in_no_other(task: str) -> None:
    images, labels = leveled(task, torch.rand(200, 1, 6, 6), seed=0)
    level = torch.tensor(LEVELS[task])[labels]
    mean, std = images.mean((1, 2, 3)), images.std((1, 2, 3), correction=0)
    expected = (torch.zeros(200), level) if task == "contrast" else (level, torch.ones(200))
    assert torch.allclose(mean, expected[0], atol=1e-5) and torch.allclose(std, expected[1], atol=1e-5)
    assert labels.bincount().min() > 30


def test_pixels_of_the_class_task_keep_zero() -> None:
    images = prepared(small(norm="none"), 0)[1]
    assert images.x_train.min() == 0 and abs(float(images.x_train.std(correction=0)) - 1) < 1e-4


@pytest.mark.parametrize(
    ("norm", "factor_is_lost", "shift_is_lost"),
    [("instance", True, False), (CIRCULAR, True, True), (ON_IMAGE, True, True), ("batch", False, False), ("layer", True, False)],
)
def test_what_the_logits_do_not_notice(norm: str, factor_is_lost: bool, shift_is_lost: bool) -> None:
    """At the start the biases are zero, so layer norm does not notice a factor either; a learned bias gives it away."""
    c = small(norm=norm)
    images = prepared(c, 0)[0]
    net, x = network_of(c, images, 0), images.x_test[:20]
    assert (logit_change(net, x, 3 * x) < 1e-7) == factor_is_lost
    assert (logit_change(net, x, x + 0.5) < 1e-7) == shift_is_lost
    first = next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
    torch.nn.init.normal_(first.bias)
    assert (logit_change(net, x, 3 * x) < 1e-7) == (factor_is_lost and norm != "layer")
