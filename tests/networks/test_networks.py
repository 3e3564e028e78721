import re

import pytest
import torch
from every_network import CASES, TINY, build, common, count, inputs, weight_layers
from torch import nn

from normlib.errors import NormlibError, UnknownNameError
from normlib.networks import MLP, NETWORKS, PlainConvNet

OWN = re.compile(r"norm\w*\.|parametrizations\.|(before|inside|after|final)\.")  # where the parameters of norms are kept


def test_every_network_is_tested():
    assert set(NETWORKS) == set(TINY)


@pytest.mark.parametrize(("network", "norm"), CASES)
def test_arms_differ_in_the_norm_alone(network, norm):
    plain, normed = build(network, norm="none", seed=7), build(network, norm=norm, seed=7)
    ours, theirs = list(common(plain)), list(common(normed))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert {id(p) for p in plain.parameters()} == {id(p) for p in ours}
    of_norm = {name: p for name, p in normed.named_parameters() if all(p is not other for other in theirs)}
    assert all(OWN.search(name) for name in of_norm), "what is left belongs to the norm"
    assert count(normed.parameters()) == count(plain.parameters()) + count(of_norm.values())


@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "weight", "scaled_weight"])
def test_the_parameters_of_the_norm_are_those_of_its_sites(network, norm):
    if norm not in TINY[network].norms:
        pytest.skip("there is no such cell")
    net = build(network, norm=norm)
    if norm in ("weight", "scaled_weight"):  # one gain per output
        expected = sum(drawn_rows(layer) for layer in weight_layers(net))
    else:  # scale and shift per channel; in recurrent cells the shift of the gates is the bias that they have
        norms = [m for m in net.modules() if getattr(m, "weight", None) is not None and "Norm" in type(m).__name__]
        expected = sum(m.weight.numel() * (1 if m.bias is None else 2) for m in norms)
    assert expected > 0
    assert count(net.parameters()) - count(build(network, norm="none").parameters()) == expected


def drawn_rows(layer):
    return len(layer.weight) if hasattr(layer, "parametrizations") else 0


@pytest.mark.parametrize(("network", "norm"), CASES)
def test_every_arm_runs_and_the_gradient_reaches_every_parameter(network, norm):
    net = build(network, norm=norm, seed=1)
    output = net(inputs(network))
    assert output.shape == (32, TINY[network].output)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad.any() for p in common(net) if p.ndim > 1)


@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_seed_decides_and_the_global_generator_is_left_alone(network, norm):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build(network, norm=norm, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = build(network, norm=norm, seed=3), build(network, norm=norm, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "scaled_weight"])
def test_state_is_saved_and_loaded_and_may_be_passed_from_outside(network, norm):
    if norm not in TINY[network].norms:
        pytest.skip("there is no such cell")
    net, other, x = build(network, norm=norm, seed=1), build(network, norm=norm, seed=2), inputs(network)
    net(x)  # moves running statistics
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = net.eval()(x)
    assert not torch.equal(other.eval()(x), expected)
    torch.testing.assert_close(torch.func.functional_call(other, state, (x,)), expected)
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("network", TINY)
def test_errors_say_what_fits_and_unknown_norms_what_was_meant(network):
    with pytest.raises(NormlibError, match=TINY[network].says):
        build(network, **TINY[network].wrong)
    with pytest.raises(UnknownNameError, match="did you mean 'batch'"):
        build(network, norm="bacth")


PINNED = {  # committed records were measured with these weights: the sum of the absolute outputs for the input below
    "mlp": {"none": 84.00348, "batch": 110.27869},
    "plain": {"none": 177.85419, "batch": 121.17822},
    "resnet": {"none": 178.16196, "batch": 92.04891, "scaled_weight": 269.9491},
}


@pytest.mark.parametrize(("network", "norm"), [(network, norm) for network, norms in PINNED.items() for norm in norms])
def test_defaults_are_those_that_records_were_measured_with(network, norm):
    output = build(network, norm=norm, seed=3)(inputs(network))
    assert float(output.detach().abs().sum()) == pytest.approx(PINNED[network][norm], rel=1e-4)


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
    # ReLU nets are homogeneous and the two arms share their draws: the ratio is exact, up to rounding
    torch.testing.assert_close(outputs[1], outputs[0] * 2 ** (-depth / 2), rtol=1e-4, atol=1e-6)


def test_plain_wants_images_that_two_poolings_leave_something_of():
    with pytest.raises(NormlibError, match="4 pixels"):
        PlainConvNet(8, 4, 1, 10, image_size=3)


def test_weights_are_not_the_numbers_that_a_trial_draws_with_the_same_seed():
    net = MLP([50, 50, 2], init="normal:std=1", seed=3)
    inputs = torch.randn(50, 50, generator=torch.Generator().manual_seed(3))
    weight = net.blocks[0].layer.weight.detach()
    assert not torch.allclose(weight, inputs)
    assert abs(float((weight * inputs).mean())) < 0.1


def test_plain_with_circular_padding_does_not_know_where_an_image_begins():
    net = PlainConvNet(6, 8, 1, 5, image_size=8, padding_mode="circular")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = x.roll((4, 4), (2, 3))  # by what two poolings keep whole
    torch.testing.assert_close(net(moved), net(x))
    zeros = PlainConvNet(6, 8, 1, 5, image_size=8)
    assert not torch.allclose(zeros(moved), zeros(x), rtol=1e-3)
