"""Second moments of data, their spectra, and the transforms that whiten them.

Data are matrices of shape (P, d): P items in rows, d features in columns. Moments are divided by P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from normlib.errors import NormlibError

Kind = Literal["zca", "pca"]


def second_moment(x: Tensor, bias: bool = False) -> Tensor:
    r"""Return $\frac1P X^\top X$, shape (d, d): no mean is removed. It is the Hessian of linear regression.

    Args:
        x: data of shape (P, d).
        bias: whether to append the constant input 1 that a bias weight sees; the result is then (d + 1, d + 1).

    Source: `lecun1998`, eq. 29.
    """
    _check_matrix(x)
    if bias:
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    return x.T @ x / len(x)


def covariance(x: Tensor) -> Tensor:
    r"""Return the second moment about the mean, $\frac1P \sum_p (x_p - \bar x)(x_p - \bar x)^\top$, shape (d, d)."""
    _check_matrix(x)
    return second_moment(x - x.mean(0))


def spectrum(matrix: Tensor) -> Tensor:
    """Return the eigenvalues of a symmetric matrix, largest first.

    Raises:
        NormlibError: if the matrix is not symmetric to the precision of its dtype.

    Example:
        >>> spectrum(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor([3., 1.])
    """
    scale = float(matrix.abs().max())
    if not torch.allclose(matrix, matrix.T, rtol=0, atol=1e3 * torch.finfo(matrix.dtype).eps * scale):
        raise NormlibError("spectrum expects a symmetric matrix, but the matrix differs from its transpose. Symmetrize it first.")
    return torch.linalg.eigvalsh(matrix).flip(0)


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""An affine map $x \mapsto M (x - m)$, and what it was made from.

    Attributes:
        matrix: $M$, shape (d, d) for ZCA or (rank, d) for PCA.
        mean: $m$, shape (d,); zero if the mean was kept.
        eigenvalues: those of the second moment of the data (about `mean`) along the directions kept, largest first, (rank,).
    """

    matrix: Tensor
    mean: Tensor
    eigenvalues: Tensor

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return len(self.eigenvalues)

    def __call__(self, x: Tensor) -> Tensor:
        """Map data of shape (P, d), these or others."""
        return (x - self.mean) @ self.matrix.T


def whitening(x: Tensor, *, center: bool, kind: Kind = "zca", damping: float = 0.0, rank_tol: float | None = None) -> Whitening:
    r"""Find the map after which the data have the same second moment in every direction that they fill.

    With $\frac1P X^\top X = V \Lambda V^\top$ and $D = (\Lambda + \text{damping})^{-1/2}$, it is $V D V^\top$ (ZCA, the
    whitening that moves the data least) or $D V^\top$ (PCA). Directions that the data do not fill are dropped, not divided
    by: without damping the data's second moment becomes $V V^\top$, the projector on what they span (ZCA), or the
    identity (PCA).

    Args:
        x: data of shape (P, d).
        center: whether to remove the mean first. If not, the uncentered second moment is whitened.
        kind: "zca" or "pca".
        damping: added to each eigenvalue, so in squared units of the data; above 0 the whitening is only partial.
        rank_tol: a direction is dropped if its singular value is at most this share of the largest; None for
            max(P, d) times the precision of the dtype.

    Returns:
        The map; it is computed in the dtype of `x`, from a singular value decomposition of the data themselves.

    Raises:
        NormlibError: if `kind` is neither word, `damping` is negative, or the data are not a matrix.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
        >>> covariance(whitening(x, center=True)(x)).allclose(torch.eye(2))
        True

    Source: `wadia2021`, section 2; `lecun1998`, section 4.3.
    """
    _check_matrix(x)
    if kind not in get_args(Kind) or damping < 0:
        raise NormlibError(f"whitening got kind={kind!r}, damping={damping}; expected kind 'zca' or 'pca' and damping >= 0.")
    mean = x.mean(0) if center else x.new_zeros(x.shape[1])
    singular, directions = _right_singular(x - mean)
    tolerance = max(x.shape) * torch.finfo(x.dtype).eps if rank_tol is None else rank_tol
    kept = singular > tolerance * singular[0]
    eigenvalues, directions = singular[kept] ** 2 / len(x), directions[kept]
    matrix = (eigenvalues + damping).rsqrt()[:, None] * directions
    return Whitening(directions.T @ matrix if kind == "zca" else matrix, mean, eigenvalues)


def _right_singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values, largest first, and right singular vectors in rows; a tall matrix is made square first."""
    if len(x) > x.shape[1]:
        x = torch.linalg.qr(x, mode="r").R
    _, singular, directions = torch.linalg.svd(x, full_matrices=False)
    return singular, directions


def _check_matrix(x: Tensor) -> None:
    if x.ndim != 2 or not len(x):
        raise NormlibError(f"expected data of shape (P, d), but got {tuple(x.shape)}. Flatten images with x.flatten(1).")
