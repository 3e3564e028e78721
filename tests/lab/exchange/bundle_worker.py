"""What a second process does with a bundle."""

from __future__ import annotations

from toy_studies import noise

from normlib.lab import Store
from normlib.lab.exchange.intake import take


def take_bundle(bundle: str, folder: str) -> int:
    """Take a bundle of records of a toy in, by whatever code, and count those that were new."""
    return len(take(bundle, Store(folder), {noise.id: noise}, stale=True).taken)
