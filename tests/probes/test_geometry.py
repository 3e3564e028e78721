import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from normlib.errors import NormlibError
from normlib.networks import MLP, PlainConvNet
from normlib.probes.geometry import feature_geometry, mean_cosine, ranks

G = torch.Generator().manual_seed(0)
NAMES = ["effective_rank", "stable_rank", "participation_ratio", "soft_rank", "numerical_rank"]


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=G, dtype=torch.float64).to(dtype)


def orthogonal(rows, columns):
    return torch.linalg.qr(randn(columns, rows)).Q.T


@pytest.mark.parametrize("center", ["none", "features", "samples"])
def test_cosine_is_the_mean_over_pairs_in_a_loop(center):
    features = randn(7, 3, 2, 2) + 1
    a = features.flatten(1).numpy()
    a = {"none": a, "features": a - a.mean(0), "samples": a - a.mean(1, keepdims=True)}[center]
    slow = [a[i] @ a[j] / np.linalg.norm(a[i]) / np.linalg.norm(a[j]) for i, j in itertools.permutations(range(7), 2)]
    assert mean_cosine(features, center) == pytest.approx(np.mean(slow), rel=1e-12)


def test_cosines_of_known_configurations():
    line = torch.tensor([1.0, 2.0, 5.0])[:, None] * torch.tensor([[3.0, 4.0]])
    assert mean_cosine(orthogonal(4, 9)) == pytest.approx(0, abs=1e-15)
    assert mean_cosine(line) == pytest.approx(1, rel=1e-12)
    assert mean_cosine(torch.tensor([[1.0, 0], [-1, 0]])) == -1
    equally_long = nn.functional.normalize(randn(6, 20))
    equally_long = torch.cat([equally_long, -equally_long])  # mean 0 already
    assert mean_cosine(equally_long, "features") == pytest.approx(-1 / 11, rel=1e-12)


def test_zero_samples_are_left_out_and_no_pair_is_nan():
    features = torch.cat([randn(4, 5), torch.zeros(3, 5)])
    assert mean_cosine(features) == pytest.approx(mean_cosine(features[:4]), rel=1e-12)
    assert math.isnan(mean_cosine(torch.zeros(3, 5)))
    assert math.isnan(mean_cosine(torch.tensor([[1.0, 0], [0, math.nan]])))
    same = randn(1, 5).float().expand(4, 5)
    assert math.isnan(mean_cosine(same, "features"))  # what rounding leaves has no direction
    assert set(ranks(same, "features").values()) == {0}


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_ranks_of_orthogonal_samples_of_a_line_and_of_zeros(scale):
    assert list(ranks(scale * orthogonal(5, 8)).values()) == pytest.approx([5] * 5, rel=1e-12)
    assert list(ranks(scale * torch.eye(6)).values()) == pytest.approx([6] * 5, rel=1e-12)
    line = randn(9, 1) @ randn(1, 30)
    assert list(ranks(scale * line).values()) == pytest.approx([1] * 5, rel=1e-6)
    assert list(ranks(torch.zeros(3, 4))) == NAMES
    assert set(ranks(torch.zeros(3, 4)).values()) == {0}


def test_ranks_are_their_formulas_at_known_singular_values():
    sigma = np.array([4.0, 2.0, 1.0, 1e-9])
    features = orthogonal(6, 6)[:, :4] @ torch.diag(torch.tensor(sigma)) @ orthogonal(4, 10)
    p = sigma / sigma.sum()
    expected = [np.exp(-(p * np.log(p)).sum()), 21 / 16, 21**2 / (256 + 16 + 1), 2, 4]  # the mean eigenvalue is 2.1 / N
    assert list(ranks(features).values()) == pytest.approx(expected, rel=1e-10)
    assert ranks(features.float())["numerical_rank"] == 3
    assert ranks(features, threshold=0.4)["soft_rank"] == 3


def test_ranks_are_ordered_and_the_soft_rank_keeps_its_bound():
    for threshold in (0.1, 0.5, 0.9):
        found = ranks(randn(20, 12) * torch.logspace(0, -2, 12), threshold=threshold)
        assert 1 <= found["stable_rank"] <= found["participation_ratio"] <= found["effective_rank"] <= found["numerical_rank"] == 12
        assert found["soft_rank"] >= (1 - threshold) ** 2 * found["participation_ratio"]


def test_stable_rank_of_samples_of_length_one_is_that_of_their_cosines():
    unit = nn.functional.normalize(randn(8, 5) + 1)
    largest = float(torch.linalg.eigvalsh(unit @ unit.T)[-1])
    assert ranks(unit)["stable_rank"] == pytest.approx(8 / largest, rel=1e-12)


def test_layers_of_a_linear_net_with_a_bottleneck():
    net = nn.Sequential(nn.Linear(9, 7, bias=False), nn.Linear(7, 2, bias=False), nn.Linear(2, 6, bias=False)).double()
    x = randn(12, 9)
    columns = feature_geometry(net, x, training=False)
    assert list(columns) == ["layer", "cosine", *NAMES]
    assert columns["layer"] == ["0", "1", "2"]
    assert columns["numerical_rank"] == [7, 2, 2]
    assert columns["cosine"][0] == pytest.approx(mean_cosine(x @ net[0].weight.T), rel=1e-12)


def test_batch_norm_keeps_samples_apart_where_layer_norm_does_not():
    x = randn(32, 64, dtype=torch.float32)
    last = {}
    for norm in ("none", "batch", "layer"):
        net = MLP([64] * 21 + [4], norm=norm, activation="relu", init="he", seed=0)
        columns = feature_geometry(net, x, nn.ReLU, training=True)
        last[norm] = {name: values[-1] for name, values in columns.items()}
    assert last["none"]["cosine"] > 0.8
    assert last["layer"]["cosine"] > 0.8
    assert last["batch"]["cosine"] < 0.6
    assert last["batch"]["effective_rank"] > 2 * last["layer"]["effective_rank"]


def test_maps_are_flattened_and_the_mode_counts():
    net = PlainConvNet(5, 8, 1, 3, norm="batch", image_size=6)
    x = randn(6, 1, 6, 6, dtype=torch.float32) + 2
    state = {name: value.clone() for name, value in net.state_dict().items()}
    train, evaluated = (feature_geometry(net, x, nn.ReLU, training=mode)["cosine"] for mode in (True, False))
    assert train != pytest.approx(evaluated, rel=1e-2)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_diverged_layers_have_nan_and_bad_choices_are_refused():
    net = nn.Sequential(nn.Identity())
    columns = feature_geometry(net, torch.tensor([[1.0, math.inf], [0.0, 1.0]]), training=True)
    assert all(math.isnan(columns[name][0]) for name in ("cosine", *NAMES))
    with pytest.raises(NormlibError, match="N > 1"):
        mean_cosine(randn(1, 4))
    with pytest.raises(NormlibError, match="none, features, samples"):
        ranks(randn(3, 4), "batch")
    with pytest.raises(NormlibError, match="threshold=2"):
        ranks(randn(3, 4), threshold=2)
