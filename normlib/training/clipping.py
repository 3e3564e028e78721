"""Adaptive gradient clipping (`brock2021b`): no unit's gradient exceeds a fixed fraction of the unit's weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.registry import Registry
from normlib.spec import parse_spec

CLIPS = Registry(
    "gradient clipping",
    {
        "none": "normlib.training.clipping:no_clip",
        "agc": "normlib.training.clipping:agc",
        "norm": "normlib.training.clipping:norm_clip",
    },
    hint="A spec reads 'name' or 'name:argument=value', as in 'agc:clipping=0.01,exempt=head'.",
)


def make_clip(spec: str, model: nn.Module) -> Callable[[], None]:
    """Return the function that clips the gradients of a model, to be called between `backward()` and `optimizer.step()`.

    Args:
        spec: `"none"`, `"agc:clipping=0.01,exempt=head"` or `"norm:limit=1"`.
        model: any model.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if a name or an argument is not known, or names no parameter; the message holds the nearest match.
        NormlibError: if a limit is not positive.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> model(torch.full((1, 1), 1e3)).sum().backward()
        >>> make_clip("norm:limit=0.5", model)()
        >>> round(float(torch.stack([p.grad.norm() for p in model.parameters()]).norm()), 4)
        0.5
    """
    name, arguments = parse_spec(spec, CLIPS)
    clip: Callable[[], None] = CLIPS[name](model, **arguments)
    return clip


def no_clip(model: nn.Module) -> Callable[[], None]:
    """Leave the gradients as they are."""
    return lambda: None


def agc(model: nn.Module, clipping: float = 0.01, eps: float = 1e-3, exempt: str = "") -> Callable[[], None]:
    """Clip by `adaptive_clip_grad_` all parameters but those named in `exempt`, with bars between names: `"head|*.bias"`.

    Source: `brock2021b`.
    """
    clipped = parameters_except(model, *(name for name in exempt.split("|") if name))
    if not (clipping > 0 and eps > 0 and clipped):
        raise NormlibError(
            f"agc got clipping={clipping}, eps={eps}, exempt={exempt!r}; both must be positive, some parameters left."
        )
    return lambda: _discard(adaptive_clip_grad_(clipped, clipping, eps))


def norm_clip(model: nn.Module, limit: float = 1.0) -> Callable[[], None]:
    """Scale all gradients together such that their norm is at most `limit`.

    Source: `pascanu2013`.
    """
    parameters = list(model.parameters())
    if not limit > 0:
        raise NormlibError(f"clipping by the norm got limit={limit}; expected a positive number, as in 'norm:limit=1'.")
    return lambda: _discard(nn.utils.clip_grad_norm_(parameters, limit))


def unitwise_norm(tensor: Tensor) -> Tensor:
    """Return the norm of each unit, kept in axes of size 1 so that it broadcasts against the tensor.

    A unit of a weight (outputs, inputs, *) is one output: the norm is over its fan-in, all axes but the first. That is a row
    of a linear layer, a filter of a convolution of any rank, the vector of one token in an embedding. A vector (gains,
    biases) and a scalar are one unit each. The weight of a transposed convolution has its inputs first, so its units would
    be inputs.

    Args:
        tensor: a parameter or its gradient, of any rank.

    Returns:
        Norms in float32 or wider; of shape (outputs, 1, ...) or, for a vector or a scalar, ().

    Example:
        >>> unitwise_norm(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]))
        tensor([[5.],
                [2.]])

    Source: `brock2021b`.
    """
    wide = torch.promote_types(tensor.dtype, torch.float32)
    if tensor.ndim <= 1:
        return torch.linalg.vector_norm(tensor, dtype=wide)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True, dtype=wide)


def adaptive_clip(gradient: Tensor, weight: Tensor, clipping: float = 0.01, eps: float = 1e-3) -> Tensor:
    r"""Scale down the gradient of each unit whose norm exceeds $\lambda \max(\|W_i\|, \epsilon)$, to that norm.

    Args:
        gradient: gradient $G$ of a parameter.
        weight: the parameter $W$.
        clipping: $\lambda$.
        eps: the least norm that a unit counts with, so that units that start at zero can move.

    Returns:
        A tensor of the shape of `gradient`; units within the limit are returned bit for bit.

    Example:
        >>> adaptive_clip(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.ones(2, 2), clipping=0.5**0.5)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])

    Source: `brock2021b`.
    """
    limit = clipping * unitwise_norm(weight).clamp(min=eps)
    norm = unitwise_norm(gradient)
    return torch.where(norm <= limit, gradient, gradient * (limit / norm)).to(gradient.dtype)


@torch.no_grad()
def adaptive_clip_grad_(parameters: Tensor | Iterable[Tensor], clipping: float = 0.01, eps: float = 1e-3) -> Tensor:
    r"""Clip the gradients of parameters adaptively, in place: `adaptive_clip` for each.

    **Idea.** Plain gradient descent changes a unit by $\|\Delta W_i\| / \|W_i\| = \eta \|G_i\| / \|W_i\|$, relative to its
    size. Clipping that ratio bounds the relative change of every unit by $\eta \lambda$; a limit on the norm of the whole
    gradient takes no account of the size of the weights.

    **Place.** Between `backward()` and `optimizer.step()`, on the raw gradient. torch's optimizers add weight decay and
    momentum inside `step`, so after it, as the method wants. Do not clip globally as well; gradients that a `GradScaler` has
    scaled are unscaled first.

    **Which parameters.** All but the classifier's: `parameters_except(model, "head")`. Parametrized weights are clipped as
    they are stored (`parametrizations.weight.original`), not as the layer computes them. Parameters without a gradient are
    passed over.

    **Not finite.** A NaN or an infinity makes the gradient of its unit NaN, in whole or in part: it is not hidden.

    **Departures.** A weight of fan-in 1 has one unit per output, not one in all as in the paper's code.

    Args:
        parameters: parameters with gradients, or one; a list, as an iterator would be empty at the second step.
        clipping: $\lambda$; the paper's default for batches of 1024 to 4096. The larger the batch, the smaller.
        eps: see `adaptive_clip`.

    Returns:
        The fraction of units that were clipped, a tensor of shape (). Nothing here waits for the device.

    Raises:
        NormlibError: if there are no parameters, a model was passed, or `clipping` or `eps` is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> clipped = parameters_except(model, "2")
        >>> model(torch.ones(1, 2)).square().sum().backward()
        >>> _ = adaptive_clip_grad_(clipped, clipping=0.01)
        >>> bool((unitwise_norm(model[0].weight.grad) <= 0.0101 * unitwise_norm(model[0].weight)).all())
        True

    Source: `brock2021b`.
    """
    if isinstance(parameters, nn.Module):
        raise NormlibError("adaptive_clip_grad_ got a model. Pass its parameters: parameters_except(model, 'head'), say.")
    if not (clipping > 0 and eps > 0):
        raise NormlibError(f"adaptive_clip_grad_ got clipping={clipping} and eps={eps}; both must be positive, as 0.01 and 1e-3.")
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not given:
        raise NormlibError("adaptive_clip_grad_ got no parameters. An iterator is used up by its first pass: pass a list.")
    pairs = [(weight, weight.grad) for weight in given if weight.grad is not None]
    if not pairs:
        return torch.zeros((), device=given[0].device)
    return _clip([weight for weight, _ in pairs], [gradient for _, gradient in pairs], clipping, eps)


def parameters_except(model: nn.Module, *exempt: str) -> list[nn.Parameter]:
    """List the parameters of a model but for those that are named: what to clip, or what to decay.

    Args:
        model: any model.
        *exempt: names of modules, as in `model.named_modules()`, which stand for all their parameters; or of parameters, as
            in `model.named_parameters()`; or patterns of those, such as "*.bias". A parameter that several modules share is
            exempt if any of its names is.

    Returns:
        The other parameters, each once, in the order of `model.parameters()`.

    Raises:
        UnknownNameError: if a name matches no parameter; the message holds the nearest match.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
        >>> [tuple(p.shape) for p in parameters_except(model, "1", "0.bias")]
        [(4, 2)]
    """
    named = list(model.named_parameters(remove_duplicate=False))
    left_out: set[nn.Parameter] = set()
    for name in exempt:
        matching = {parameter for full, parameter in named if any(fnmatch.fnmatchcase(part, name) for part in _prefixes(full))}
        if not matching:
            raise unknown("module or parameter of the model", name, {part for full, _ in named for part in _prefixes(full)})
        left_out |= matching
    return [parameter for parameter in model.parameters() if parameter not in left_out]


def _clip(weights: list[Tensor], gradients: list[Tensor], clipping: float, eps: float) -> Tensor:
    """Clip each gradient; the small tensors of norms are handled together, which saves launches on a GPU."""
    factors = [unitwise_norm(weight) for weight in weights]
    torch._foreach_clamp_min_(factors, eps)
    torch._foreach_mul_(factors, clipping)
    torch._foreach_div_(factors, [unitwise_norm(gradient) for gradient in gradients])
    torch._foreach_clamp_max_(factors, 1.0)  # times 1 is bit for bit the same
    torch._foreach_mul_(gradients, factors)
    every = torch.cat([factor.flatten().to(factors[0].device) for factor in factors])
    return (every < 1).to(every.dtype).mean()


def _discard(_: Tensor) -> None:
    """Take a value that nobody reads."""


def _prefixes(name: str) -> list[str]:
    """Return "a", "a.b" and "a.b.c" of "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
