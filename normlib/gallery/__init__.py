"""Wrong on purpose: the well-known mistakes in code and experiments on normalization, each with the test that catches it.

Nothing else in the library imports this package; studies draw what a fault costs, and chapters show it. An exhibit is a `Fault`:
the faulty implementation beside its sound counterpart, called in the same way; a check that the one fails and the other passes; and
an effect, one number for each of several settings, in closed form where there is one.

Sound counterparts come from the layers, weights and residual schemes below; what lives above, in networks, training and probes, is
named as text in `SOUND` and imported when a fault is measured.
"""

from normlib.gallery.fault import SOUND, Effect, Fault, Implementation
from normlib.gallery.table import FAULTS, faults, scoreboard

__all__ = ["FAULTS", "SOUND", "Effect", "Fault", "Implementation", "faults", "scoreboard"]
