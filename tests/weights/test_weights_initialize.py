"""The start from data: moments of each layer, what is left alone, and what the errors say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normlib.weights import WeightError, data_dependent_init, parametrize_weight


def batch(*shape: int, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_normed(model: nn.Module, spec: str = "weight") -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for layer in model.double().modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            with torch.no_grad():
                layer.weight.normal_(0, 0.05, generator=generator)
            parametrize_weight(layer, spec)
    return model


def mlp(depth: int = 12) -> nn.Module:
    return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def pre_activations(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    seen = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, y: seen.append((layer, y.detach())))
        for layer in model.modules()
        if hasattr(layer, "parametrizations")
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("spec", ["weight", "centered_weight"])
@pytest.mark.parametrize(("make", "shape"), [(mlp, (40, 16)), (conv_net, (20, 2, 6, 6))], ids=["mlp", "conv"])
def test_every_layer_starts_with_mean_0_and_variance_1(make: object, shape: tuple[int, ...], spec: str) -> None:
    x, model = batch(*shape), make()  # type: ignore[operator]
    model(x.float())  # lazy layers learn their sizes
    model = weight_normed(model, spec)
    assert data_dependent_init(model, x) is model
    seen = pre_activations(model, x)
    assert len(seen) == sum(hasattr(layer, "parametrizations") for layer in model.modules()) > 3
    for layer, y in seen:
        values = y.movedim(1, 0).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values), dtype=y.dtype), rtol=0, atol=1e-10)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values), dtype=y.dtype), rtol=1e-10, atol=0)
        assert layer.bias.requires_grad and layer.parametrizations.weight.original0.requires_grad


def test_lengths_and_biases_are_those_of_the_paper() -> None:
    layer, x = weight_normed(nn.Linear(4, 3)), batch(50, 4)
    v = layer.parametrizations.weight.original1.detach().clone()
    t = x @ (v / v.norm(dim=1, keepdim=True)).T
    data_dependent_init(layer, x)
    torch.testing.assert_close(layer.parametrizations.weight.original0.flatten(), 1 / t.std(0, correction=0))
    torch.testing.assert_close(layer.bias, -t.mean(0) / t.std(0, correction=0))
    assert torch.equal(layer.parametrizations.weight.original1, v)


def test_without_it_the_signal_of_a_deep_network_is_lost() -> None:
    model, x = weight_normed(mlp()), batch(40, 16)
    assert float(pre_activations(model, x)[-1][1].std(0).max()) < 1e-6


def test_the_start_does_not_depend_on_where_it_starts_from() -> None:
    one, x = weight_normed(mlp(3)), batch(40, 16)
    other = copy.deepcopy(one)
    for layer in other:
        if isinstance(layer, nn.Linear):
            layer.parametrizations.weight.original0.data.mul_(-7)
            layer.bias.data.add_(2)
    torch.testing.assert_close(dict(data_dependent_init(one, x).state_dict()), dict(data_dependent_init(other, x).state_dict()))


def test_one_value_per_layer_for_tokens_and_unbatched_maps() -> None:
    tokens, x = weight_normed(nn.Linear(4, 3)), batch(5, 7, 4)
    y = data_dependent_init(tokens, x)(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(3, dtype=y.dtype))
    image, x = weight_normed(nn.Conv2d(2, 3, 2)), batch(2, 6, 6)
    y = data_dependent_init(image, x)(x)
    torch.testing.assert_close(y.std((1, 2), correction=0), torch.ones(3, dtype=y.dtype))


class Replacing(nn.Module):
    """Counts its calls by a new buffer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x


def test_the_rest_is_left_alone() -> None:
    model = weight_normed(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), Replacing(), nn.Linear(8, 2)))
    plain = nn.Linear(2, 2, dtype=torch.float64)
    model.append(plain)
    counter = model[4].count
    buffers = copy.deepcopy(dict(model.named_buffers()))
    untouched = copy.deepcopy(dict(plain.named_parameters()))
    torch.manual_seed(5)
    random = torch.get_rng_state()
    data_dependent_init(model, batch(30, 4))
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    torch.testing.assert_close(dict(plain.named_parameters()), untouched, rtol=0, atol=0)
    assert model[4].count is counter and model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_other_hooks_see_what_the_layer_then_computes() -> None:
    layer, x, seen = weight_normed(nn.Linear(4, 3)), batch(30, 4), []
    layer.register_forward_hook(lambda layer, args, y: seen.append(y))
    data_dependent_init(layer, x)
    torch.testing.assert_close(seen, [layer.forward(x)])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x)))


class Unused(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(input=x)


def dead() -> nn.Module:
    model = weight_normed(mlp(1))
    model.insert(1, nn.Threshold(100.0, 0.5))  # puts out 0.5, whatever comes in
    return model


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double(), (8, 4), "no linear layer or convolution with weight norm"),
        (weight_normed(nn.Linear(4, 4), "scaled_weight"), (8, 4), "no linear layer or convolution with weight norm"),
        (weight_normed(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, bias=False))), (8, 4), "'1' has no bias.*bias=True"),
        (weight_normed(Twice()), (8, 4), "'first' is used twice"),
        (weight_normed(Unused()), (8, 4), "does not call second"),
        (dead(), (40, 16), "3 of 3 outputs of layer '3' do not vary.*more than one sample"),
        (weight_normed(mlp(2)), (1, 16), "16 of 16 outputs of layer '0' do not vary"),
    ],
    ids=["none", "standardized", "no bias", "twice", "unused", "dead", "one sample"],
)
def test_what_cannot_be_set_is_told_and_nothing_changes(model: nn.Module, shape: tuple[int, ...], says: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightError, match=says):
        data_dependent_init(model, batch(*shape))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_half_precision_is_set_as_well_as_it_holds() -> None:
    layer, x = weight_normed(nn.Linear(4, 3)).bfloat16(), batch(200, 4).bfloat16()
    y = data_dependent_init(layer, x)(x).detach().float()
    assert layer.bias.dtype == torch.bfloat16
    assert float(y.mean(0).abs().max()) < 0.05
    assert float((y.std(0, correction=0) - 1).abs().max()) < 0.05


def test_a_large_mean_in_half_precision_is_not_taken_for_a_still_output() -> None:
    layer, x = weight_normed(nn.Linear(4, 1)), 40 + batch(200, 4)
    layer.parametrizations.weight.original1.data.fill_(1.0)
    t = x.sum(1) / 2  # mean 86, standard deviation 2; bfloat16 steps by 0.5 there
    data_dependent_init(layer.bfloat16(), x.bfloat16())
    assert layer.parametrizations.weight.original0.item() == pytest.approx(1 / t.std().item(), rel=0.1)
