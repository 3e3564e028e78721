"""Table 1 of Ba et al. (2016), computed; and what it says of norms that came later."""

import pytest
import torch

from normlib.errors import NormlibError, UnknownNameError
from normlib.layers import NORMS, make_norm
from normlib.probes import invariances, is_invariant, linear_and_norm

COLUMNS = [
    "weight matrix rescaling",
    "weight matrix recentering",
    "weight vector rescaling",
    "dataset rescaling",
    "dataset recentering",
    "single case rescaling",
]
UNITS, FEATURES = 32, 48  # more features than units: every covariance of the units has full rank


def drawn(*shape, seed=0):
    return 1 + torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, VECTORS, MAPS = (drawn(UNITS, FEATURES, seed=1) - 1) / FEATURES**0.5, drawn(80, FEATURES), drawn(20, FEATURES, 3, 3)


def weight_norm(weight):
    """Salimans and Kingma (2016) at gain 1: each row at length 1."""
    return lambda x: x @ torch.stack([row / row.square().sum() ** 0.5 for row in weight]).T


def row(make_layer, inputs):
    """What the layer does not notice, as in a line of the table: y or n."""
    deviations = invariances(make_layer, WEIGHT, inputs)
    assert list(deviations) == COLUMNS
    assert all(d < 1e-9 or d > 1e-2 for d in deviations.values())  # no doubt about any
    return "".join("y" if is_invariant(d) else "n" for d in deviations.values())


@pytest.mark.parametrize(
    ("make_layer", "wanted"),
    [
        (linear_and_norm("batch"), "ynyyyn"),
        (weight_norm, "ynynnn"),  # the paper's text says that it does not notice the scale of the data; its table is right
        (linear_and_norm("layer"), "yynyny"),
        (linear_and_norm("rms"), "ynnyny"),
        (linear_and_norm("none"), "nnnnnn"),
        (lambda weight: lambda x: torch.tanh(0.5 * x @ weight.T), "nnnnnn"),  # dynamic tanh
    ],
    ids=["batch", "weight", "layer", "rms", "none", "tanh"],
)
def test_the_paper_s_table(make_layer, wanted):
    assert row(make_layer, VECTORS) == wanted


# On maps, behind a 1x1 convolution. Adding a vector to every row of the weight adds a map there, not a constant.
ON_MAPS = {
    "none": "nnnnnn",
    "batch": "ynyyyn",
    "sync": "ynyyyn",
    "noisy": "ynyyyn",  # the noise comes after
    "renorm": "nnnnnn",  # what is not clipped goes by the running statistics
    "renorm:r_max=1,d_max=0": "ynyyyn",
    "batch:ghost=1": "ynyyyy",  # instance norm
    "layer": "ynnyny",
    "rms": "ynnyny",
    "group:size=8": "ynnyny",
    "group:size=1": "ynyyyy",
    "instance": "ynyyyy",
    "variance": "ynyynn",
    "lp": "ynyynn",
    "lp:p=inf,centered=True": "ynyyyn",
    "decorrelated": "ynnyyn",  # the rotation that comes nearest to the input depends on the scale of each channel
    "switch": "ynnynn",  # what all of its parts have in common
    "frn": "ynyyny",
    "evonorm_b0": "ynyynn",
    "proxy": "ynnyny",  # layer norm inside
    "evonorm_s0": "nnnnnn",  # its gate knows the scale
    "dyt": "nnnnnn",
    "derf": "nnnnnn",
}


@pytest.mark.parametrize("spec", [spec for spec in ON_MAPS if spec.partition(":")[0] in NORMS])
def test_the_table_on_maps(spec):
    assert row(linear_and_norm(spec), MAPS) == ON_MAPS[spec]


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_has_a_row(name):
    assert all(deviation >= 0 for deviation in invariances(linear_and_norm(name), WEIGHT, MAPS).values())


def test_in_evaluation_batch_norm_is_an_affine_map():
    def make_layer(weight):
        norm = make_norm("batch", UNITS, dtype=torch.float64).eval()
        return lambda x: norm(x @ weight.T)

    assert row(make_layer, VECTORS) == "nnnnnn"


def test_eps_breaks_the_invariance_of_small_values():
    small = 1e-3 * VECTORS
    assert is_invariant(invariances(linear_and_norm("layer"), WEIGHT, small)["dataset rescaling"], 1e-5)
    for make_layer in (linear_and_norm("layer", eps=1e-5), linear_and_norm("layer:eps=1e-5")):
        assert invariances(make_layer, WEIGHT, small)["dataset rescaling"] > 0.1


def test_the_deviation_is_relative_and_the_generator_is_left_alone():
    before = torch.get_rng_state()
    deviations = invariances(lambda weight: lambda x: 1e-9 * torch.rand(()) * x @ weight.T, WEIGHT, VECTORS)
    assert deviations["dataset rescaling"] == pytest.approx(2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("weight", "inputs", "says"),
    [
        (WEIGHT, VECTORS[:1], r"N > 1 cases.*\(1, 48\)"),
        (WEIGHT.T, VECTORS, r"got \(48, 32\) and \(80, 48\)"),
        (WEIGHT, VECTORS[0], r"\(48,\)"),
        (WEIGHT, 0 * VECTORS, "every output of the layer is zero"),
    ],
)
def test_what_cannot_be_measured_says_why(weight, inputs, says):
    with pytest.raises(NormlibError, match=says):
        invariances(linear_and_norm("none"), weight, inputs)


def test_unknown_norms_are_refused_at_once():
    with pytest.raises(UnknownNameError, match="did you mean 'layer'"):
        linear_and_norm("layr")
