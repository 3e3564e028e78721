"""The sizes of the terms, put together, against the gradient that a layer of torch passes on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from normlib.networks import PlainConvNet
from normlib.studies.common.statements import normal
from normlib.studies.smoothness.santurkar2018_gain import by_channel, sizes, terms
from normlib.training import Step


def test_factor_and_shares_make_up_what_is_passed_on() -> None:
    y, above, gamma = normal(0, 4, 1, 3, 3), normal(1, 4, 1, 3, 3), torch.tensor([1.7]).double()
    y.requires_grad_()
    below = torch.autograd.grad((F.batch_norm(y, None, None, gamma, None, True, eps=1e-14) * above).sum(), y)[0]
    found = sizes(by_channel(y), by_channel(above), gamma, 0.0)
    said = found["factor"] * (1 - found["mean_share"] - found["slope_share"])
    assert abs(said - float(below.square().sum() / above.square().sum())) < 1e-10


def test_shares_of_gradients_along_the_two_directions() -> None:
    y = torch.tensor([[1.0, -1.0, 1.0, -1.0]]).double()
    assert sizes(y, torch.full_like(y, 3.0), None, 0.0) == {"mean_share": 1.0, "slope_share": 0.0, "factor": 1.0}
    assert sizes(2 * y, -5 * y, None, 0.0) == {"mean_share": 0.0, "slope_share": 1.0, "factor": 0.25}
    dead = sizes(y, torch.zeros_like(y), None, 0.0)
    assert all(value != value for value in dead.values())


def test_every_convolution_is_measured_and_the_network_left_as_it_is() -> None:
    for norm in ("none", "batch"):
        net = PlainConvNet(5, 3, 1, 10, norm, "he", 0, 8).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
        rows = terms(Step(0, model=net, x=x, y=y), net)
        assert [row["layer"] for row in rows] == [0, 1, 2, 3]
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert abs(rows[0]["loss"] - nn.functional.cross_entropy(net(x), y).item()) < 1e-6
        assert (rows[0]["passed"] == 1) == (norm == "none")
