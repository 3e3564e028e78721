"""The pieces that a page of MyST is made of, and the error that names one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from normlib.errors import NormlibError

Kind = Literal["text", "heading", "verbatim", "math", "target", "quote", "directive", "break"]


class MystError(NormlibError, ValueError):
    """A chapter holds something that a notebook cannot show; the message names the file, the line and the construct."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


@dataclass(frozen=True)
class Block:
    """A piece of a page; which fields are in use depends on its kind.

    Attributes:
        kind: what it is.
        line: where it begins in the file, counted from 1.
        text: the paragraph, heading, TeX or verbatim text; the label of a target.
        indent: the white space before a block that belongs to a list item.
        name: of a directive, "note".
        argument: of a directive, the rest of its first line.
        options: of a directive; the label of math is the option "label".
        body: the lines of a directive or quote.
        body_line: where the body begins in the file.
        level: of a heading, 1 to 6.
    """

    kind: Kind
    line: int
    text: str = ""
    indent: str = ""
    name: str = ""
    argument: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    body: tuple[str, ...] = ()
    body_line: int = 0
    level: int = 0

    @property
    def label(self) -> str | None:
        """The name that other places refer to it by, if it has one."""
        found = self.options.get("label") or self.options.get("name")
        return str(found) if found else None
