import pytest
import torch
from torch import nn

from normlib.layers import BatchNorm
from normlib.probes import preserved


class Counter(nn.Module):
    """Replaces its buffer instead of writing into it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count = self.count + 1
        return x


def test_everything_is_given_back_after_an_error():
    net = nn.Sequential(nn.Linear(2, 3), BatchNorm(3), nn.Dropout(), Counter())
    net[2].eval()
    net(torch.ones(4, 2)).sum().backward()
    gradients = [p.grad for p in net.parameters()]
    values = [g.clone() for g in gradients]
    buffers = {name: (b, b.clone()) for name, b in net.named_buffers()}
    random = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), preserved(net, training=True):
        assert all(m.training for m in net.modules())
        net(torch.randn(4, 2)).square().sum().backward()
        net.zero_grad()
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == [True, True, True, False, True]
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(g, v) for g, v in zip(gradients, values, strict=True))
    for name, buffer in net.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert torch.equal(torch.get_rng_state(), random)


def test_without_a_mode_each_module_keeps_its_own():
    net = nn.Sequential(nn.Dropout(), nn.Dropout())
    net[0].eval()
    with preserved(net):
        assert [m.training for m in net] == [False, True]
