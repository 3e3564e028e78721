"""Second derivatives of a loss: the dense Hessian of small models, its product with a vector, its largest eigenvalues.

The functions take a loss as a function of parameters, and the parameters: one tensor, or tensors by name. A Hessian of P
parameters in all is (P, P), and a vector (P,); tensors by name follow one another in their order. `model_loss` turns a model into
such a pair, with train or eval mode spelled out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import grad, jacrev, vjp

from normlib.errors import NormlibError
from normlib.probes.parameters import Parameters, as_vector, finite, random_unit, trainable
from normlib.probes.state import call_on_copies, preserved

Method = Literal["lanczos", "power"]
_DENSE = 32  # below this many parameters the dense Hessian is quicker, and Lanczos needs room


def model_loss(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, training: bool
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], dict[str, Tensor]]:
    """Write the loss of a model on a data set as a function of its parameters.

    Args:
        model: any model; it is left as it is.
        loss_fn: function of output and target that returns a scalar.
        x: inputs.
        y: targets.
        training: True for train mode: a batch norm takes its statistics from `x`, and derivatives go through them. False for
            eval mode: running statistics, as constants.

    Returns:
        The function, and the present parameters by name (those that require a gradient), detached.

    Raises:
        NormlibError: if no parameter requires a gradient.
    """

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        with preserved(model, training):
            return loss_fn(call_on_copies(model, params, x), y)

    return loss, trainable(model)


def hessian(loss: Callable[[Parameters], Tensor], params: Parameters) -> Tensor:
    """Return the Hessian of a loss at `params`, dense, shape (P, P): for up to some thousand parameters.

    Args:
        loss: function of the parameters that returns a scalar.
        params: where; one tensor, or tensors by name.

    Example:
        >>> hessian(lambda w: w[0] ** 2 + 3 * w[0] * w[1], torch.tensor([1.0, 1.0]))
        tensor([[2., 3.],
                [3., 0.]])
    """
    flat_loss, vector = as_vector(loss, params)
    matrix: Tensor = jacrev(grad(flat_loss), chunk_size=64)(vector)
    return matrix.detach()


def hessian_operator(loss: Callable[[Parameters], Tensor], params: Parameters) -> Callable[[Tensor], Tensor]:
    """Return the function v ↦ Hv for vectors (P,). The gradient is computed once; each product costs about one backward pass.

    Source: `pearlmutter1994`.
    """
    flat_loss, vector = as_vector(loss, params)
    pull = vjp(grad(flat_loss), vector)[1]
    return lambda v: pull(v)[0].detach()


def hessian_vector_product(loss: Callable[[Parameters], Tensor], params: Parameters, vector: Tensor) -> Tensor:
    """Return Hv for one vector of shape (P,); for many products take `hessian_operator`."""
    return hessian_operator(loss, params)(vector)


def top_eigenvalue(
    loss: Callable[[Parameters], Tensor],
    params: Parameters,
    *,
    method: Method = "lanczos",
    tolerance: float = 1e-4,
    max_products: int = 1000,
    seed: int = 0,
) -> float:
    """Return the largest eigenvalue of the Hessian without building it.

    Args:
        loss: function of the parameters that returns a scalar.
        params: where.
        method: "lanczos" finds the algebraically largest; "power", the iteration of `lecun1998`, eq. 63, the one largest in
            magnitude, with its sign.
        tolerance: relative. In float32 not much below 1e-5 can be reached.
        max_products: how many Hessian-vector products (Lanczos: restarts) to allow.
        seed: seed of the start vector.

    Raises:
        NormlibError: if the method is unknown, the Hessian is not finite, or the iteration does not converge.

    Example:
        >>> round(top_eigenvalue(lambda w: (torch.arange(50.0) * w**2).sum(), torch.zeros(50)), 2)
        98.0
    """
    if method not in get_args(Method):
        raise NormlibError(f"top_eigenvalue got method={method!r}; expected one of {', '.join(get_args(Method))}.")
    if method == "lanczos":
        return float(top_eigenvalues(loss, params, 1, tolerance=tolerance, max_restarts=max_products, seed=seed)[0])
    _, start = as_vector(loss, params)
    return _power_iteration(hessian_operator(loss, params), random_unit(start, seed), tolerance, max_products)


def top_eigenvalues(
    loss: Callable[[Parameters], Tensor],
    params: Parameters,
    count: int = 1,
    *,
    tolerance: float = 1e-4,
    max_restarts: int = 1000,
    seed: int = 0,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the `count` largest eigenvalues of the Hessian, largest first, by Lanczos iteration (scipy's eigsh).

    Args:
        loss: function of the parameters that returns a scalar.
        params: where.
        count: how many, at most P.
        tolerance: relative.
        max_restarts: of the iteration.
        seed: seed of the start vector.

    Raises:
        NormlibError: if `count` does not fit, the Hessian is not finite, or the iteration does not converge.
    """
    _, vector = as_vector(loss, params)
    size = len(vector)
    if not 1 <= count <= size:
        raise NormlibError(f"top_eigenvalues got count={count}, but there are {size} parameters.")
    product = hessian_operator(loss, params)
    if size <= max(_DENSE, 2 * count):
        return np.linalg.eigvalsh(finite(hessian(loss, params)).double().cpu().numpy())[::-1][:count]

    def matvec(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return finite(product(torch.as_tensor(v.ravel(), dtype=vector.dtype, device=vector.device))).double().cpu().numpy()

    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    start = random_unit(vector, seed).double().cpu().numpy()
    try:
        found = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance, maxiter=max_restarts, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise NormlibError(
            f"no {count} eigenvalues within {tolerance:g} after {max_restarts} restarts. Raise max_restarts or tolerance, "
            "or compute in float64."
        ) from error
    return np.sort(found)[::-1]


def _power_iteration(product: Callable[[Tensor], Tensor], v: Tensor, tolerance: float, max_products: int) -> float:
    """Apply the Hessian to a vector and normalize, until |Hv - λv|, which bounds the error of λ, is small enough."""
    for _ in range(max_products):
        image = finite(product(v))
        eigenvalue = float(v @ image)
        if float((image - eigenvalue * v).norm()) <= tolerance * abs(eigenvalue):
            return eigenvalue
        v = image / image.norm()
    raise NormlibError(
        f"power iteration has not converged within {max_products} products: the two eigenvalues largest in magnitude are too "
        "close. Take method='lanczos', or raise max_products or tolerance."
    )
