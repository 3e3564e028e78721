"""The gradient through standardized weights by hand, against automatic differentiation and against cases made up for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normlib.networks import PlainConvNet
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.row_gradients import identities, removed, shares, standardized_backward


def test_the_backward_pass_by_hand() -> None:
    weight, upstream = (3 + 2 * normal(0, 4, 3, 3, 3)).requires_grad_(), normal(1, 4, 3, 3, 3)
    rows = weight.flatten(1)
    standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
    (expected,) = torch.autograd.grad(standard.view_as(weight), weight, upstream)
    assert gap(standardized_backward(weight.detach(), upstream), expected) < 1e-12


@pytest.mark.parametrize(("gradient", "expected"), [("constant", (1, 0)), ("row", (0, 1)), ("across", (0, 0))])
def test_what_is_removed_of_a_gradient_in_one_direction(gradient: str, expected: tuple[float, float]) -> None:
    row = torch.tensor([[1.0, -1.0, 1.0, -1.0]]).double()
    across = torch.tensor([[1.0, 1.0, -1.0, -1.0]]).double()
    made: dict[str, Tensor] = {"constant": torch.ones(1, 4).double(), "row": 2 * row, "across": across}
    assert removed(5 + 3 * row, made[gradient]) == pytest.approx(expected, abs=1e-12)


def test_noise_loses_one_part_in_fan_in_to_each() -> None:
    mean, length = removed(normal(0, 4000, 25), normal(1, 4000, 25))
    assert mean == pytest.approx(1 / 25, rel=0.05) and length == pytest.approx(1 / 25, rel=0.05)


def test_a_network_is_left_as_it_was() -> None:
    images, labels = normal(0, 8, 1, 8, 8).float(), torch.arange(8)
    for spec in ("group:size=4", "standardized_weight + group:size=4", "standardized_weight + batch:ghost=2"):
        network = PlainConvNet(4, 8, 1, 8, spec, image_size=8)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        mean, length = shares(network, images, labels)
        assert len(mean) == len(length) == 3 and all(0 < share < 1 for share in (*mean, *length))
        if spec.startswith("standardized"):
            assert max(identities(network, images, labels, seed=0).values()) < 1e-6
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert network(images).shape == (8, 8)
