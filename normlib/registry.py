"""One table per kind of thing: norms, networks, data sets, studies.

A table maps a name to where the thing is defined (`"module:attribute"`) and imports it when first asked. As the
targets are text, the lab can tell which code a name stands for without importing any of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from normlib.errors import unknown


class Registry(Mapping[str, Any]):
    """Names and the places of what they name.

    Args:
        kind: what is registered, in the words of an error message ("norm", "data set").
        targets: name to `"module:attribute"`.
        hint: one more sentence for the error on an unknown name.

    Raises:
        UnknownNameError: on `registry[name]` for a name that is not there; it holds the nearest match.

    Example:
        >>> shapes = Registry("shape", {"ordered": "collections:OrderedDict"})
        >>> shapes["ordered"]([(1, 2)])[1]
        2
    """

    def __init__(self, kind: str, targets: Mapping[str, str], hint: str = "") -> None:
        self.kind = kind
        self.hint = hint
        self._targets = dict(targets)

    def __getitem__(self, name: str) -> Any:
        if name not in self._targets:
            raise unknown(self.kind, name, self._targets, self.hint)
        module, _, attribute = self._targets[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)
