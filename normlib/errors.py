"""The one family of errors that users of `normlib` meet, and the search for the name they meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NormlibError(Exception):
    """Something the caller can mend. The message says what was passed, what fits, and the likely fix."""


class UnknownNameError(NormlibError, KeyError):
    """A name that no registry knows; the message holds the nearest names that exist."""

    __str__ = Exception.__str__  # KeyError would quote the message


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Build the error for a name that is not known.

    Args:
        kind: what the name should have been, for example "norm" or "data set".
        name: the name that was passed.
        known: every name that would have worked.
        hint: one more sentence, such as the command that lists the names.

    Returns:
        An error naming the nearest match first, ready to be raised.

    Example:
        >>> str(unknown("norm", "bacth", ["batch", "layer"]))
        "there is no norm named 'bacth'; did you mean 'batch'? Known: batch, layer."
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return UnknownNameError(f"there is no {kind} named {name!r}{meant} Known: {', '.join(names)}." + (f" {hint}" if hint else ""))
