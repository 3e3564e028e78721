"""The whole spectrum of a curvature matrix: its density by Lanczos quadrature, its ends, and the Gauss-Newton matrix.

A matrix of P parameters is given by its product with a vector, as `hessian_operator` and `gauss_newton_operator` return it. The
density costs probes·steps products, and memory for `steps` vectors of P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vjp

from normlib.errors import NormlibError
from normlib.probes.curvature import hessian, model_loss, top_eigenvalues
from normlib.probes.parameters import Parameters, as_vector, finite, random_unit

Operator = Callable[[Tensor], Tensor]
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    r"""An estimate of the distribution of the P eigenvalues $\lambda_i$ of a symmetric matrix, each with weight 1/P.

    For each probe, a random unit vector v, it holds nodes and weights of a quadrature: $\sum_j w_j f(t_j)$ estimates
    $v^\top f(H) v$, exactly for polynomials up to degree 2·steps - 1; and the mean of that over all v is
    $\frac1P \sum_i f(\lambda_i)$.

    Attributes:
        nodes: shape (probes, steps), ascending in each row.
        weights: shape (probes, steps), not negative, with sum 1 in each row. If the iteration of a probe ended early, because the
            matrix has fewer distinct eigenvalues than `steps`, nodes of weight 0 fill the row.
    """

    nodes: Array
    weights: Array

    def moment(self, power: int) -> tuple[float, float]:
        """Return the mean of the eigenvalues to a power, and its standard error over the probes: power 1 is the trace over P."""
        values = (self.weights * self.nodes**power).sum(1)
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")

    def density(self, grid: Array, width: float | None = None) -> Array:
        r"""Return the density on a grid, each node spread to a Gaussian.

        Args:
            grid: where, any number of points.
            width: standard deviation of the Gaussian, in the units of the eigenvalues; None for 1 % of the range of the nodes that
                have weight.

        Returns:
            The mean over the probes, of the shape of `grid`; its integral over all numbers is 1.

        Raises:
            NormlibError: if the width is not positive (as the default is for a matrix with one eigenvalue only).
        """
        carried = self.nodes[self.weights > 0]
        width = 0.01 * float(np.ptp(carried)) if width is None else width
        if not width > 0:
            raise NormlibError(f"density got a width of {width}; expected a positive one, in the units of the eigenvalues.")
        distance = (np.asarray(grid, dtype=float)[..., None] - self.nodes.ravel()) / width
        kernel = np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))
        total: Array = kernel @ self.weights.ravel() / len(self.weights)
        return total

    def quantile(self, shares: Array) -> Array:
        """Return the eigenvalues below which the given shares of the spectrum lie: steps from node to node, not smoothed."""
        order = np.argsort(self.nodes, axis=None)
        cumulated = np.cumsum(self.weights.ravel()[order]) / len(self.weights)
        places = np.searchsorted(cumulated, np.asarray(shares, dtype=float) - 1e-12)
        found: Array = self.nodes.ravel()[order][np.minimum(places, len(order) - 1)]
        return found


def spectral_density(product: Operator, params: Parameters, *, probes: int = 8, steps: int = 64, seed: int = 0) -> SpectralDensity:
    """Estimate the eigenvalue density of a symmetric matrix by stochastic Lanczos quadrature.

    Args:
        product: v to Hv for vectors (P,), such as `hessian_operator(loss, params)`.
        params: the parameters: P, dtype and device are theirs. In float32 nodes are good to about 1e-6 of the largest.
        probes: how many random vectors; the standard error falls with the square root of their number, and is small for large P.
        steps: of Lanczos for each vector, at most P. Eigenvalues at the ends are found within few steps, what is between them is
            resolved to about the range over `steps`.
        seed: of the first probe; each further probe takes the next.

    Returns:
        Nodes and weights for each probe.

    Raises:
        NormlibError: if a number does not fit, or the matrix is not finite.

    Example:
        >>> diagonal = torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64)
        >>> density = spectral_density(lambda v: diagonal * v, diagonal, probes=4, steps=3)
        >>> density.nodes[0].round(6)
        array([1., 2., 9.])

    Source: `ghorbani2019`.
    """
    _, vector = as_vector(_no_loss, params)
    if probes < 1 or steps < 1:
        raise NormlibError(f"spectral_density got probes={probes}, steps={steps}; expected 1 or more of each.")
    steps = min(steps, len(vector))
    nodes, weights = np.zeros((2, probes, steps))
    for probe in range(probes):
        diagonal, beside = lanczos(product, random_unit(vector, seed + probe), steps)
        found, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        nodes[probe] = np.pad(found, (0, steps - len(found)), mode="edge")
        weights[probe, : len(found)] = vectors[0] ** 2
    return SpectralDensity(nodes, weights)


def lanczos(product: Operator, start: Tensor, steps: int) -> tuple[Array, Array]:
    """Return the diagonal and the off-diagonal of the matrix QᵀHQ, for a basis Q of the Krylov space of a unit vector.

    Each new vector is made orthogonal to all before it, twice, so that no eigenvalue comes out twice. The iteration ends early
    when the space does, that is when what is left of a vector is rounding.

    Args:
        product: v to Hv for a symmetric H.
        start: unit vector (P,).
        steps: at most P.

    Returns:
        Arrays of shape (m,) and (m - 1,), where m is `steps` or less.
    """
    basis = start.new_zeros(steps, len(start))
    basis[0] = start
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        image = finite(product(basis[step]))
        scale = float(image.norm())
        diagonal.append(float(basis[step] @ image))
        known = basis[: step + 1]
        for _ in range(2):
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        if step + 1 == steps or length <= 8 * torch.finfo(start.dtype).eps * max(scale, *map(abs, diagonal)):
            break
        beside.append(length)
        basis[step + 1] = image / length
    return np.array(diagonal), np.array(beside)


def extreme_eigenvalues(
    loss: Callable[[Parameters], Tensor], params: Parameters, *, largest: int = 1, smallest: int = 1, **options: Any
) -> tuple[Array, Array]:
    """Return the largest and the smallest eigenvalues of the Hessian of a loss, each from the outside in.

    Args:
        loss: function of the parameters that returns a scalar.
        params: where.
        largest: how many of the largest.
        smallest: how many of the smallest: the most negative ones, if there are any.
        **options: those of `top_eigenvalues`.

    Raises:
        NormlibError: as `top_eigenvalues`.

    Example:
        >>> extreme_eigenvalues(lambda w: w[0] ** 2 - w[1] ** 2 + 3 * w[2] ** 2, torch.zeros(3), largest=2)
        (array([6., 2.]), array([-2.]))
    """
    above = top_eigenvalues(loss, params, largest, **options)
    return above, -top_eigenvalues(lambda at: -loss(at), params, smallest, **options)


def model_outputs(
    model: nn.Module, x: Tensor, *, training: bool
) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]:
    """Write the outputs of a model for a batch as a function of its parameters, with the present ones; see `model_loss`."""
    function, params = model_loss(model, lambda output, _: output, x, x, training=training)
    return function, params


def gauss_newton(outputs: Callable[[Parameters], Tensor], loss: Callable[[Tensor], Tensor], params: Parameters) -> Tensor:
    """Return the generalized Gauss-Newton matrix, dense, shape (P, P); see `gauss_newton_operator`.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> gauss_newton(lambda w: x @ w, lambda output: 0.5 * output.square().sum(), torch.zeros(2))
        tensor([[1., 2.],
                [2., 4.]])
    """
    flat_outputs, vector = as_vector(outputs, params)
    value = flat_outputs(vector).detach()
    slopes = jacrev(lambda at: flat_outputs(at).flatten(), chunk_size=64)(vector)
    matrix: Tensor = slopes.T @ hessian(loss, value) @ slopes
    return matrix.detach()


def gauss_newton_operator(
    outputs: Callable[[Parameters], Tensor], loss: Callable[[Tensor], Tensor], params: Parameters
) -> Operator:
    r"""Return the function v ↦ Gv for the generalized Gauss-Newton matrix $G = J^\top H J$.

    J is the Jacobian of the outputs in the parameters, H the Hessian of the loss in the outputs. G is the Hessian of the loss with
    the outputs replaced by their linear part: positive semidefinite if the loss is convex in them. If the loss is the mean
    negative log-likelihood of an exponential family whose natural parameters the outputs are, G is the mean Fisher information
    matrix: so for softmax and cross-entropy, the logistic function and its cross-entropy, and half the squared error (variance 1).

    Args:
        outputs: function of the parameters, for example from `model_outputs`.
        loss: function of the outputs that returns a scalar.
        params: where; one tensor, or tensors by name.

    Returns:
        A function of vectors (P,); each product costs about three backward passes, with nothing of size (P, P).

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> product = gauss_newton_operator(lambda w: x @ w, lambda output: 0.5 * output.square().sum(), torch.zeros(2))
        >>> product(torch.tensor([1.0, 0.0]))
        tensor([1., 2.])

    Source: `schraudolph2002`.
    """
    flat_outputs, vector = as_vector(outputs, params)
    value, pull, *_ = vjp(flat_outputs, vector)
    push = vjp(lambda u: pull(u)[0], torch.zeros_like(value))[1]  # Jᵀu is linear in u, so its pullback is J
    bend = vjp(grad(loss), value.detach())[1]
    return lambda v: pull(bend(push(v)[0].detach())[0].detach())[0].detach()


def _no_loss(params: Any) -> Tensor:
    return torch.zeros(())
