"""RescaleNet: the variance stays, and every block contributes the same."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from normlib.errors import NormlibError
from normlib.residual import RescaleNet, rescale_coefficients

DEPTHS = [1, 2, 3, 16, 50]


@pytest.mark.parametrize("depth", DEPTHS)
def test_coefficients_are_those_of_the_formula(depth: int) -> None:
    for block, (a, b) in enumerate(rescale_coefficients(depth)):
        k = depth - 1 + block  # the count that the authors' code keeps
        assert (a, b) == pytest.approx((math.sqrt(k / (k + 1)), 1 / math.sqrt(depth + block)), rel=1e-14)


@pytest.mark.parametrize("depth", DEPTHS)
def test_all_blocks_contribute_equally_to_the_final_variance(depth: int) -> None:
    coefficients = rescale_coefficients(depth)
    shares = [b**2 * math.prod(later**2 for later, _ in coefficients[block + 1 :]) for block, (_, b) in enumerate(coefficients)]
    assert shares == pytest.approx([1 / (2 * depth - 1)] * depth, rel=1e-13)
    of_the_input = math.prod(a**2 for a, _ in coefficients)
    assert of_the_input == pytest.approx(float(Fraction(depth - 1, 2 * depth - 1)), rel=1e-13)
    assert sum(shares) + of_the_input == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("depth", [2, 8, 40])
def test_variance_is_flat_for_independent_branches_of_unit_variance(depth: int) -> None:
    # branches that are exactly uncorrelated with all before them, and with each other: unit vectors
    scheme, (x, *branches) = RescaleNet([depth]), torch.eye(depth + 1, dtype=torch.float64)
    for block, branch in enumerate(branches):
        x = scheme.join(0, block)(x, branch)
        assert x.square().sum().item() == pytest.approx(1, rel=1e-13)
    torch.testing.assert_close(x[1:].square(), torch.full((depth,), 1 / (2 * depth - 1), dtype=torch.float64))


def test_the_depth_is_that_of_the_network_not_of_the_stage() -> None:
    one, two = RescaleNet([5]), RescaleNet([2, 3])
    x, f = torch.ones(1), torch.full((1,), 2.0)
    assert torch.equal(two.join(1, 2)(x, f), one.join(0, 4)(x, f))


def test_no_block_is_an_error() -> None:
    with pytest.raises(NormlibError, match="depth=0"):
        rescale_coefficients(0)
