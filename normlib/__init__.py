"""normlib: normalizers, probes and studies; the library behind the book *Long Live Normalization*.

The names below are imported when they are first used, so `import normlib` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "BatchNorm": "normlib.layers",
    "GroupNorm": "normlib.layers",
    "InstanceNorm": "normlib.layers",
    "LayerNorm": "normlib.layers",
    "NORMS": "normlib.layers",
    "RMSNorm": "normlib.layers",
    "fold_batch_norm": "normlib.surgery",
    "make_norm": "normlib.layers",
    "normalize": "normlib.surgery",
    "reestimate_statistics": "normlib.surgery",
    "swap": "normlib.surgery",
    "reference": "normlib.layers",
    "show": "normlib.book.display",
    "scoreboard": "normlib.book.display",
    "claims_table": "normlib.book.display",
    "figures_table": "normlib.book.display",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'normlib' has no attribute {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
