import pytest
import torch

from normlib.errors import NormlibError
from normlib.probes import covariance, second_moment, spectrum, whitening

G = torch.Generator().manual_seed(0)


def data(points, features, rank=None):
    """Correlated data with a mean, confined to a subspace of `rank` dimensions."""
    rank = features if rank is None else rank
    factors = torch.randn(points, rank, generator=G, dtype=torch.float64) + 2
    return factors @ torch.randn(rank, features, generator=G, dtype=torch.float64)


def test_second_moment_by_its_definition():
    x = data(7, 3)
    slow = sum(torch.outer(row, row) for row in x) / 7
    assert torch.allclose(second_moment(x), slow, rtol=1e-13, atol=0)
    augmented = second_moment(x, bias=True)
    assert torch.allclose(augmented[:3, :3], slow, rtol=1e-13, atol=0)
    assert torch.allclose(augmented[3], torch.cat([x.mean(0), torch.ones(1, dtype=torch.float64)]), rtol=1e-13, atol=0)


def test_covariance_is_the_second_moment_less_the_mean():
    x = data(9, 4)
    assert torch.allclose(covariance(x), second_moment(x) - torch.outer(x.mean(0), x.mean(0)), rtol=0, atol=1e-12)
    assert torch.allclose(covariance(x), torch.cov(x.T, correction=0), rtol=0, atol=1e-12)


def test_spectrum_is_descending_and_a_mean_raises_its_top():
    x = data(50, 6)
    values = spectrum(covariance(x))
    assert (values.diff() <= 0).all()
    assert float(values.sum()) == pytest.approx(float(covariance(x).trace()))
    assert float(spectrum(second_moment(x))[0]) >= float(x.mean(0).square().sum())
    with pytest.raises(NormlibError, match="symmetric"):
        spectrum(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("points", "features", "rank"), [(40, 5, 5), (40, 8, 3), (6, 10, 10), (5, 5, 5)])
def test_whitened_data_have_a_projector_for_their_second_moment(points, features, rank, center):
    x = data(points, features, rank)
    for kind in ("zca", "pca"):
        white = whitening(x, center=center, kind=kind)
        assert white.rank == min(rank, points - center)
        moment = second_moment(white(x))
        assert torch.allclose(moment @ moment, moment, rtol=0, atol=1e-8)
        assert float(moment.trace()) == pytest.approx(white.rank, abs=1e-8)
        if kind == "pca":
            assert torch.allclose(moment, torch.eye(white.rank, dtype=x.dtype), rtol=0, atol=1e-8)
        else:
            centered = x - white.mean
            assert torch.allclose(centered @ moment, centered, rtol=0, atol=1e-7)  # onto what the data span


def test_eigenvalues_kept_are_those_of_the_moment():
    x = data(30, 6, rank=4)
    white = whitening(x, center=True)
    assert torch.allclose(white.eigenvalues, spectrum(covariance(x))[:4], rtol=1e-9, atol=0)
    assert torch.equal(whitening(x, center=False).mean, torch.zeros(6, dtype=x.dtype))


def test_zca_is_the_symmetric_root_of_the_inverse():
    x = data(30, 4)
    matrix = whitening(x, center=True).matrix
    assert torch.allclose(matrix, matrix.T, rtol=0, atol=1e-10)
    assert torch.allclose(matrix @ matrix @ covariance(x), torch.eye(4, dtype=x.dtype), rtol=0, atol=1e-7)


def test_fewer_points_than_features_leave_a_gram_matrix_without_content():
    x = data(6, 20)
    white = whitening(x, center=False)(x)
    assert torch.allclose(white @ white.T, 6 * torch.eye(6, dtype=x.dtype), rtol=0, atol=1e-8)
    white = whitening(x, center=True)(x)
    assert torch.allclose(white @ white.T, 6 * torch.eye(6, dtype=x.dtype) - 1, rtol=0, atol=1e-8)


def test_damping_shrinks_each_direction_by_the_known_factor():
    x, damping = data(40, 4), 0.7
    values = spectrum(second_moment(whitening(x, center=True, damping=damping)(x)))
    eigenvalues = spectrum(covariance(x))
    assert torch.allclose(values, eigenvalues / (eigenvalues + damping), rtol=0, atol=1e-10)


def test_rank_tol_drops_weak_directions():
    x = torch.diag(torch.tensor([1.0, 0.1, 0.001]))
    assert [whitening(x, center=False, rank_tol=tol).rank for tol in (0.0, 0.01, 0.5)] == [3, 2, 1]


def test_float32_finds_the_null_directions_of_pixels_that_are_never_on():
    x = torch.rand(100, 12, generator=G)
    x[:, [0, 5]] = 0
    white = whitening(x, center=True)
    assert white.rank == 10
    assert not white(x)[:, [0, 5]].abs().gt(1e-5).any()


def test_constant_data_are_mapped_to_zero():
    x = torch.ones(5, 3, dtype=torch.float64)
    white = whitening(x, center=True)
    assert white.rank == 0
    assert not white(x).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(NormlibError, match=r"flatten\(1\)"):
        covariance(torch.ones(2, 1, 3, 3))
    with pytest.raises(NormlibError, match="'zca' or 'pca'"):
        whitening(data(5, 2), center=True, kind="cholesky")
    with pytest.raises(NormlibError, match="damping >= 0"):
        whitening(data(5, 2), center=True, damping=-1)
