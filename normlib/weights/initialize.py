"""Data-dependent start of a network with weight normalization (`salimans2016`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.weights.norm import CenteredWeightNorm, WeightNorm
from normlib.weights.rows import WeightError, parametrization_of

_Conv = nn.modules.conv._ConvNd


@torch.no_grad()
def data_dependent_init(model: nn.Module, batch: Any) -> nn.Module:
    r"""Set lengths and biases so that each output of each weight-normalized layer has mean 0 and variance 1 on `batch`.

    Each layer computes $t = v \cdot x / \lVert v \rVert$ on the batch, as the layers before it, already set, pass it on, and
    then takes $g = 1 / \sigma[t]$ and $b = -\mu[t] / \sigma[t]$, with the biased $\sigma$. One forward pass sets all layers.
    The directions $v$ stay as they are drawn; the paper draws them from $N(0, 0.05^2)$. Centered weight normalization is
    set in the same way.

    The model runs in the mode that it is in: call `eval()` first for a start without dropout. Its buffers and torch's random
    state are afterwards as they were, and so are lengths and biases if there is an error.

    Args:
        model: linear layers and convolutions whose weight is parametrized by `WeightNorm` or `CenteredWeightNorm`, each with
            a bias and used once in a forward pass. Other layers are left alone.
        batch: what the model is called on; at least two values for each output.

    Returns:
        The model.

    Raises:
        WeightError: if there is no such layer; if one has no bias (its mean cannot be removed); if one is used twice, or not at
            all; or if an output does not vary over the batch.

    Example:
        >>> from normlib.weights import parametrize_weight
        >>> layer = parametrize_weight(nn.Linear(5, 3), "weight")
        >>> x = 2 + torch.randn(100, 5)
        >>> y = data_dependent_init(layer, x)(x)
        >>> bool(y.mean(0).abs().max() < 1e-5), torch.allclose(y.std(0, correction=0), torch.ones(3))
        (True, True)

    Source: `salimans2016`.
    """
    layers = {layer: name for name, layer in model.named_modules() if _is_normalized(layer)}
    _check(layers)
    done: set[nn.Module] = set()
    with _restored(model), _kept_on_error(layers), ExitStack() as hooks:
        for layer, name in layers.items():
            hooks.enter_context(_set_when_called(layer, name, done))
        model(batch)
        missed = [name for layer, name in layers.items() if layer not in done]
        if missed:
            raise WeightError(f"the forward pass on this batch does not call {', '.join(missed)}. Make it call every layer.")
    return model


def _is_normalized(layer: nn.Module) -> bool:
    if not (isinstance(layer, nn.Linear | _Conv) and parametrize.is_parametrized(layer, "weight")):
        return False
    return isinstance(parametrization_of(layer, "weight")[0], WeightNorm | CenteredWeightNorm)


def _check(layers: dict[nn.Module, str]) -> None:
    if not layers:
        raise WeightError(
            "the model has no linear layer or convolution with weight normalization. Parametrize its layers first, by "
            "parametrize_weight(layer, 'weight')."
        )
    for layer, name in layers.items():
        if layer.bias is None:
            raise WeightError(
                f"layer {name!r} has no bias, so the mean of its outputs cannot be set to 0. Make it with bias=True, or leave "
                "the start as it is."
            )


def _length_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return cast(Tensor, parametrization_of(layer, "weight").original0), cast(Tensor, layer.bias)


@contextmanager
def _set_when_called(layer: nn.Module, name: str, done: set[nn.Module]) -> Iterator[None]:
    """Hook `layer` so that its call sets its lengths and biases and returns what it computes with them."""
    g, bias = _length_and_bias(layer)

    def clear(layer: nn.Module, args: Any) -> None:
        if layer in done:
            raise WeightError(
                f"layer {name!r} is used twice in one forward pass, and one length and bias cannot standardize both of its "
                "outputs. Use two layers, or initialize it by hand."
            )
        done.add(layer)
        g.fill_(1)
        bias.zero_()

    def set_from(layer: nn.Module, args: Any, kwargs: Any, t: Tensor) -> Tensor:
        mean, std = _moments(layer, name, t)
        g.copy_((1 / std).view_as(g))
        bias.copy_(-mean / std)
        output: Tensor = layer.forward(*args, **kwargs)
        return output

    before = layer.register_forward_pre_hook(clear, prepend=True)
    after = layer.register_forward_hook(set_from, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _moments(layer: nn.Module, name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased standard deviation of each output of a layer."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    values = t.movedim(-1 - len(layer.kernel_size) if isinstance(layer, _Conv) else -1, 0).flatten(1)
    std, mean = torch.std_mean(values, 1, correction=0)
    still = ~(std > 4 * torch.finfo(t.dtype).eps * values.abs().amax(1))  # nan is still, too
    if still.any():
        raise WeightError(
            f"{int(still.sum())} of {len(std)} outputs of layer {name!r} do not vary over this batch, so no length gives them "
            "variance 1. Pass more than one sample, check that the input varies, or draw the weights anew."
        )
    return mean, std


@contextmanager
def _kept_on_error(layers: dict[nn.Module, str]) -> Iterator[None]:
    """Put lengths and biases back if the block raises."""
    parameters = [p for layer in layers for p in _length_and_bias(layer)]
    before = [p.clone() for p in parameters]
    try:
        yield
    except BaseException:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
        raise


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put buffers and the random state back when the block ends."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
