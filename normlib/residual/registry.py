"""The table of residual schemes, and `make_residual`, which builds one from its spec.

A target is a callable `f(stages, *, device, dtype, **arguments)` that returns a `ResidualScheme`. A new scheme is one file and
one line here; the tests of the package then run over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normlib.registry import Registry
from normlib.residual.scheme import ResidualScheme
from normlib.spec import parse_spec

RESIDUALS = Registry(
    "residual scheme",
    {
        "sum": "normlib.residual.scheme:ResidualScheme",
        "scaled_sum": "normlib.residual.scheme:ScaledSum",
        "skipinit": "normlib.residual.skipinit:SkipInit",
        "rezero": "normlib.residual.skipinit:ReZero",
        "fixup": "normlib.residual.fixup:Fixup",
        "rescale": "normlib.residual.rescale:RescaleNet",
        "nf": "normlib.residual.nf:NormalizerFree",
    },
    hint="A spec reads 'name' or 'name:argument=value,argument=value'.",
)


def make_residual(spec: str, stages: Sequence[int], **factory_kwargs: Any) -> ResidualScheme:
    """Build the residual scheme that a spec names.

    Args:
        spec: for example `"sum"`, `"skipinit"`, `"skipinit:gain=1/sqrt(d)"`, `"fixup"`, `"nf:alpha=0.2,gain=0"`.
        stages: number of blocks in each stage of the network.
        **factory_kwargs: torch's `device` and `dtype`.

    Returns:
        A scheme that builds the parts of each block, see `ResidualScheme`.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
        NormlibError: if `stages` is not a list of block counts.

    Example:
        A residual network of three blocks, any scheme:

        >>> import torch
        >>> from torch import nn
        >>> scheme = make_residual("nf:alpha=1", [3])
        >>> branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        >>> entries = [scheme.entry(0, block) for block in range(3)]
        >>> joins = [scheme.join(0, block) for block in range(3)]
        >>> scheme.initialize(branches, nn.Linear(4, 2))
        >>> x = torch.randn(5, 4)
        >>> for entry, branch, join in zip(entries, branches, joins):
        ...     x = join(x, branch(entry(x)))
        >>> x.shape
        torch.Size([5, 4])
    """
    name, arguments = parse_spec(spec, RESIDUALS)
    scheme: ResidualScheme = RESIDUALS[name](stages, **arguments, **factory_kwargs)
    return scheme
