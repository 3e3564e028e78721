"""Formula or fast path: which of its two ways a normalizer computes by.

Each normalizer of this package is written twice. The **formula** is a pure function on tensors that reads like the equation
in the paper. The **fast path** is a fused operation of torch with the same value and the same gradient; tests hold the two
equal. Modules take the fast path; under `reference` they take the formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")

_BY_FORMULA: ContextVar[bool] = ContextVar("normlib_by_formula", default=False)
_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def reference(enabled: bool = True) -> Iterator[None]:
    """Run every normalizer by its formula while the context lasts.

    The switch belongs to the thread (or asyncio task) that sets it; contexts nest, and an inner `reference(False)` turns the
    fast path on again. Code compiled with `torch.compile` keeps the fast path.

    Args:
        enabled: whether modules run by formula inside the context.

    Example:
        >>> with reference():
        ...     by_formula()
        True
        >>> by_formula()
        False
    """
    token = _BY_FORMULA.set(enabled)
    try:
        yield
    finally:
        _BY_FORMULA.reset(token)


def by_formula() -> bool:
    """Return whether a module should compute by its formula now (see `reference`)."""
    return not torch.compiler.is_compiling() and _BY_FORMULA.get()  # a compiler cannot trace a context variable


def formula(
    function: Callable[Concatenate[Tensor, Arguments], Tensor],
) -> Callable[Concatenate[Tensor, Arguments], Tensor]:
    """Decorate a formula so that it treats half precision as the fused operations do.

    A float16 or bfloat16 input is computed in float32 and the result returned in the input's dtype. Other dtypes pass as
    they are.
    """

    @functools.wraps(function)
    def in_wide_precision(x: Tensor, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        if x.dtype in _HALF:
            return function(x.float(), *args, **kwargs).to(x.dtype)
        return function(x, *args, **kwargs)

    return in_wide_precision
