from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.layers import BatchNorm
from normlib.networks import MLP
from normlib.surgery import fold_batch_norm, normalize


def trained(net: nn.Module, x: Tensor) -> nn.Module:
    """Give every norm an own affine map and running statistics."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    net.train()(x)
    return net.eval()


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 5), BatchNorm(5), nn.ReLU()), (4, 3)),
    "torch": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()), (4, 3, 6, 6)),
    "ours": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), BatchNorm(5), nn.Conv1d(5, 2, 1), BatchNorm(2)), (4, 3, 6)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2), BatchNorm(5)), (4, 3, 4, 4)),
    "grouped": (lambda: nn.Sequential(nn.Conv3d(4, 8, 2, groups=2), BatchNorm(8)), (3, 4, 3, 3, 3)),
    "mlp": (lambda: MLP([3, 8, 8, 2], norm="batch", activation="relu"), (6, 3)),
    "relative": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), normalize(nn.Conv2d(5, 4, 1), "noisy")), (4, 3, 6, 6)),
    "parametrized": (lambda: normalize(nn.Conv2d(3, 6, 3), "weight+batch"), (4, 3, 6, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_folded_computes_the_same_without_the_norm(name: str) -> None:
    make, shape = CASES[name]
    x = torch.randn(shape, dtype=torch.float64)
    net = trained(make().double(), x)
    before = copy.deepcopy(net.state_dict())
    folded = fold_batch_norm(net)
    torch.testing.assert_close(folded(x), net(x))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert type(folded) is type(net) and not folded.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the model itself is left alone"


class Residual(nn.Module):
    """A norm that follows its convolution, one that a sum stands before, and a convolution that two hear."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.after, self.alone, self.pre = BatchNorm(3), BatchNorm(3), BatchNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.heard(x)
        y = self.alone(h) + h
        return self.pre(self.second(x) + y) + self.after(self.first(y))


def test_only_what_directly_follows_a_layer_of_its_own_is_folded() -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    net = trained(Residual().double(), x)
    folded = fold_batch_norm(net)
    torch.testing.assert_close(folded(x), net(x))
    kept = {name for name, m in folded.named_modules() if isinstance(m, BatchNorm)}
    assert kept == {"alone", "pre"}


def test_a_norm_in_two_places_stays() -> None:
    norm = BatchNorm(3)
    net = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 3), norm)
    with pytest.raises(NormlibError, match="no batch norm directly after"):
        fold_batch_norm(net)


class Branching(nn.Module):
    """Its way depends on the data, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "Sequential has no batch norm directly after"),
        (nn.Sequential(nn.Linear(2, 2), BatchNorm(2, track_running_stats=False)), "no batch norm directly after"),
        (Branching(), "Branching cannot be traced.*one by one"),
    ],
)
def test_what_cannot_be_folded_says_so(model: nn.Module, says: str) -> None:
    with pytest.raises(NormlibError, match=says):
        fold_batch_norm(model)
