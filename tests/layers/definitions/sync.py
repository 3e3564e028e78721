"""Synchronized batch norm: in one process it is batch norm. `test_layers_sync.py` runs it in several."""

from __future__ import annotations

from definitions.case import EPS, Case
from definitions.classic import batch

CASES = [
    Case(f"sync:eps={EPS}", batch(lambda i: (0, i[1]))),
    Case(f"sync:eps={EPS},momentum=None,affine=False", batch(lambda i: (0, i[1]), None)),
]
