"""Reading Python's syntax trees: what a statement binds, and the part of it that counts as code."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

SKIPPED_FIELDS = {"ctx", "type_comment", "kind", "type_ignores", "returns", "annotation"}


def flat(body: list[ast.stmt]) -> list[ast.stmt]:
    """Lay open the statements under top-level `if` and `try`."""
    out: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If):
            out += flat(statement.body) + flat(statement.orelse)
        elif isinstance(statement, ast.Try):
            out += flat(statement.body) + [s for handler in statement.handlers for s in flat(handler.body)]
        else:
            out.append(statement)
    return out


def dotted(node: ast.Attribute) -> list[str]:
    """Read `a.b.c` as its names, or nothing if it starts with something else than a name."""
    names = [node.attr]
    inner = node.value
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    return [inner.id, *reversed(names)] if isinstance(inner, ast.Name) else []


def bound_names(statement: ast.stmt) -> list[str]:
    """List the names that a definition or an assignment binds."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = list(statement.targets)
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def owner_of(statement: ast.FunctionDef) -> str | None:
    """Name the object whose method decorates a function: "rates" for `@rates.claim(...)`."""
    for decorator in statement.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            return target.value.id
    return None


def is_call_of(name: str, statement: ast.stmt) -> bool:
    """Tell whether a statement is `NAME = name(...)`."""
    value = getattr(statement, "value", None)
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == name


def registry_entries(statement: ast.stmt) -> dict[str, str] | None:
    """Read `NAME = Registry(kind, {"name": "module:attribute"})` without running it."""
    if not is_call_of("Registry", statement):
        return None
    for argument in statement.value.args:  # type: ignore[attr-defined]
        if isinstance(argument, ast.Dict):
            return dict(ast.literal_eval(argument))
    return {}


def is_docstring(node: Any) -> bool:
    """Tell whether a statement is a bare text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def counted_fields(node: ast.AST) -> list[tuple[str, Any]]:
    """List the fields that count: no positions, docstrings, annotations of functions, decorators of roots."""
    out = []
    for name, value in ast.iter_fields(node):
        if name in SKIPPED_FIELDS and not (name == "annotation" and isinstance(node, ast.AnnAssign)):
            continue
        if isinstance(value, list):
            value = [item for item in value if not is_docstring(item)]
        if value is None or value == []:
            continue
        out.append((name, value))
    return out


def dump(node: Any) -> str:
    """Write a syntax tree as text that does not change with the version of Python."""
    if isinstance(node, ast.AST):
        return type(node).__name__ + "(" + ",".join(f"{k}={dump(v)}" for k, v in counted_fields(node)) + ")"
    if isinstance(node, list):
        return "[" + ",".join(map(dump, node)) + "]"
    return repr(node)


def counted_nodes(node: ast.AST) -> list[ast.AST]:
    """Walk the nodes that `dump` writes."""
    out: list[ast.AST] = [node]
    for _, value in counted_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                out += counted_nodes(item)
    return out


@dataclass(frozen=True)
class Facts:
    """What a digest needs to know of a statement.

    Attributes:
        digest: of its code.
        imports: the import statements inside.
        strings: the texts inside.
        chains: `a.b.c`, as its names.
        names: the names that are read or bound.
    """

    digest: str
    imports: tuple[ast.Import | ast.ImportFrom, ...]
    strings: frozenset[str]
    chains: frozenset[tuple[str, ...]]
    names: frozenset[str]


@cache
def facts(statement: ast.stmt) -> Facts:
    """Read a statement, once: the same one is reached from many trials."""
    nodes = counted_nodes(statement)
    return Facts(
        hashlib.sha256(dump(statement).encode()).hexdigest()[:16],
        tuple(node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))),
        frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)),
        frozenset(tuple(dotted(node)) for node in nodes if isinstance(node, ast.Attribute)),
        frozenset(node.id for node in nodes if isinstance(node, ast.Name)),
    )
