"""How different a layer keeps different inputs: cosines between samples, and ranks of the matrix of features.

Features of a batch are a matrix of one row per sample, (N, d); what is not a matrix is flattened after its first axis, so that
every channel and position of a map is a feature. Every measure here is the same for features times a constant. It is computed
in float64 from one singular value decomposition, which costs N·d·min(N, d) operations: for a batch of 64 less than most
networks.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError
from normlib.probes.watching import Columns, Layers, record_activations

Center = Literal["none", "features", "samples"]


def feature_geometry(
    model: nn.Module,
    x: Tensor,
    layers: Layers = None,
    *,
    training: bool | None,
    center: Center = "none",
    threshold: float = 0.5,
) -> Columns:
    """Measure, layer by layer, how alike the samples of a batch have become.

    Args:
        model: any model; it is left as it is.
        x: one batch of inputs, (N, *) with N > 1.
        layers: see `record_activations`.
        training: see `record_activations`.
        center: see `mean_cosine`.
        threshold: of the soft rank, see `ranks`.

    Returns:
        Columns with one entry a layer: `layer`; `cosine`, see `mean_cosine`; and what `ranks` returns. A layer whose outputs
        are not finite has NaN in all of them.

    Raises:
        UnknownNameError: if no module has a given name.
        NormlibError: if a chosen module does not put out one tensor with an axis of samples, or an argument does not fit.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 4, bias=False))
        >>> columns = feature_geometry(net, torch.eye(3), training=True)
        >>> columns["numerical_rank"]
        [1, 1]

    Source: `lubana2021`; `daneshmand2020`.
    """
    columns: Columns = {}
    for name, output in record_activations(model, x, layers, training=training).items():
        row = {"layer": name, "cosine": mean_cosine(output, center), **ranks(output, center, threshold)}
        for column, value in row.items():
            columns.setdefault(column, []).append(value)
    return columns


def mean_cosine(features: Tensor, center: Center = "none") -> float:
    r"""Return the mean cosine between the features of two different samples.

    $$\frac1N \sum_i \frac1{N-1} \sum_{j \ne i} \cos(a_i, a_j)$$

    Args:
        features: (N, *) with N > 1.
        center: what is subtracted first. "none": nothing, as in `lubana2021`. "samples": from each sample the mean over its own
            features; the cosine is then the correlation of two samples, and a value that all features share does not count.
            "features": from each feature its mean over the batch. If samples are then equally long, the mean cosine is
            -1/(N - 1) whatever else they do, so look at `ranks` for that case.

    Returns:
        The mean over those pairs in which neither sample is zero; NaN without such a pair or with values that are not finite.

    Raises:
        NormlibError: if there are fewer than two samples, or `center` is not one of the words.

    Example:
        >>> mean_cosine(torch.eye(3))
        0.0
        >>> round(mean_cosine(torch.eye(3) + 1), 6), round(mean_cosine(torch.eye(3) + 1, "samples"), 6)
        (0.833333, -0.5)

    Source: `lubana2021`.
    """
    rows = _matrix(features, center)
    lengths = rows.norm(dim=1)
    rows = rows[lengths != 0] / lengths[lengths != 0, None]
    if len(rows) < 2:
        return math.nan
    # the sum over all pairs is the square of the sum, whose diagonal holds a 1 for each sample
    return float((rows.sum(0).square().sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


def ranks(features: Tensor, center: Center = "none", threshold: float = 0.5) -> dict[str, float]:
    r"""Return five ranks of the matrix of features, from its singular values in descending order.

    - `effective_rank`: $\exp(-\sum_i p_i \log p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$ (`roy2007`): the exponential
      of the entropy of the singular values themselves, not of their squares.
    - `stable_rank`: $\sum_i \sigma_i^2 / \sigma_1^2 = \lVert A \rVert_F^2 / \lVert A \rVert_2^2$. Of samples of length 1 it is
      $N / \lambda_{\max}$ of the matrix of their cosines, the stable rank of `lubana2021`.
    - `participation_ratio`: $(\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4$, the $r(H)$ of `daneshmand2020`.
    - `soft_rank`: how many eigenvalues of $A^\top A / N$, of which there are d, reach `threshold` times their mean. For features of
      mean square 1, for which `daneshmand2020` states it, the mean is 1 and the threshold absolute. It is at least
      $(1 - \text{threshold})^2$ times the participation ratio.
    - `numerical_rank`: how many singular values exceed $\sigma_1 \max(N, d)$ times the precision of the features' dtype, as in
      NumPy.

    For n orthogonal samples of one length each is n (the soft rank, if n·threshold ≤ d); for samples along one line it is 1; for
    zeros, 0.

    Args:
        features: (N, *) with N > 1.
        center: see `mean_cosine`.
        threshold: of the soft rank, above 0 and below 1.

    Returns:
        The ranks by name; NaN if a feature is not finite.

    Raises:
        NormlibError: if there are fewer than two samples, or an argument does not fit.

    Example:
        >>> ranks(2 * torch.eye(4))["stable_rank"]
        4.0

    Source: `roy2007`; `lubana2021`; `daneshmand2020`.
    """
    if not 0 < threshold < 1:
        raise NormlibError(f"ranks got threshold={threshold}; expected a share of the mean eigenvalue, above 0 and below 1.")
    matrix = _matrix(features, center)
    if not bool(matrix.isfinite().all()):
        names = ("effective_rank", "stable_rank", "participation_ratio", "soft_rank", "numerical_rank")
        return dict.fromkeys(names, math.nan)
    singular = torch.linalg.svdvals(matrix)
    singular = singular / singular[0] if float(singular[0]) else singular[:0]
    shares, squares = singular / singular.sum(), singular.square()
    precision = torch.finfo(features.dtype).eps if features.is_floating_point() else 0.0
    return {
        "effective_rank": float(torch.special.entr(shares).sum().exp()) if len(singular) else 0.0,
        "stable_rank": float(squares.sum()),
        "participation_ratio": float(squares.sum() ** 2 / squares.square().sum()) if len(singular) else 0.0,
        "soft_rank": int((squares >= threshold * squares.sum() / matrix.shape[1]).sum()),
        "numerical_rank": int((singular > max(matrix.shape) * precision).sum()),
    }


def _matrix(features: Tensor, center: Center) -> Tensor:
    """Flatten, center, and set to zero the rows of which centering leaves rounding only."""
    if features.ndim < 2 or len(features) < 2:
        raise NormlibError(f"expected features (N, *) of N > 1 samples, but got {tuple(features.shape)}. Samples are in axis 0.")
    if center not in get_args(Center):
        raise NormlibError(f"center is {center!r}; expected one of {', '.join(get_args(Center))}.")
    matrix = features.detach().flatten(1).double()
    if center == "none":
        return matrix
    centered = matrix - matrix.mean(0 if center == "features" else 1, keepdim=True)
    rounding = 8 * torch.finfo(torch.float64).eps * matrix.norm(dim=1, keepdim=True)
    return centered.masked_fill(centered.norm(dim=1, keepdim=True) <= rounding, 0.0)
