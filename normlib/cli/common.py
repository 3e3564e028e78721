"""What several commands share: the names of studies, the option for the folder of records, and how a table is printed."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from normlib.errors import NormlibError, unknown

if TYPE_CHECKING:
    from rich.table import Table

PRESET_NAMES = ("quick", "laptop", "full")
Commands = Any  # argparse's own type for the place where commands are declared has no public name
Command = Callable[[argparse.Namespace], int]


def add_command(commands: Commands, name: str, function: Command, help: str) -> argparse.ArgumentParser:
    """Add a command and the function that it runs."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(command=function)
    return parser


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of records."""
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="the folder of records (default: $NORMLIB_RESULTS)")


def add_studies(parser: argparse.ArgumentParser) -> None:
    """Add the names of studies; none means all, unless the command says otherwise."""
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="a study's id, or a source (lecun1998) for all of its studies")


def chosen_studies(names: Sequence[str]) -> list[str]:
    """Expand sources to their studies and check every name before anything runs; without names, list every study."""
    from normlib.studies import STUDIES

    chosen: list[str] = []
    for name in names or list(STUDIES):
        matches = [s for s in STUDIES if s == name or s.partition(".")[0] == name]
        if not matches:
            raise unknown("study", name, STUDIES, STUDIES.hint)
        chosen += [m for m in matches if m not in chosen]
    return chosen


def chosen_presets(name: str | None) -> list[str]:
    """Check the name of a preset; without one, list all three."""
    if name is None:
        return list(PRESET_NAMES)
    if name not in PRESET_NAMES:
        raise unknown("preset", name, PRESET_NAMES)
    return [name]


def seconds(text: str, option: str) -> float:
    """Read a duration such as 90s, 20m or 2h.

    Raises:
        NormlibError: it is none; the message names the option.

    Example:
        >>> seconds("1.5m", "--budget")
        90.0
    """
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        found = float(text[:-1]) * units[text[-1]]
        if not 0 < found < float("inf"):
            raise ValueError
        return found
    except (KeyError, ValueError, IndexError):
        raise NormlibError(f"{option} {text!r} is no duration; write a number with a unit, such as 90s, 20m or 2h") from None


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a standard stream is a terminal; one that the caller closed (`normlib list >&-`) is None, and is none."""
    return stream is not None and not stream.closed and stream.isatty()


def tell(text: str) -> None:
    """Print one message on the standard error, if there is one that takes it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def flush_output() -> None:
    """Write what was printed and is still held back, so that a full disk is told by the command and not after it.

    Raises:
        OSError: it could not be written; it goes to nowhere, as it would be tried once more when Python ends.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise


def print_table(table: Table, width: int = 160) -> None:
    """Print a table as wide as the terminal, or as `width` where the output goes to a file."""
    from rich.console import Console

    Console(width=None if is_terminal(sys.stdout) else width, markup=False).print(table)
