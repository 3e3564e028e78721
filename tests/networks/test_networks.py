import pytest
import torch
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import NORMS
from normlib.networks import MLP, NETWORKS, PlainConvNet, ResNet, make_network
from normlib.weights import WEIGHT_NORMS

BUILDERS = {
    "mlp": lambda **kw: make_network("mlp", sizes=[64, 64, 64, 5], **kw),
    "plain": lambda **kw: make_network("plain", depth=6, width=32, in_channels=1, classes=5, image_size=8, **kw),
    "resnet": lambda **kw: make_network("resnet", stages=[1, 1], width=32, in_channels=1, classes=5, **kw),
}
IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def weight_layers(network):
    return [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def drawn(layer):
    """The weight as it was drawn: a weight norm keeps it, or what stands for its direction, as its last original."""
    if not hasattr(layer, "parametrizations"):
        return layer.weight
    originals = dict(layer.parametrizations.weight.named_parameters())
    return originals.get("original1", originals.get("original"))


def fits(network, norm):
    """These have nothing to average over in a vector."""
    return not (network == "mlp" and norm in ("instance", "switch"))


ARMS = [(network, norm) for network in BUILDERS for norm in [*NORMS, *WEIGHT_NORMS] if fits(network, norm)]


def test_every_network_is_tested():
    assert set(NETWORKS) == set(BUILDERS)


@pytest.mark.parametrize(("network", "norm"), ARMS)
def test_arms_differ_in_the_norm_alone(network, norm):
    plain, normed = BUILDERS[network](norm="none", seed=7), BUILDERS[network](norm=norm, seed=7)
    ours, theirs = weight_layers(plain), weight_layers(normed)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.weight, drawn(b))
        assert b.bias is None or not b.bias.any()
    common = {id(p) for layer in theirs for p in (drawn(layer), layer.bias)}
    own = [name for name, p in normed.named_parameters() if id(p) not in common]
    assert all("norm." in name or "parametrizations." in name for name in own), "what is left belongs to the norm"
    assert len(list(normed.parameters())) - len(own) == len(list(plain.parameters()))


@pytest.mark.parametrize(("network", "norm"), ARMS)
def test_every_arm_runs_and_the_gradient_reaches_every_weight_layer(network, norm):
    net = BUILDERS[network](norm=norm, seed=1)
    output = net(IMAGES)
    assert output.shape == (32, 5)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(drawn(layer).grad.any() for layer in weight_layers(net))


@pytest.mark.parametrize("network", BUILDERS)
def test_seed_decides_and_the_global_generator_is_left_alone(network):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = BUILDERS[network](seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = BUILDERS[network](seed=3), BUILDERS[network](seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_mlp_computes_what_it_says():
    net = MLP([3, 4, 2], activation="tanh", seed=0).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (first,) = net.blocks
    by_hand = torch.tanh(x @ first.layer.weight.T + first.layer.bias) @ net.head.weight.T + net.head.bias
    assert torch.allclose(net(x), by_hand, rtol=0, atol=1e-14)


def test_mlp_norm_stands_between_layer_and_activation():
    net = MLP([3, 8, 2], norm="batch", activation="relu")
    assert [name for name, _ in net.blocks[0].named_children()] == ["layer", "norm", "activation"]
    assert isinstance(net.blocks[0].norm, nn.modules.batchnorm._BatchNorm)


def test_two_sizes_make_a_linear_model_and_bias_can_be_left_out():
    net = MLP([3, 2], bias=False)
    assert [name for name, _ in net.named_parameters()] == ["head.weight"]


@pytest.mark.parametrize("depth", [4, 5, 8, 14, 30])
def test_plain_depth_counts_weight_layers_and_poolings_are_evenly_spaced(depth):
    net = PlainConvNet(depth, width=2, in_channels=3, classes=4)
    layers = weight_layers(net)
    assert len(layers) == depth
    assert layers[0].weight.shape == (2, 3, 3, 3)
    first, second = (position + 1 for position in net.pooled)
    parts = [first, second - first, depth - 1 - second]
    assert min(parts) >= 1
    assert max(parts) - min(parts) <= 1


def test_plain_he_keeps_the_signal_and_the_xavier_arm_halves_its_variance_a_layer():
    depth, x = 14, torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    outputs = [PlainConvNet(depth, 16, 1, 5, init=init, seed=0)(x) for init in ("he", "xavier_fan_in")]
    # ReLU nets are homogeneous and the two arms share their draws: the ratio is exact
    assert torch.allclose(outputs[1], outputs[0] * 2 ** (-depth / 2), rtol=1e-4, atol=0)


def test_errors_say_what_fits():
    with pytest.raises(NormlibError, match="at least 4"):
        PlainConvNet(3, 4, 1, 10)
    with pytest.raises(NormlibError, match="4 pixels"):
        PlainConvNet(8, 4, 1, 10, image_size=3)
    with pytest.raises(NormlibError, match="inputs, hidden"):
        MLP([3])
    with pytest.raises(UnknownNameError, match="did you mean 'batch'"):
        MLP([3, 4, 2], norm="bacth")


def test_weights_are_not_the_numbers_that_a_trial_draws_with_the_same_seed():
    net = MLP([50, 50, 2], init="normal:std=1", seed=3)
    inputs = torch.randn(50, 50, generator=torch.Generator().manual_seed(3))
    weight = net.blocks[0].layer.weight.detach()
    assert not torch.allclose(weight, inputs)
    assert abs(float((weight * inputs).mean())) < 0.1


KNOWN = [  # a ResNet-18 and a ResNet-50 for ImageNet, a ResNet-56 for CIFAR with projections
    ({"stages": [2, 2, 2, 2], "stem": "imagenet", "classes": 1000}, 11_689_512),
    ({"stages": [3, 4, 6, 3], "stem": "imagenet", "classes": 1000, "unit": "bottleneck"}, 25_557_032),
    ({"stages": [9, 9, 9], "width": 16}, 855_770),
]


@pytest.mark.parametrize(("arguments", "parameters"), KNOWN)
def test_resnets_of_version_1_have_the_parameters_that_are_known(arguments, parameters):
    assert sum(p.numel() for p in ResNet(version=1, **arguments).parameters()) == parameters


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_resnet_version_2_is_the_sum_of_its_branches_on_a_clean_shortcut(unit):
    net = ResNet([2], width=8, unit=unit, in_channels=8, norm="batch", stem="cifar").double()
    x = torch.randn(3, 32 if unit == "bottleneck" else 8, 6, 6, dtype=torch.float64)
    block = net.blocks[1]
    assert block.shortcut is None
    torch.testing.assert_close(block(x), x + block.branch(block.before(x)))
    assert [name for name, _ in block.before.named_children()] == ["norm", "activation"]


def test_resnet_orders_and_paddings():
    swapped = ResNet([1], width=8, order="activation-norm")
    assert [name for name, _ in swapped.final.named_children()] == ["activation", "norm"]
    assert {m.padding_mode for m in ResNet([1, 1], width=8, padding_mode="circular").modules() if isinstance(m, nn.Conv2d)} == {
        "circular"
    }


def test_resnet_projection_hears_the_activated_input_in_version_2_and_the_raw_one_in_version_1():
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    second, first = (ResNet([1, 1], width=8, version=v).double().blocks[1] for v in (2, 1))
    torch.testing.assert_close(second(x), second.shortcut(second.before(x)) + second.branch(second.before(x)))
    torch.testing.assert_close(first(x), (first.shortcut(x) + first.branch(x)).relu())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stages": []}, "blocks of each stage"),
        ({"stages": [1], "version": 3}, "version=3; expected 1"),
        ({"stages": [1], "unit": "botleneck"}, "did you mean 'bottleneck'"),
        ({"stages": [1], "stem": "imagnet"}, "did you mean 'imagenet'"),
        ({"stages": [1], "order": "norm"}, "order of ResNet"),
    ],
)
def test_resnet_errors_say_what_fits(arguments, says):
    with pytest.raises(NormlibError, match=says):
        ResNet(**arguments)
