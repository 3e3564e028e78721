"""Spec strings: one short text names any arm of any study, `"group:size=8"`.

What a name stands for is looked up in a `Registry`: norms, weight norms, initializations and others have one each.

A spec is a name, then after a colon `argument=value` pairs with commas between them. Values read as Python's: integers,
floats, `True`, `False`, `None`; anything else is text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from normlib.errors import NormlibError, unknown
from normlib.registry import Registry

Value = int | float | bool | str | None

_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
_PLACED = ("device", "dtype")  # where a layer lives is for the caller to say, not for the arm


class SpecError(NormlibError, ValueError):
    """A spec that does not read as `name` or `name:argument=value,argument=value`."""


def parse_spec(spec: str, registry: Registry) -> tuple[str, dict[str, Value]]:
    """Read a spec and check it against what is registered.

    Args:
        spec: for example `"batch:momentum=0.01"`.
        registry: the table that knows the name; the signature of what it names holds the arguments.

    Returns:
        The name, and the arguments by name.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.

    Example:
        >>> from normlib.layers import NORMS
        >>> parse_spec("batch:momentum=0.01,affine=False", NORMS)
        ('batch', {'momentum': 0.01, 'affine': False})
    """
    name, kwargs = split_spec(spec)
    known = arguments_of(registry[name])
    for argument in kwargs:
        if argument not in known:
            raise unknown(f"argument of {registry.kind} {name!r}", argument, known)
    return name, kwargs


def split_spec(spec: str) -> tuple[str, dict[str, Value]]:
    """Read a spec without asking whether its name and its arguments exist.

    Raises:
        SpecError: if the text is not a spec.
    """
    if not isinstance(spec, str):
        raise SpecError(f"a spec is text such as 'batch:momentum=0.01', but got {spec!r}.")
    name, colon, rest = (part.strip() for part in spec.partition(":"))
    kwargs: dict[str, Value] = {}
    for pair in rest.split(",") if colon else []:
        argument, equals, value = (part.strip() for part in pair.partition("="))
        if not (argument and equals and value):
            raise SpecError(f"in the spec {spec!r}, {pair!r} should read argument=value, as in 'group:size=8'.")
        if argument in kwargs:
            raise SpecError(f"the spec {spec!r} gives {argument!r} twice. Leave one out.")
        kwargs[argument] = _read(value)
    return name, kwargs


def spec_name(spec: str) -> str:
    """Return the name in a spec, the text before its colon."""
    return spec.partition(":")[0].strip() if isinstance(spec, str) else ""


def arguments_of(factory: Callable[..., Any]) -> list[str]:
    """Return the names that a spec may set: the signature less its first argument, device and dtype."""
    return [name for name in list(inspect.signature(factory).parameters)[1:] if name not in _PLACED]


def _read(text: str) -> Value:
    """Read one value."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
