import copy
import math

import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import MLP
from normlib.probes import gradient_statistics
from normlib.probes.updates import (
    effective_rates,
    parameter_norms,
    radial_gradients,
    snapshot,
    update_cosines,
    update_ratios,
)
from normlib.weights import parametrize_weight

G = torch.Generator().manual_seed(0)
X = torch.randn(20, 4, generator=G, dtype=torch.float64)
Y = torch.arange(20) % 3
CROSS_ENTROPY = nn.functional.cross_entropy
STORED = ["blocks.0.layer.weight", "blocks.0.layer.bias", "blocks.0.norm.weight", "blocks.0.norm.bias", "head.weight", "head.bias"]


def network(norm="batch"):
    return MLP([4, 6, 3], norm=norm, seed=1).double()


def by_name(columns, column):
    return dict(zip(columns["parameter"], columns[column], strict=True))


def normed_layer(spec="weight"):
    layer = nn.Linear(4, 3, dtype=torch.float64)
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return nn.Sequential(parametrize_weight(layer, spec))


def test_one_step_of_gradient_descent_moves_by_rate_times_gradient():
    net = network()
    before = snapshot(net, applied=False)
    CROSS_ENTROPY(net(X), Y).backward()
    norms = parameter_norms(net, applied=False)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    ratios = update_ratios(before, net)
    assert ratios["parameter"] == norms["parameter"] == STORED
    assert ratios["weight_norm"] == pytest.approx([float(value.norm()) for value in before.values()], rel=1e-12)
    assert ratios["weight_norm"] == norms["weight_norm"]
    assert ratios["update_norm"] == pytest.approx([0.1 * norm for norm in norms["gradient_norm"]], rel=1e-9, abs=1e-16)
    found = by_name(ratios, "ratio")
    weight = before["head.weight"]
    assert found["head.weight"] == pytest.approx(0.1 * float(net.head.weight.grad.norm() / weight.norm()), rel=1e-9)
    assert found["head.bias"] == math.inf
    assert update_ratios(before, snapshot(net, applied=False)) == ratios


def test_what_was_zero_and_stays_has_no_ratio():
    net = network("none")
    found = by_name(update_ratios(snapshot(net, applied=False), net), "ratio")
    assert math.isnan(found["head.bias"])
    assert found["head.weight"] == 0


def test_a_snapshot_does_not_move_with_the_model_and_leaves_out_what_is_frozen():
    net = network()
    net.head.requires_grad_(False)
    before = snapshot(net, applied=True)
    net.blocks[0].layer.weight.data.mul_(3)
    assert list(before) == STORED[:4]
    assert by_name(update_ratios(before, net), "ratio")["blocks.0.layer.weight"] == pytest.approx(2, rel=1e-12)


def test_parametrized_weights_as_stored_and_as_applied():
    net = normed_layer()
    g, v = "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"
    stored, applied = snapshot(net, applied=False), snapshot(net, applied=True)
    assert set(stored) == {"0.bias", g, v}
    assert set(applied) == {"0.bias", "0.weight"}
    assert torch.equal(applied["0.weight"], net[0].weight)
    net[0].parametrizations.weight.original1.data.mul_(5)  # another length of the direction changes no weight
    assert by_name(update_ratios(stored, net), "ratio")[v] == pytest.approx(4, rel=1e-12)
    assert by_name(update_ratios(applied, net), "ratio")["0.weight"] == pytest.approx(0, abs=1e-12)
    net[0].parametrizations.weight.original0.data.mul_(2)
    assert by_name(update_ratios(applied, net), "ratio")["0.weight"] == pytest.approx(1, rel=1e-12)


def test_a_parametrized_weight_without_a_layer_around_it_and_gradients_of_both_kinds():
    layer = parametrize_weight(nn.Linear(4, 3, dtype=torch.float64), "weight")
    CROSS_ENTROPY(layer(X), Y).backward()
    norms = by_name(parameter_norms(layer, applied=True), "gradient_norm")
    assert list(norms) == ["bias", "weight"]
    assert math.isnan(norms["weight"])
    assert norms["bias"] == pytest.approx(float(layer.bias.grad.norm()), rel=1e-12)
    stored = by_name(parameter_norms(layer, applied=False), "gradient_norm")
    assert stored["parametrizations.weight.original1"] > 0
    assert gradient_statistics(layer, CROSS_ENTROPY, X, Y)["weight_gradient_norm"][0] > 0


def test_reading_a_spectral_norm_leaves_its_vectors():
    net = normed_layer("spectral").train()
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    before = snapshot(net, applied=True)
    update_ratios(before, net)
    assert all(torch.equal(buffers[name], value) for name, value in net.named_buffers())
    assert list(before) == ["0.bias", "0.weight"]


def test_cosines_of_successive_updates():
    first = {"a": torch.zeros(2), "b": torch.zeros(1, 2), "c": torch.ones(1)}
    second = {"a": torch.tensor([1.0, 0]), "b": torch.tensor([[0.0, 2]]), "c": torch.ones(1)}
    third = {"a": torch.tensor([3.0, 0]), "b": torch.tensor([[0.0, 1]]), "c": torch.zeros(1)}
    columns = update_cosines(first, second, third)
    assert columns["parameter"] == ["a", "b", "c", "all"]
    assert columns["cosine"][:2] == pytest.approx([1, -1])
    assert math.isnan(columns["cosine"][2])
    # (1, 0, 0, 2, 0) and (2, 0, 0, -1, -1) are orthogonal
    assert columns["cosine"][3] == pytest.approx(0, abs=1e-12)


def test_cosines_from_the_model_itself():
    net = network()
    snapshots = [snapshot(net, applied=False)]
    for scale in (2.0, 1.5):
        net.head.weight.data.mul_(scale)
        snapshots.append(snapshot(net, applied=False))
    columns = update_cosines(*snapshots[:2], net)
    assert by_name(columns, "cosine")["head.weight"] == pytest.approx(1, rel=1e-12)
    assert by_name(columns, "cosine")["all"] == pytest.approx(1, rel=1e-12)


def test_effective_rates_of_rows_of_tensors_and_of_zero():
    weights = {"matrix": torch.tensor([[1.0, 0], [0, 2], [3, 0]]), "gain": torch.tensor([3.0, 4.0]), "zero": torch.zeros(1, 2)}
    rows, whole = (effective_rates(weights, 0.1, per_output=value)["effective_rate"] for value in (True, False))
    assert rows == pytest.approx([0.1 / 4, 0.1 / 25, math.inf])
    assert whole == pytest.approx([0.1 / 14, 0.1 / 25, math.inf])


def test_an_effective_rate_is_the_rate_of_the_direction():
    """A step with rate 9η from 3w ends in the direction of a step with rate η from w."""
    directions, rates = [], []
    for scale in (1.0, 3.0):
        net = network()
        net.blocks[0].layer.weight.data.mul_(scale)
        weight = {"w": net.blocks[0].layer.weight.detach().clone()}
        rates += effective_rates(weight, 0.1 * scale**2, per_output=False)["effective_rate"]
        net.blocks[0].norm.eps = 1e-12
        CROSS_ENTROPY(net(X), Y).backward()
        moved = net.blocks[0].layer.weight - 0.1 * scale**2 * net.blocks[0].layer.weight.grad
        directions.append(nn.functional.normalize(moved.detach().flatten(), dim=0))
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert torch.allclose(*directions, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("norm", "training", "invariant"), [("batch", True, True), ("batch", False, False), ("none", True, False)])
def test_gradients_are_orthogonal_to_scale_invariant_weights(norm, training, invariant):
    net = network(norm)
    if norm == "batch":
        net.blocks[0].norm.eps = 1e-12
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    columns = radial_gradients(net, CROSS_ENTROPY, X, Y, training=training)
    found = by_name(columns, "cosine")
    assert (abs(found["blocks.0.layer.weight"]) < 1e-9) is invariant
    assert abs(found["head.weight"]) > 1e-3
    weight = net.head.weight.detach()
    slow = copy.deepcopy(net).train(training)
    CROSS_ENTROPY(slow(X), Y).backward()
    gradient = slow.head.weight.grad
    assert found["head.weight"] == pytest.approx(float((weight * gradient).sum() / weight.norm() / gradient.norm()), rel=1e-9)
    assert math.isnan(found["head.bias"])
    assert all(p.grad is None for p in net.parameters())
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_the_stored_direction_of_a_weight_norm_is_scale_invariant():
    found = by_name(radial_gradients(normed_layer(), CROSS_ENTROPY, X, Y, training=True), "cosine")
    assert abs(found["0.parametrizations.weight.original1"]) < 1e-12
    assert abs(found["0.parametrizations.weight.original0"]) > 1e-3


def test_another_model_is_refused():
    before = snapshot(network(), applied=False)
    with pytest.raises(NormlibError, match=r"no 'blocks.0.norm.weight' any more"):
        update_ratios(before, network("none"))
    with pytest.raises(NormlibError, match=r"'head.weight' in the shape \(3, 6\)"):
        update_ratios(before, MLP([4, 6, 2], norm="batch"))
    with pytest.raises(NormlibError, match="same way"):
        update_cosines(before, {}, network())
