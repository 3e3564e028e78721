"""What can go wrong between a data set's name and its tensors."""

from __future__ import annotations

from normlib.errors import NormlibError


class DataError(NormlibError, ValueError):
    """A data file or a request that does not fit: wrong keys, shapes, dtypes, or more images than there are."""


class DamagedDataError(DataError):
    """A file whose content is not what was published. It is never used; the message holds both digests."""


class MissingDataError(NormlibError, FileNotFoundError):
    """A data set that is nowhere on this machine and could not be fetched; the message lists what was tried."""
