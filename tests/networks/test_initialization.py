import pytest
import torch

from normlib.errors import NormlibError, UnknownNameError
from normlib.networks import INITIALIZATIONS, make_initializer

SHAPE = (40, 30, 3, 3)
FAN_IN, FAN_OUT = 30 * 9, 40 * 9
VARIANCES = {
    "lecun": 1 / FAN_IN,
    "xavier_fan_in": 1 / FAN_IN,
    "glorot_standard": 1 / (3 * FAN_IN),
    "glorot_normalized": 2 / (FAN_IN + FAN_OUT),
    "he": 2 / FAN_IN,
    "normal": 0.01**2,
    "normal:std=0.5": 0.25,
    "orthogonal": 1 / FAN_IN,  # 40 rows of length 1, of 270 elements each
    "orthogonal:gain=2": 4 / FAN_IN,
}


def drawn(spec, seed=0, shape=SHAPE):
    return make_initializer(spec)(torch.empty(shape, dtype=torch.float64), torch.Generator().manual_seed(seed))


def test_every_initialization_has_a_variance_here():
    assert set(INITIALIZATIONS) == {spec.partition(":")[0] for spec in VARIANCES}


@pytest.mark.parametrize("spec", VARIANCES)
def test_moments(spec):
    weight, variance = drawn(spec), VARIANCES[spec]
    count = weight.numel()
    assert float(weight.var()) == pytest.approx(variance, rel=6 * (2 / count) ** 0.5)
    assert abs(float(weight.mean())) < 6 * (variance / count) ** 0.5


@pytest.mark.parametrize("spec", ["glorot_standard", "glorot_normalized"])
def test_uniform_schemes_fill_their_interval_and_no_more(spec):
    bound = (3 * VARIANCES[spec]) ** 0.5
    largest = float(drawn(spec).abs().max())
    assert 0.99 * bound < largest <= bound


@pytest.mark.parametrize("spec", VARIANCES)
def test_draws_come_from_the_generator_alone(spec):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(spec, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(spec, seed=3), first)
    assert not torch.equal(drawn(spec, seed=4), first)


def test_orthogonal_rows_are_of_length_one_and_columns_where_there_are_fewer():
    wide, tall = drawn("orthogonal"), drawn("orthogonal:gain=3", shape=(20, 5))
    torch.testing.assert_close(wide.flatten(1) @ wide.flatten(1).T, torch.eye(40, dtype=torch.float64))
    torch.testing.assert_close(tall.T @ tall, 9 * torch.eye(5, dtype=torch.float64))


def test_a_vector_has_no_fan_in():
    with pytest.raises(NormlibError, match="no fan-in"):
        drawn("he", shape=(5,))


def test_unknown_names_and_arguments():
    with pytest.raises(UnknownNameError, match="did you mean 'glorot_normalized'"):
        make_initializer("glorot_normalised")
    with pytest.raises(UnknownNameError, match="std"):
        make_initializer("normal:sd=0.1")
