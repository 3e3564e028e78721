"""What an exhibit of the gallery is: a fault, its sound counterpart, the test that tells them apart, and what the fault costs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from normlib.registry import Registry

Implementation = Callable[..., Any]

# Sound counterparts that live above the gallery: imported when a fault is measured, so that imports run downwards.
SOUND = Registry(
    "sound counterpart",
    {
        "adaptive_clip": "normlib.training.clipping:adaptive_clip",
        "adaptive_clip_grad_": "normlib.training.clipping:adaptive_clip_grad_",
        "parameters_except": "normlib.training.clipping:parameters_except",
        "mlp": "normlib.networks.mlp:MLP",
        "record_activations": "normlib.probes.watching:record_activations",
    },
)


@dataclass(frozen=True)
class Effect:
    """What a fault costs its user: one number for each of several settings.

    Args:
        quantity: what is measured, in the words of an axis.
        over: what is varied, in the words of an axis.
        at: the settings.
        measure: function of an implementation and a setting that returns the number.
        predicted: function of a setting that returns the number of the faulty implementation in closed form, where there is one.
    """

    quantity: str
    over: str
    at: Sequence[float]
    measure: Callable[[Implementation, Any], float]
    predicted: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Fault:
    """A well-known mistake, kept so that its test can be seen to catch it.

    Args:
        name: its key in `FAULTS`.
        family: what kind of code or experiment it belongs to: "batch", "layer", "weights", and so on.
        title: what the code does, in one sentence.
        seen: where it is met, and what makes it likely.
        symptom: what its user sees, or does not see.
        wrong: the faulty implementation.
        right: its sound counterpart, called in the same way.
        check: the test. It returns how far an implementation is from a property that the sound one has.
        bound: the largest deviation that passes.
        effect: what the fault costs.

    Example:
        >>> from normlib.gallery import FAULTS
        >>> fault = FAULTS["unbiased_forward"]
        >>> fault.catches(fault.wrong), fault.catches(fault.right)
        (True, False)
        >>> print(fault.test)
        def check_unbiased_forward(norm: Implementation) -> float:
        ...
    """

    name: str
    family: str
    title: str
    seen: str
    symptom: str
    wrong: Implementation
    right: Implementation
    check: Callable[[Implementation], float]
    bound: float
    effect: Effect

    def catches(self, implementation: Implementation) -> bool:
        """Return whether an implementation fails the check; a deviation that is not a number fails."""
        return not self.check(implementation) <= self.bound

    def deviations(self) -> tuple[float, float]:
        """Return what the check measures on the faulty and on the sound implementation."""
        return self.check(self.wrong), self.check(self.right)

    def columns(self) -> dict[str, list[float]]:
        """Return the effect as columns: the setting, `wrong`, `right`, and `predicted` where `wrong` has a closed form."""
        effect = self.effect
        columns = {effect.over: list(effect.at)}
        columns["wrong"] = [effect.measure(self.wrong, setting) for setting in effect.at]
        columns["right"] = [effect.measure(self.right, setting) for setting in effect.at]
        if effect.predicted is not None:
            columns["predicted"] = [effect.predicted(setting) for setting in effect.at]
        return columns

    @property
    def test(self) -> str:
        """The source of the check."""
        return textwrap.dedent(inspect.getsource(self.check))

    @property
    def code(self) -> str:
        """The source of the faulty implementation."""
        return textwrap.dedent(inspect.getsource(self.wrong))
