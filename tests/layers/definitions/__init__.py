"""The slow definition of every norm, from sums over explicit sets of elements, in float64.

A module of this folder covers one family and lists its `CASES`. Each definition is written from the paper, element by element
or set by set, and uses nothing of `normlib`. A norm that is registered without a case fails `test_layers_definition.py`.
"""

from __future__ import annotations

from definitions import batch_relatives, classic, fused_activation, pointwise, switch, sync
from definitions.case import MAPS, SHAPES, Case

CASES: list[Case] = [*classic.CASES, *batch_relatives.CASES, *sync.CASES, *switch.CASES, *fused_activation.CASES, *pointwise.CASES]

__all__ = ["CASES", "MAPS", "SHAPES", "Case"]
