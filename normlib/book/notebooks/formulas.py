"""Displayed formulas, written so that a notebook shows them as Sphinx shows them on the web page."""

from __future__ import annotations

import re

from normlib.errors import NormlibError

ENVIRONMENTS = {"equation": "", "align": "aligned", "gather": "gathered"}
OTHERS = ("multline", "flalign", "alignat", "eqnarray")
WHOLE = re.compile(r"\\begin\{(?P<name>[a-z]+)\*?\}(?P<body>.*)\\end\{(?P=name)\*?\}", re.DOTALL)
IGNORED = re.compile(r"(?<!\\)%.*|\\label\{[^}]*\}")


def display(tex: str, number: int | None = None) -> str:
    r"""Return a formula between double dollars.

    Comments and labels go; numbered environments become their unnumbered kin, as they stand within dollars; several lines
    without an environment are aligned, as Sphinx does.

    Args:
        tex: the formula, without dollars.
        number: its number on the page, if it has one.

    Raises:
        NormlibError: the formula is empty or in an environment that has no place within dollars.

    Example:
        >>> print(display(r"a = b", number=2))
        $$
        a = b \tag{2}
        $$
    """
    tex = "\n".join(line.rstrip() for line in IGNORED.sub("", tex).split("\n") if line.strip()).strip()
    if not tex:
        raise NormlibError("the formula is empty")
    whole = WHOLE.fullmatch(tex)
    if whole and whole["name"] in OTHERS:
        raise NormlibError(f"the environment {whole['name']!r} is not in the subset; write align, gather or equation")
    if whole and whole["name"] in ENVIRONMENTS:
        tex = _within(ENVIRONMENTS[whole["name"]], whole["body"].strip())
    elif "\\\\" in tex and not tex.startswith("\\begin{"):
        tex = _within("aligned", tex)
    return f"$$\n{tex}" + (f" \\tag{{{number}}}" if number else "") + "\n$$"


def _within(environment: str, tex: str) -> str:
    return f"\\begin{{{environment}}}\n{tex}\n\\end{{{environment}}}" if environment else tex
