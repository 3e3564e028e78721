"""Makes `every_network` importable: how each registered network is built at a tiny size, and what the tests ask of it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)
