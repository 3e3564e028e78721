"""Renormalization of groups against one group after another, and groups of images that are what they are said to be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from normlib.layers import BatchNorm, BatchRenorm, batch_renorm
from normlib.studies.common.statements import gap, normal
from normlib.studies.flavors.ghost_renorm import GhostRenorm
from normlib.studies.flavors.ioffe2017 import MIXED, OfPositions, clustered, set_limits


def ghost_layer(images: int, **limits: float) -> GhostRenorm:
    layer = GhostRenorm(3, dtype=torch.float64, **limits)  # type: ignore[arg-type]
    layer.images = images
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
        layer.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return layer


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.05, 0.02), (1.0, 0.0)])
def test_groups_are_renormalized_each_by_itself(limits: tuple[float, float]) -> None:
    layer, x = ghost_layer(4, r_max=limits[0], d_max=limits[1]), (normal(0, 8, 3, 5, 5) + normal(1, 8, 1, 1, 1)).requires_grad_()
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    expected = torch.cat([batch_renorm(part, mean, var, layer.weight, layer.bias, *limits) for part in x.split(4)])
    found, g = layer(x), normal(2, 8, 3, 5, 5)
    assert gap(found.detach(), expected.detach()) < 1e-12
    assert gap(*(torch.autograd.grad(y, x, g)[0] for y in (found, expected))) < 1e-10

    ghosts = BatchNorm(3, dtype=torch.float64, ghost=4)
    ghosts.running_mean.copy_(mean)
    ghosts(x)
    assert gap(layer.running_mean, ghosts.running_mean) < 1e-12 and gap(layer.running_var, ghosts.running_var) < 1e-12


def test_one_group_is_the_layer_of_the_library() -> None:
    x, layer, plain = normal(0, 8, 3, 5, 5), ghost_layer(8), BatchRenorm(3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert gap(layer(x).detach(), plain(x).detach()) < 1e-12
    assert all(torch.allclose(value, plain.state_dict()[name]) for name, value in layer.state_dict().items())


def test_without_limits_training_is_evaluation() -> None:
    layer, x = ghost_layer(4), 7 + 20 * normal(0, 8, 3, 5, 5)
    expected = layer.eval()(x).detach()
    assert gap(layer.train()(x).detach(), expected) > 0.1, "limits act here"
    set_limits(nn.Sequential(layer), math.inf, math.inf)
    layer.load_state_dict(ghost_layer(4).state_dict())
    assert gap(layer(x).detach(), expected) < 1e-12


@pytest.mark.parametrize("classes", [MIXED, 1, 2])
def test_groups_hold_so_many_classes(classes: int) -> None:
    labels = torch.arange(10).repeat(32)
    groups = clustered(labels, 8, classes, seed=0)
    found = [len(labels[group].unique()) for group in groups]
    assert (min(found) > 2) if classes == MIXED else (max(found) == classes)
    assert len(groups) == 40 and len(groups.unique()) == 320, "every image once"
    assert not torch.equal(groups, clustered(labels, 8, classes, seed=1))


def test_positions_become_images() -> None:
    images = normal(0, 6, 1, 2, 2)
    found = OfPositions(nn.Flatten(), images)(torch.tensor([[5, 0], [3, 3]]))
    assert torch.equal(found, images[[5, 0, 3, 3]].flatten(1))
