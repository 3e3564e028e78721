"""Optimizers by name, and which parameters weight decay takes hold of."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from normlib.errors import NormlibError, unknown
from normlib.registry import Registry
from normlib.spec import parse_spec

Decay = Literal["all", "weights"]
Groups = list[dict[str, Any]]

OPTIMIZERS = Registry(
    "optimizer",
    {
        "sgd": "normlib.training.optimizers:sgd",
        "adam": "normlib.training.optimizers:adam",
        "adamw": "normlib.training.optimizers:adamw",
    },
    hint="A spec reads 'name' or 'name:argument=value', as in 'sgd:nesterov=True'.",
)


def make_optimizer(
    spec: str,
    model: nn.Module,
    rate: float | Tensor,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: Decay = "all",
) -> torch.optim.Optimizer:
    """Build the optimizer of a model's parameters.

    Args:
        spec: for example `"sgd"`, `"sgd:nesterov=True"`, `"adamw:beta2=0.95"`.
        model: any model.
        rate: learning rate; a tensor on the model's device makes an optimizer that a CUDA graph can hold.
        momentum: of `"sgd"`; can as well stand in the spec.
        weight_decay: coefficient of ½‖w‖². `"adamw"` takes η·weight_decay·w off the weights instead.
        decay: "all" parameters, or "weights" alone, see `weights_and_others`.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if a name or an argument is not known; the message holds the nearest match.
        NormlibError: if the momentum is given twice, or is missing.

    Example:
        >>> optimizer = make_optimizer("sgd:nesterov=True", nn.Linear(3, 2), 0.1, momentum=0.9, weight_decay=1e-4, decay="weights")
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.0001, 0.0]
    """
    if momentum:
        if "momentum" in parse_spec(spec, OPTIMIZERS)[1]:
            raise NormlibError(f"the momentum is {momentum} and stands in the optimizer {spec!r} too. Leave one out.")
        spec = f"{spec}{',' if ':' in spec else ':'}momentum={momentum!r}"
    name, arguments = parse_spec(spec, OPTIMIZERS)
    optimizer: torch.optim.Optimizer = OPTIMIZERS[name](_groups(model, rate, weight_decay, decay), **arguments)
    return optimizer


def sgd(groups: Groups, momentum: float = 0.0, nesterov: bool = False) -> torch.optim.Optimizer:
    r"""Build stochastic gradient descent: $v \leftarrow \mu v + g$, $w \leftarrow w - \eta v$, and $v = g$ in the first step.

    Args:
        groups: parameter groups with `lr` and `weight_decay`.
        momentum: $\mu$; the velocity is a sum of gradients, not a mean.
        nesterov: step along $g + \mu v$.

    Source: `sutskever2013` for momentum and Nesterov's step; there the velocity holds the rate.
    """
    if nesterov and not momentum > 0:
        raise NormlibError("Nesterov's step needs a momentum: momentum=0.9, or 'sgd:nesterov=True,momentum=0.9'.")
    held = _on_device(groups)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, foreach=None if held else True, fused=held or None)


def adam(groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Build Adam; weight decay is added to the gradient.

    Source: `kingma2015`.
    """
    return torch.optim.Adam(groups, betas=(beta1, beta2), eps=eps, foreach=True, capturable=_on_device(groups))


def adamw(groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Build AdamW; weight decay acts on the weights, apart from the gradient.

    Source: `loshchilov2019`.
    """
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=eps, foreach=True, capturable=_on_device(groups))


def weights_and_others(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part a model's parameters into weights, and what is none: biases, gains, scalars, and all parameters of norms.

    A weight has more values than outputs: two axes or more, and more than one value to each entry of the first. So the gain of
    a weight norm is none, nor is the weight of a layer with one input. A parameter of a layer with a `normalized_shape` is none.

    Args:
        model: any model.

    Returns:
        Both lists in the order of `model.parameters()`.

    Example:
        >>> weights, others = weights_and_others(nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm([8, 5, 5])))
        >>> [tuple(p.shape) for p in weights], [tuple(p.shape) for p in others]
        ([(8, 3, 3, 3)], [(8,), (8, 5, 5), (8, 5, 5)])

    Source: `goyal2017`, section 5.1, which decays neither gains nor biases of norms.
    """
    norms = {p for module in model.modules() if hasattr(module, "normalized_shape") for p in module.parameters(recurse=False)}
    weights = {p for p in model.parameters() if p.ndim >= 2 and p.numel() > p.shape[0] and p not in norms}
    return [p for p in model.parameters() if p in weights], [p for p in model.parameters() if p not in weights]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of an optimizer its rate for the next step; on a device without waiting for it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _groups(model: nn.Module, rate: float | Tensor, weight_decay: float, decay: str) -> Groups:
    if decay not in get_args(Decay):
        raise unknown("set of parameters to decay", decay, get_args(Decay))
    if decay == "all":
        return [{"params": list(model.parameters()), "lr": rate, "weight_decay": weight_decay}]
    parts = zip(weights_and_others(model), (weight_decay, 0.0), strict=True)
    return [{"params": part, "lr": rate, "weight_decay": coefficient} for part, coefficient in parts if part]


def _on_device(groups: Groups) -> bool:
    return isinstance(groups[0]["lr"], Tensor)
