"""PCA whitening whose axes do not swap: a control for `huang2018`."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from normlib.layers import DecorrelatedBatchNorm, whitening_matrix
from normlib.layers.decorrelated import group_moments


class KeptAxes(DecorrelatedBatchNorm):
    """PCA whitening that numbers its axes, and turns their signs, as fits those of the batch before.

    The whitened values are those of "pca" up to the order and the signs of the channels in a group.
    """

    def __init__(self, num_features: int, size: int) -> None:
        super().__init__(num_features, method="pca", size=size)
        self.register_buffer("axes", torch.zeros(num_features // size, size, size))

    def _whitened(self, input: Tensor, mean: Tensor | None = None, cov: Tensor | None = None) -> Tensor:
        if mean is None or cov is None:
            mean, cov = group_moments(input, self.size)
            self._track_groups(mean, cov, input)
        basis = torch.linalg.eigh(cov.detach().nan_to_num(0.0, 0.0, 0.0))[1]  # the decomposition refuses what is not finite
        order = matching(self.axes, basis)  # type: ignore[arg-type]
        if self.training:
            self.axes.copy_((order @ basis.mT).mT)  # type: ignore[operator]
        groups = input.T.reshape(-1, self.size, len(input)) - mean.view(-1, self.size, 1)
        output = (order @ whitening_matrix(cov, "pca", self.eps) @ groups).reshape(input.shape[1], -1).T
        return output * self.weight + self.bias


def matching(before: Tensor, basis: Tensor) -> Tensor:
    """Return the signed permutations P for which the axes P Uᵀ lie closest to those before; the identity if there were none.

    Args:
        before: orthonormal axes in columns, of shape (groups, S, S), or zeros.
        basis: the new axes U, of the same shape.
    """
    cosines = (before.mT @ basis).cpu()
    found = torch.zeros_like(cosines)
    for group, cosine in enumerate(cosines):
        rows, columns = linear_sum_assignment(-cosine.abs().numpy())
        found[group, rows, columns] = torch.where(cosine[rows, columns] < 0, -1.0, 1.0).to(found)
    return found.to(basis)
