"""Data sets as tensors that live on the device: found on this machine or fetched, and always checked.

Example:
    >>> from normlib import data
    >>> digits = data.load("digits").subset(n_train=200)
    >>> digits.x_train.shape
    torch.Size([200, 1, 8, 8])
"""

from __future__ import annotations

from normlib.data.dataset import Dataset
from normlib.data.errors import DamagedDataError, DataError, MissingDataError
from normlib.data.inventory import Status, available, describe, fetch
from normlib.data.places import Places
from normlib.data.store import DATASETS, load

__all__ = [
    "DATASETS",
    "DamagedDataError",
    "DataError",
    "Dataset",
    "MissingDataError",
    "Places",
    "Status",
    "available",
    "describe",
    "fetch",
    "load",
]
