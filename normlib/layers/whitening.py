"""Whitening matrices (`huang2018`): inverse roots of covariances, with derivatives that equal eigenvalues do not break."""

from __future__ import annotations

import torch
from torch import Tensor

from normlib.errors import unknown

METHODS = ("zca", "pca")


def check_method(method: str) -> None:
    """Check that there is such a method of whitening.

    Raises:
        UnknownNameError: if there is not; the message holds the nearest match.
    """
    if method not in METHODS:
        raise unknown("whitening method", method, METHODS)


def whitening_matrix(cov: Tensor, method: str = "zca", eps: float = 1e-5) -> Tensor:
    r"""Return W with $W (\Sigma + \epsilon I) W^\top = I$.

    With $\Sigma + \epsilon I = U \Lambda U^\top$, "pca" is $\Lambda^{-1/2} U^\top$: the outputs are the principal
    components. Their order follows the eigenvalues and their signs are arbitrary, so that both may change from batch to
    batch: stochastic axis swapping. "zca" is $U \Lambda^{-1/2} U^\top = (\Sigma + \epsilon I)^{-1/2}$, the rotation of it
    that changes the input least; it is unique.

    Args:
        cov: covariances of shape (*, S, S).
        method: "zca" or "pca".
        eps: added to the diagonal.

    Returns:
        A tensor of the shape of `cov`. The first two derivatives of "zca" are exact and finite for any eigenvalues. Those
        of "pca" hold the inverse gaps between eigenvalues: where two are equal, they are not finite. A covariance that is
        not finite gives NaN, not an error.

    Raises:
        UnknownNameError: if the method is neither.

    Example:
        >>> cov = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> w = whitening_matrix(cov, eps=0)
        >>> torch.allclose(w @ cov @ w.T, torch.eye(2), atol=1e-6)
        True

    Source: `huang2018`.
    """
    check_method(method)
    finite = cov.isfinite().all(-1).all(-1)[..., None, None]
    cov = torch.where(finite, cov, torch.ones_like(cov))  # the decomposition refuses what is not finite
    if method == "pca":
        values, basis = torch.linalg.eigh(cov)
        whitening = basis.mT / (values.clamp_min(0) + eps).sqrt()[..., None]
    else:
        whitening = _inverse_root(cov, eps)
    return torch.where(finite, whitening, torch.nan)


def _inverse_root(cov: Tensor, eps: float) -> Tensor:
    """Return (cov + eps I)^(-1/2), with derivatives that no gap between eigenvalues enters.

    In the eigenbasis, held fixed, B = diag(1 / roots) solves B M B = I at M = diag(roots²). Newton's step, its slope held
    fixed too, leaves that value and makes one order of derivatives with respect to M right each time it is taken.
    """
    values, basis = torch.linalg.eigh(cov.detach())
    roots = (values.clamp_min(0) + eps).sqrt()
    slope = roots[..., :, None] + roots[..., None, :]
    matrix = torch.diag_embed(roots.square()) + basis.mT @ (cov - cov.detach()) @ basis  # the difference is 0, not its gradient
    inverse, one = torch.diag_embed(roots.reciprocal()), torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    for _ in range(2):
        inverse = inverse + (one - inverse @ matrix @ inverse) / slope
    return basis @ inverse @ basis.mT
