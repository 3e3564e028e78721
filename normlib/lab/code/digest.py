"""What code does a trial run? The digest of exactly that, and of nothing else.

A record is stale when the code behind it has changed. Whole files are too coarse a measure: a new color in a drawing would make
every run of its study stale. So the code is followed name by name: from the trial, through the functions, classes and constants
it uses, into the other modules of the package. Comments, docstrings and annotations of functions do not count. A
`Registry` is followed only to the entries whose names the code or the configuration mentions, so a new norm does not make old
records stale.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from normlib.errors import NormlibError
from normlib.lab.code.syntax import bound_names, facts, flat, is_call_of, owner_of, registry_entries

PACKAGE = "normlib"
ROOMS = "normlib.studies."  # its folders are an order for readers: a study may move between them, and its records stay fresh
NAMELESS = "_"  # the parts of a study, and loop variables nobody reads: never used by name
_ROOT = Path(__file__).resolve().parents[2]


def code_digest(functions: Iterable[Callable[..., Any]], strings: Iterable[str] = ()) -> str:
    """Digest the code that the functions can reach by name.

    Args:
        functions: top-level functions, such as the trial of a study.
        strings: names given at run time (a norm spec, a data set) that registries in reach may resolve.

    Returns:
        16 hexadecimal digits, the same on every machine and Python version for the same code.
    """
    reach = _Reach()
    for function in functions:
        module = _module(function.__module__)
        reach.visit_statement(module, _statement_of(module, function), key=f"{module.label}:root")
    reach.strings.update(strings)
    reach.close()
    return _hash(reach.parts)


def source_digest(source: str, strings: Iterable[str] = ()) -> str:
    """Digest a piece of source (the code cells of a chapter) with all that it uses of the package.

    Unlike the digest of a trial it covers the drawings and the claims of the studies that it names.
    """
    reach = _Reach(strings=set(strings), with_parts=True)
    module = _Module("__chapter__", ast.parse(source))
    for statement in module.tree.body:
        reach.visit_statement(module, statement, key="__chapter__")
    reach.close()
    return _hash(reach.parts)


def modules_behind(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """Name the modules of the package that the functions reach, sorted."""
    reach = _Reach()
    for function in functions:
        module = _module(function.__module__)
        reach.visit_statement(module, _statement_of(module, function), key=f"{module.label}:root")
    reach.close()
    return sorted(reach.modules)


def _without_room(module: str) -> str:
    """Name a module as its records know it: that of a study without the room it stands in."""
    return ROOMS + module.rpartition(".")[2] if module.startswith(ROOMS) else module


def _hash(parts: dict[str, str]) -> str:
    text = "\n".join(f"{key}={parts[key]}" for key in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Module:
    """The top-level names of one module: what defines each, and what each import stands for."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.label = _without_room(name)
        self.tree = tree
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.parts: dict[str, list[ast.stmt]] = {}  # the nameless functions declared by `@name.something`
        for statement in flat(tree.body):
            self._index(statement)

    def _index(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            self.imports |= self.imported(statement)
        else:
            if isinstance(statement, ast.FunctionDef) and (owner := owner_of(statement)):
                self.parts.setdefault(owner, []).append(statement)
            for name in bound_names(statement):
                self.definitions.setdefault(name, []).append(statement)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
        """Return what each name that an import binds stands for: a module, and a name in it if it is not the module itself."""
        if isinstance(statement, ast.ImportFrom):
            source = self._absolute(statement)
            return {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
        first = [alias.name if alias.asname else alias.name.partition(".")[0] for alias in statement.names]
        return {alias.asname or name: (name, None) for alias, name in zip(statement.names, first, strict=True)}

    def lazy(self, name: str) -> str | None:
        """Find the module that the module's own `__getattr__` takes a name from: the value of that name in a table here."""
        if "__getattr__" not in self.definitions:
            return None
        tables = [table for statement in self.tree.body if isinstance(table := getattr(statement, "value", None), ast.Dict)]
        for key, value in ((k, v) for table in tables for k, v in zip(table.keys, table.values, strict=True)):
            if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                return str(value.value)
        return None

    def _absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        base = self.name.split(".")
        is_package = _path(self.name).name == "__init__.py"
        base = base[: len(base) - statement.level + is_package]
        return ".".join([*base, statement.module] if statement.module else base)


@dataclass
class _Reach:
    """Everything that has been reached so far: hashed statements, strings, and registries met on the way."""

    parts: dict[str, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    registries: list[dict[str, str]] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)
    with_parts: bool = False

    def close(self) -> None:
        """Follow the registry entries that a string names, until nothing new is reached."""
        followed: set[str] = set()
        while True:
            names = {part.partition(":")[0].strip() for text in self.strings for part in text.split("+")}
            targets = {entries[name] for entries in self.registries for name in names & entries.keys()} - followed
            if not targets:
                return
            followed |= targets
            for target in sorted(targets):
                module, _, attribute = target.partition(":")
                self.visit_name(module, attribute)

    def visit_name(self, module_name: str, name: str | None) -> None:
        if module_name.partition(".")[0] != PACKAGE or (module_name, name or "*") in self.seen:
            return
        self.seen.add((module_name, name or "*"))
        if not _exists(module_name):
            return
        module = _module(module_name)
        if name is None:
            for defined in module.definitions:
                self.visit_name(module_name, defined)
        elif name in module.definitions:
            if not self.with_parts and any(is_call_of("Study", statement) for statement in module.definitions[name]):
                return  # a trial's settings are in its record; the rest of a declaration does not bear on what it measures
            parts = module.parts.get(name, []) if self.with_parts else []
            for statement in module.definitions[name] + parts:
                self.visit_statement(module, statement, key=f"{module.label}:{name}")
        elif name in module.imports:
            self._follow_import(module.imports[name])
        elif _exists(f"{module_name}.{name}"):
            self.visit_name(f"{module_name}.{name}", None)
        elif source := module.lazy(name):
            self.visit_name(source, name)

    def visit_statement(self, module: _Module, statement: ast.stmt, key: str) -> None:
        entries = registry_entries(statement)
        if entries is not None:
            self.registries.append(entries)
            return
        found = facts(statement)
        self.modules.add(module.name)
        self.parts[key] = self.parts.get(key, "") + found.digest
        imports = dict(module.imports)
        for inner in found.imports:
            imports |= module.imported(inner)
        self.strings |= found.strings
        for chain in sorted(found.chains):
            self._follow_attribute(imports, chain)
        for name in sorted(found.names):
            if name in module.definitions and name != NAMELESS:
                self.visit_name(module.name, name)
            elif imports.get(name, ("", None))[1] is not None:
                self._follow_import(imports[name])

    def _follow_attribute(self, imports: dict[str, tuple[str, str | None]], names: tuple[str, ...]) -> None:
        """Follow `a.b.c` through modules to the first name that is none."""
        source, name = imports.get(names[0], ("", None)) if names else ("", None)
        place = f"{source}.{name}" if name else source
        if place.partition(".")[0] != PACKAGE or not _exists(place):
            return
        for attribute in names[1:]:
            if not _exists(f"{place}.{attribute}"):
                self.visit_name(place, attribute)
                return
            place = f"{place}.{attribute}"

    def _follow_import(self, target: tuple[str, str | None]) -> None:
        source, name = target
        # A bare module is followed by its attributes, unless it is all that the name can mean.
        if name is None or not _exists(f"{source}.{name}"):
            self.visit_name(source, name)


def _statement_of(module: _Module, function: Callable[..., Any]) -> ast.stmt:
    """Find the statement that defines a function by its first line; its decorators do not count."""
    line = function.__code__.co_firstlineno
    for statement in flat(module.tree.body):
        if isinstance(statement, ast.FunctionDef):
            first = min([statement.lineno, *(d.lineno for d in statement.decorator_list)])
            if first == line:
                bare = ast.FunctionDef(name=statement.name, args=statement.args, body=statement.body, decorator_list=[])
                return ast.copy_location(bare, statement)
    raise NormlibError(
        f"the source of {function.__module__} has no top-level function at line {line}; was it edited since the import?"
    )


def _path(module: str) -> Path:
    if module.partition(".")[0] != PACKAGE:
        return Path(getattr(sys.modules.get(module), "__file__", None) or "/nonexistent")
    base = _ROOT.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _exists(module: str) -> bool:
    return _path(module).is_file()


def _module(name: str) -> _Module:
    path = _path(name)
    if not path.is_file():
        raise NormlibError(f"the source of {name} is in no file, so it has no digest; write the study into a module")
    return _parsed(name, path, path.stat().st_mtime_ns)


@cache
def _parsed(name: str, path: Path, _: int) -> _Module:
    return _Module(name, ast.parse(path.read_text(encoding="utf-8")))
