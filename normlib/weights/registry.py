"""The table of weight norms, and `parametrize_weight`, which puts one on a layer.

A target is a callable `f(weight, **arguments)` that returns the parametrization of a weight of that shape, device and dtype.
A new weight norm is one file and one line here; the tests of the package then run over it.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from normlib.registry import Registry
from normlib.spec import parse_spec
from normlib.weights.rows import WeightError, check_rows, parametrization_of

Layer = TypeVar("Layer", bound=nn.Module)

WEIGHT_NORMS = Registry(
    "weight norm",
    {
        "weight": "normlib.weights.norm:WeightNorm",
        "centered_weight": "normlib.weights.norm:CenteredWeightNorm",
        "standardized_weight": "normlib.weights.standardization:WeightStandardization",
        "scaled_weight": "normlib.weights.standardization:ScaledWeightStandardization",
        "spectral": "normlib.weights.registry:spectral",
    },
    hint="A spec reads 'name' or 'name:argument=value,argument=value'.",
)


def parametrize_weight(layer: Layer, spec: str, name: str = "weight") -> Layer:
    """Put the weight norm that a spec names on a weight of a layer.

    From then on `layer.weight` is the normalized weight, computed anew when it is asked for; what is learned stands in
    `layer.parametrizations.weight`. So draw the raw weight before, and make the optimizer after.
    `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")` ends it and leaves the normalized weight.

    Args:
        layer: a linear layer, a convolution, or any module with a weight of shape (outputs, *).
        spec: for example `"weight"`, `"standardized_weight"`, `"scaled_weight:gain=relu"`, `"spectral:n_power_iterations=3"`.
        name: the name of the weight.

    Returns:
        The layer itself.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
        WeightError: if the layer has no such weight, if it is parametrized already, if its outputs are not its first axis, or if
            its shape does not fit.

    Example:
        >>> import torch
        >>> layer = parametrize_weight(nn.Linear(4, 2), "scaled_weight:gain=1.0")
        >>> torch.allclose(layer.weight.norm(dim=1), torch.ones(2))
        True
    """
    kind, arguments = parse_spec(spec, WEIGHT_NORMS)
    weight = _weight_of(layer, name)
    parametrize.register_parametrization(layer, name, WEIGHT_NORMS[kind](weight, **arguments), unsafe=True)  # no trial run
    return layer


def spectral(weight: Tensor, n_power_iterations: int = 1, eps: float = 1e-12) -> nn.Module:
    r"""Make torch's parametrization that divides a weight by its largest singular value.

    **Idea.** The layer can stretch no input by more than a factor of 1.

    **Formula.** $\hat W = W / \sigma_1(W)$, where $W$ is the matrix whose rows are the outputs'. One value for the whole weight,
    where the other weight norms have one per output.

    **Train and eval.** The singular vectors are buffers, drawn from torch's global generator and estimated by power iteration;
    in training each use of the weight does `n_power_iterations` more.

    **Departures.** From the paper: for a convolution $\sigma_1$ is that of the weight as a matrix, there as here, which is not
    the norm of the convolution. From torch: none, this is `torch.nn.utils.parametrizations.spectral_norm`.

    Args:
        weight: the weight to act on.
        n_power_iterations: steps of the power iteration for each use in training.
        eps: added to norms that are divided by in the iteration.

    Raises:
        WeightError: if the weight has fewer than two axes.

    Example:
        >>> import torch
        >>> layer = parametrize_weight(nn.Linear(4, 2), "spectral")
        >>> bool((torch.linalg.matrix_norm(layer.weight, 2) - 1).abs() < 1e-2)
        True

    Source: `miyato2018`.
    """
    check_rows("spectral", weight, centers=False)
    holder = nn.Module()
    holder.weight = nn.Parameter(weight.detach())
    parametrizations.spectral_norm(holder, "weight", n_power_iterations, eps)
    return parametrization_of(holder, "weight")[0]


def _weight_of(layer: nn.Module, name: str) -> Tensor:
    """Return the weight to be parametrized, or say why it cannot be."""
    what = type(layer).__name__
    if parametrize.is_parametrized(layer, name):
        raise WeightError(
            f"{name} of {what} is parametrized already, by {type(parametrization_of(layer, name)[0]).__name__}. "
            f"First remove that: torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})."
        )
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        raise WeightError(
            f"the outputs of {what} are axis 1 of its weight, and weight norms take axis 0 for them. torch's own weight_norm and "
            "spectral_norm in torch.nn.utils.parametrizations take dim=1; or use Upsample and a convolution."
        )
    weight = layer._parameters.get(name)
    if weight is None:
        held = ", ".join(layer._parameters) or "none of its own; pass the layer inside it"
        raise WeightError(f"{what} has no parameter named {name!r}. Its parameters: {held}.")
    return weight
