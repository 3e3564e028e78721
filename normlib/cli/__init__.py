"""The command line of normlib. It reads arguments and prints what the library answers.

Each module of this package holds one family of commands: a `declare_…` that adds a command to the parser, and the function that
it runs. What is slow to import is imported within the functions, so that a slip in the arguments is told at once.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

from normlib.cli import bundles, comparing, progress, reading, running
from normlib.cli.common import flush_output, tell
from normlib.errors import NormlibError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when all was done, 1 when trials failed or are left to do, 2 when the input could not be used or the output could not
        be written, 130 on Ctrl-C.
    """
    warnings.showwarning = _print_warning
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except NormlibError as error:
        tell(f"normlib: {error}")
        return 2
    except KeyboardInterrupt:
        tell("normlib: interrupted")
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        tell(f"normlib: the command could not go on: {error}")
        return 2


def _run(options: argparse.Namespace) -> int:
    try:
        status: int = options.command(options)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is told
            flush_output()
        raise
    flush_output()
    return status


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    tell(f"normlib: warning: {message}")


def _parser() -> argparse.ArgumentParser:
    from normlib import __version__

    parser = argparse.ArgumentParser(
        prog="normlib", description="Run the studies of Long Live Normalization and read what they found."
    )
    parser.add_argument("--version", action="version", version=f"normlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in (running, reading, progress, comparing, bundles):
        family.declare(commands)
    return parser
