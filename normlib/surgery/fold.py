"""Fold batch norm into the layer before it: at inference it is an affine map per channel, and costs nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from normlib.errors import NormlibError
from normlib.layers import BatchNorm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    r"""Fold each batch norm that directly follows a convolution or a linear layer into that layer, for inference.

    With running mean $\mu$ and variance $\sigma^2$ the norm is $y = a\,z + \beta - a\,\mu$ with
    $a = \gamma / \sqrt{\sigma^2 + \epsilon}$, a map per channel; so $W \to a W$ and $b \to a\,(b - \mu) + \beta$ give the same
    output without it. A norm before its layer, or after a sum, stays.

    Args:
        model: a network that `torch.fx` can trace; it is not changed.

    Returns:
        A copy in evaluation mode, of the same class, with the identity in the place of each folded norm. Weight
        parametrizations of folded layers are made permanent.

    Raises:
        NormlibError: if the model cannot be traced, or nothing in it can be folded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm(8), nn.ReLU()).eval()
        >>> x = torch.randn(2, 3, 5, 5)
        >>> folded = fold_batch_norm(net)
        >>> type(folded[1]).__name__, torch.allclose(folded(x), net(x), atol=1e-6)
        ('Identity', True)

    Source: `ioffe2015`, algorithm 2.
    """
    folded = copy.deepcopy(model).eval()
    try:
        graph = _Tracer().trace(folded)
    except Exception as error:  # whatever the model's own forward raises on a proxy
        raise NormlibError(
            f"{type(model).__name__} cannot be traced by torch.fx ({error}). Fold its traceable parts one by one, as in "
            "model.features = fold_batch_norm(model.features)."
        ) from error
    modules = dict(folded.named_modules(remove_duplicate=False))
    pairs = _pairs(graph, modules)
    if not pairs:
        raise NormlibError(f"{type(model).__name__} has no batch norm directly after a convolution or a linear layer to fold.")
    for layer_name, norm_name in pairs:
        _replace(folded, layer_name, _fused(modules[layer_name], modules[norm_name]))
        _replace(folded, norm_name, nn.Identity())
    return folded


class _Tracer(fx.Tracer):
    """Takes every layer with a weight and every norm as one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or not any(m.children()) or parametrize.is_parametrized(m)


def _pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Return the names of each layer and norm that can be folded: each is called once, and the norm alone hears the layer."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = [id(modules[str(node.target)]) for node in calls]
    pairs = []
    for node in calls:
        before: Any = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        layer, norm = modules[str(before.target)], modules[str(node.target)]
        once = called.count(id(layer)) == called.count(id(norm)) == 1
        if once and isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) and _is_affine_map(norm):
            pairs.append((str(before.target), str(node.target)))
    return pairs


def _is_affine_map(norm: nn.Module) -> bool:
    """Return whether a module is, in evaluation, batch norm by running statistics."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False
    return not isinstance(norm, BatchNorm) or type(norm)._in_evaluation is BatchNorm._in_evaluation


@torch.no_grad()
def _fused(layer: Any, norm: Any) -> nn.Module:
    """Return the layer with the norm in its weight and bias."""
    layer = _plain(layer)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _CONVOLUTIONS[3:]))


def _plain(layer: Any) -> Any:
    """Return a layer of the same weights without parametrizations.

    `remove_parametrizations` would not do: a copy shares its class with the model, which would lose its weight.
    """
    if not parametrize.is_parametrized(layer):
        return layer
    original: Any = type(layer).__bases__[0]
    plain = original.__new__(original)
    plain.__dict__.update(layer.__dict__)
    plain._modules = {name: child for name, child in layer._modules.items() if name != "parametrizations"}
    plain._parameters = dict(layer._parameters)
    for name in layer.parametrizations:
        plain._parameters[name] = nn.Parameter(getattr(layer, name).detach().clone())
    return plain


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = new
