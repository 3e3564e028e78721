"""Makes `definitions` importable: the slow float64 definition of each norm, which several tests hold the layers to."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)
