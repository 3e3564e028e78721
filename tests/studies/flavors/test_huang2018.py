"""Axes that are kept: the same whitened values up to order and sign; and what is measured of axes that swap."""

from __future__ import annotations

import pytest
import torch

from normlib.layers import ShapeError, make_norm
from normlib.studies.flavors.huang2018 import agreement, outputs_under
from normlib.studies.flavors.kept_axes import KeptAxes, matching


def correlated(count: int, seed: int = 0) -> torch.Tensor:
    """Draw (count, 4) whose principal axes are a rotation's columns, of variances 8, 4, 2, 1."""
    draws = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[0]
    return draws * torch.tensor([8.0, 4.0, 2.0, 1.0]).double().sqrt() @ turn.T


def test_matching_undoes_a_signed_permutation() -> None:
    axes = torch.linalg.qr(torch.randn(2, 5, 5, dtype=torch.float64))[0]
    shuffled = axes[:, :, [3, 0, 4, 1, 2]] * torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0]).double()
    order = matching(axes, shuffled)
    assert torch.allclose(order @ shuffled.mT, axes.mT)
    assert torch.equal(matching(torch.zeros_like(axes), axes), torch.eye(5).double().expand(2, 5, 5))


def test_kept_axes_whiten_as_pca_does_and_keep_their_places() -> None:
    kept = KeptAxes(4, 4).double()
    x = correlated(400)
    first = kept(x)
    assert torch.allclose(first.T @ first / 400, torch.eye(4).double(), atol=1e-4)
    variances = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()  # the order of the eigenvalues is turned around, the axes stay
    values, axes = torch.linalg.eigh(torch.cov(x.T, correction=0))
    reordered = (x - x.mean(0)) @ axes * (variances / values).sqrt().flip(0) @ axes.T
    second, plain = kept(reordered), make_norm("decorrelated:method=pca,size=4", 4).double()(reordered)
    own = torch.nn.functional.cosine_similarity(first, second, dim=0)
    assert own.min() > 0.99
    assert torch.allclose(second.abs().sort(1).values, plain.abs().sort(1).values, atol=1e-6)


def test_agreement_is_one_without_statistics_and_high_for_zca() -> None:
    x = correlated(1_500)
    assert agreement(make_norm("none", 4), x, 256, 0) == pytest.approx(1)
    zca, pca = (agreement(make_norm(f"decorrelated:method={how},size=4", 4).double(), x, 256, 0) for how in ("zca", "pca"))
    assert zca > 0.95 and zca > pca


def test_outputs_are_under_the_other_batch_and_the_norm_stays() -> None:
    norm, batch, x = make_norm("batch", 4).double(), correlated(64, 1), correlated(32, 2)
    torch.nn.init.constant_(norm.weight, 7.0)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    expected = (x - batch.mean(0)) / (batch.var(0) + 1e-5).sqrt()
    assert torch.allclose(outputs_under(norm, batch, x), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_batch_no_larger_than_the_group_is_refused_with_a_way_out() -> None:
    with pytest.raises(ShapeError, match="Whiten smaller groups"):
        make_norm("decorrelated:size=16", 64)(torch.randn(16, 64))


def test_what_is_not_finite_stays_so() -> None:
    x = correlated(64)
    x[3, 1] = torch.nan
    assert KeptAxes(4, 4).double()(x).isnan().any()
