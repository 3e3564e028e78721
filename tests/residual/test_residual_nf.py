"""The books of normalizer-free networks: closed forms, and the variance that a network has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.residual import NormalizerFree, Scale, expected_variances

GAIN_OF_RELU = (0.5 * (1 - 1 / math.pi)) ** -0.5  # one over the standard deviation of relu(N(0, 1))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("stages", [[3, 4, 6, 3], [1, 1], [50, 2]])
def test_books_are_the_closed_form(stages: list[int], alpha: float) -> None:
    books = iter(expected_variances(stages, alpha))
    carried = 1.0  # what the stage before leaves
    for blocks in stages:
        for block in range(blocks):
            entry = next(books)
            beta = math.sqrt(1 + block * alpha**2) if block else math.sqrt(carried)
            assert entry.beta == pytest.approx(beta, rel=1e-12)
            assert entry.variance == pytest.approx(1 + (block + 1) * alpha**2, rel=1e-12)
            assert entry.is_transition == (block == 0)
        carried = 1 + blocks * alpha**2
    assert next(books, None) is None


def test_the_published_sizes_of_the_effect() -> None:
    books = expected_variances([9, 9])
    assert books[9].beta == pytest.approx(1.17, abs=5e-3)
    assert expected_variances([18, 18])[18].beta == pytest.approx(1.31, abs=5e-3)


def test_entry_divides_by_beta() -> None:
    scheme = NormalizerFree([2, 2], alpha=1.0)
    assert isinstance(scheme.entry(0, 0), nn.Identity)
    assert isinstance(scheme.entry(0, 1), Scale)
    factors = [scheme.entry(*place)(torch.ones(1, dtype=torch.float64)).item() for place in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert factors == pytest.approx([1, 2**-0.5, 3**-0.5, 2**-0.5])


def test_gain_comes_on_top_of_alpha() -> None:
    x, f = torch.ones(1), torch.ones(1)
    assert NormalizerFree([1], alpha=0.2).join(0, 0)(x, f).item() == pytest.approx(1.2)
    assert NormalizerFree([1], alpha=0.2, gain=0.5).join(0, 0)(x, f).item() == pytest.approx(1.1)


def standardized(width: int, generator: torch.Generator) -> Tensor:
    """Draw a weight whose rows have mean 0 and, times the gain of ReLU, keep the variance of relu(N(0, 1))."""
    weight = torch.randn(width, width, generator=generator)
    weight -= weight.mean(1, keepdim=True)
    return GAIN_OF_RELU * weight / (weight.std(1, correction=0, keepdim=True) * width**0.5)


def test_a_relu_network_of_standardized_weights_follows_the_books() -> None:
    # per channel over 512 samples, one branch layer, width 512; the books come out within 5 %
    width, batch, stages = 512, 512, [4, 3]
    scheme, generator = NormalizerFree(stages, alpha=1.0), torch.Generator().manual_seed(0)
    x = torch.randn(batch, width, generator=generator)
    books = iter(scheme.books)
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            h = scheme.entry(stage, block)(x.relu())
            projects = block == 0 and stage > 0
            shortcut = h @ standardized(width, generator).T if projects else x
            branch = h @ standardized(width, generator).T
            assert branch.var(0).mean().item() == pytest.approx(1, rel=0.05)
            x = scheme.join(stage, block)(shortcut, branch)
            assert x.var(0).mean().item() == pytest.approx(next(books).variance, rel=0.05)
            assert x.mean(0).square().mean().item() < 0.02  # no mean shift; sampling alone gives variance / batch


def test_no_stage_is_an_error() -> None:
    with pytest.raises(NormlibError, match="stages"):
        expected_variances([])
