from __future__ import annotations

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.layers import BatchNorm
from normlib.surgery import reestimate_statistics


def batches(count: int = 5, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(size, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), BatchNorm(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4), nn.BatchNorm1d(4)).double()


def test_statistics_are_the_averages_of_algorithm_2() -> None:
    net, data = network(), batches()
    net.train()(100 * data[0])  # what stood in the buffers before does not count
    reestimate_statistics(net, data)
    hidden = [net[0](x) for x in data]
    torch.testing.assert_close(net[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    m = len(data[0])
    variance = torch.stack([h.var(0, correction=0) for h in hidden]).mean(0) * m / (m - 1)
    torch.testing.assert_close(net[1].running_var, variance)


def test_a_later_layer_sees_what_the_batch_statistics_give_and_no_dropout() -> None:
    net, data = network(), batches()
    reestimate_statistics(net, data)
    first = BatchNorm(6, track_running_stats=False).double()
    last = [net[4](first(net[0](x)).relu()) for x in data]
    torch.testing.assert_close(net[5].running_mean, torch.stack([h.mean(0) for h in last]).mean(0))


def test_modes_momentum_and_parameters_stay() -> None:
    net = network().eval()
    net[3].train()
    modes = [m.training for m in net.modules()]
    weights = [p.clone() for p in net.parameters()]
    reestimate_statistics(net, ((x, "target") for x in batches()))
    assert [m.training for m in net.modules()] == modes
    assert net[1].momentum == net[5].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert int(net[1].num_batches_tracked) == 5 and not net[1].running_mean.requires_grad


def test_bad_input_leaves_the_statistics() -> None:
    net = network()
    net.train()(batches()[0])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(NormlibError, match="no batch"):
        reestimate_statistics(net, iter([]))
    with pytest.raises(NormlibError, match="no norm with running statistics"):
        reestimate_statistics(nn.Linear(2, 2), batches())
    with pytest.raises(RuntimeError):
        reestimate_statistics(net, [*batches(2), torch.ones(8, 3, dtype=torch.float64)])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert net[1].momentum == 0.1
