"""The measures on the line and the plane: known jumps and kinks, and the slope against differences of the loss."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from normlib.lab import Config
from normlib.networks import PlainConvNet
from normlib.probes.parameters import flat, loss_and_gradient
from normlib.studies.smoothness.santurkar2018_surface import CUTS, jumps, line, look
from normlib.training.probing import Step

PLACES = np.linspace(0, 1, CUTS[-1] + 1)


def task():
    torch.manual_seed(0)
    net = PlainConvNet(depth=4, width=4, in_channels=1, classes=3, norm="batch", image_size=6).double().train()
    return net, torch.randn(16, 1, 6, 6, dtype=torch.float64), torch.arange(16) % 3


def test_a_jump_stays_where_a_slope_shrinks() -> None:
    smooth, step = 3 * PLACES, np.where(PLACES > 0.4, 1.0, 0.0)
    assert np.isclose(jumps(smooth, CUTS[-1]) / jumps(smooth, CUTS[0]), CUTS[0] / CUTS[-1])
    assert jumps(step, CUTS[-1]) == jumps(step, CUTS[0]) == 1


def test_the_slope_is_the_derivative_of_the_loss() -> None:
    net, x, y = task()
    _, gradient = loss_and_gradient(net, cross_entropy, x, y, training=True)
    losses, slopes = line(net, x, y, gradient, 1e-4)
    spacing = 4e-4 / CUTS[-1] * float(flat(gradient).norm())
    assert np.isclose(slopes[0], -float(flat(gradient).norm()))
    assert np.allclose(np.diff(losses) / spacing, (slopes[1:] + slopes[:-1]) / 2, rtol=1e-3)


def test_the_middle_of_the_plane_is_here_and_one_step_to_the_right_is_after_the_update() -> None:
    net, x, y = task()
    c = Config({"rate": 0.1, "map": [0], "grid": 9})
    found = look(c, Step(0, model=net, x=x, y=y, rate=0.1), net)
    plane = {(a, b): v for what, a, b, v in zip(*found.values(), strict=True) if what == "plane"}
    loss, gradient = loss_and_gradient(net, cross_entropy, x, y, training=True)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter -= 0.1 * gradient[name]
    assert np.isclose(plane[0, 0], loss) and np.isclose(plane[1, 0], cross_entropy(net(x), y).item())
    assert len(plane) == 81
