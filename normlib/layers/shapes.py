"""Shapes that normalizers expect: broadcasting per-channel vectors, and errors that say what to change."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normlib.errors import NormlibError

MAX_FUSED_RANK = 5  # what cuDNN takes; beyond it positions are flattened into one axis


class ShapeError(NormlibError, ValueError):
    """A tensor or a number of channels that a normalizer cannot work with; the message holds the fix."""


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """View a vector of shape (C,) so that it broadcasts along axis 1 of `x` (N, C, *)."""
    return vector.view(-1, *[1] * (x.ndim - 2))


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `y * weight + bias`, where None leaves a factor or a term out."""
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def channel_affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `y * weight + bias` with weight and bias of shape (C,) along axis 1 of `y` (N, C, *)."""
    return affine(
        y,
        None if weight is None else per_channel(weight, y),
        None if bias is None else per_channel(bias, y),
    )


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number in ascending order.

    Example:
        >>> divisors(12)
        [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, number + 1) if number % d == 0]


def check_channels(layer: str, x: Tensor, channels: int) -> None:
    """Check that `x` is (N, C, *) with C = `channels`.

    Raises:
        ShapeError: if it is not.
    """
    if x.ndim >= 2 and x.shape[1] == channels:
        return
    fix = "Add the batch axis with x[None]." if x.ndim and x.shape[0] == channels else _axis_hint(x, channels)
    raise ShapeError(f"{layer} expects input of shape (N, {channels}, *) with channels in axis 1, but got {tuple(x.shape)}. {fix}")


def _axis_hint(x: Tensor, channels: int) -> str:
    if x.ndim > 2 and x.shape[-1] == channels:
        return "The channels look to be last: move them with x.movedim(-1, 1)."
    return "Make the layer with as many channels as the input has."


def check_trailing(layer: str, x: Tensor, normalized_shape: Sequence[int]) -> None:
    """Check that the last axes of `x` have the sizes `normalized_shape`.

    Raises:
        ShapeError: if they have not.
    """
    wanted = tuple(normalized_shape)
    if tuple(x.shape[-len(wanted) :]) != wanted:
        sizes = ", ".join(map(str, wanted))
        raise ShapeError(
            f"{layer} expects input of shape (*, {sizes}), the sizes in normalized_shape last, but got {tuple(x.shape)}. "
            "For channels in axis 1 use ChannelLayerNorm or ChannelRMSNorm, or move them last with x.movedim(1, -1)."
        )


def check_count(count: int, each: str, x: Tensor, fix: str) -> None:
    """Check that more than one value goes into each mean and variance.

    Args:
        count: how many values share a mean and a variance.
        each: what shares them, in words: "channel when training".
        x: the input, for its shape.
        fix: what to do about it.

    Raises:
        ShapeError: if `count` is 1: the value less its own mean is 0 whatever the value.
    """
    if count == 1:
        raise ShapeError(f"Expected more than 1 value per {each}, got input size {tuple(x.shape)}. {fix}")
