"""Learning-rate schedules by name: the rate at each step of a run, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from normlib.errors import NormlibError, unknown
from normlib.registry import Registry
from normlib.spec import arguments_of, split_spec

Rate = float | Callable[[int], float]
Schedule = Callable[[int], float]

SCHEDULES = Registry(
    "schedule",
    {
        "constant": "normlib.training.schedules:constant",
        "step": "normlib.training.schedules:step",
        "linear": "normlib.training.schedules:linear",
        "cosine": "normlib.training.schedules:cosine",
        "exponential": "normlib.training.schedules:exponential",
    },
    hint="A spec reads 'name' or 'name:argument=value', as in 'cosine:warmup=0.05'; each takes warmup.",
)


def make_schedule(spec: str, rate: Rate, steps: int) -> Schedule:
    r"""Return the function of the step that gives the learning rate $\eta_t$, $t = 0, 1, \dots$.

    Every schedule takes `warmup`: a number of steps, or below 1 a fraction of the run. Over $w$ steps of warm-up the rate grows
    linearly, $\eta_t = \eta (t + 1) / (w + 1)$; the schedule proper begins at step $w$, with the whole rate, and is over at the
    end of the run. So it is a function of the progress $u = (t - w) / (T - w)$.

    Args:
        spec: for example `"constant"`, `"cosine:warmup=500"`, `"step:at=0.5|0.75,factor=0.1"`.
        rate: $\eta$, the highest rate; or a function of the step, which goes with `"constant"` alone and is the schedule then.
        steps: $T$, the number of updates in the run.

    Raises:
        SpecError: if the text is not a spec.
        UnknownNameError: if the name or an argument is not known; the message holds the nearest match.
        NormlibError: if a value does not fit, or a function is to follow a schedule.

    Example:
        >>> rate = make_schedule("linear:warmup=3", 0.8, steps=7)
        >>> [round(rate(step), 3) for step in range(7)]
        [0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2]

    Source: `goyal2017`, section 2.2, for the warm-up.
    """
    if callable(rate):
        if spec != "constant":
            raise NormlibError(f"the rate is a function and the schedule is {spec!r}; give the rate as a number, or no schedule.")
        return lambda step: float(rate(step))
    name, arguments = _parse(spec)
    warmup = _warmup(arguments.pop("warmup", 0), steps, spec)
    factor = SCHEDULES[name](max(steps - warmup, 1), **arguments)

    def at(step: int) -> float:
        return rate * (step + 1) / (warmup + 1) if step < warmup else rate * factor(step - warmup)

    return at


def constant(steps: int) -> Schedule:
    """Keep the rate."""
    return lambda step: 1.0


def step(steps: int, at: float | str = "0.5|0.75", factor: float = 0.1) -> Schedule:
    """Multiply the rate by `factor` at each milestone.

    Args:
        steps: length of the schedule.
        at: milestones as fractions of the length, in (0, 1), with bars between them; each stands for the nearest whole step.
        factor: what to multiply by.

    Source: `he2016`, section 4.2, for the default.
    """
    try:
        fractions = [float(part) for part in str(at).split("|")]
    except ValueError:
        fractions = [math.nan]
    if not all(0 < fraction < 1 for fraction in fractions):
        raise NormlibError(
            f"a step schedule got at={at!r}; expected fractions of the run between 0 and 1, as in 'step:at=0.5|0.75'."
        )
    milestones = [round(fraction * steps) for fraction in fractions]
    return lambda step: float(factor) ** sum(step >= milestone for milestone in milestones)


def linear(steps: int, final: float = 0.0) -> Schedule:
    """Move on a straight line to the fraction `final` of the rate: $1 + (f - 1) u$."""
    return lambda step: 1.0 + (final - 1.0) * step / steps


def cosine(steps: int, final: float = 0.0) -> Schedule:
    r"""Follow half a period of the cosine down to the fraction `final` of the rate: $f + (1 - f)(1 + \cos \pi u) / 2$.

    Source: `loshchilov2017`, without its restarts.
    """
    return lambda step: final + (1.0 - final) * (1.0 + math.cos(math.pi * step / steps)) / 2.0


def exponential(steps: int, growth: float) -> Schedule:
    r"""Multiply the rate by `growth` at every step; above 1 it grows, without a limit.

    A network that does not depend on the scale of its weights follows the same path of functions under weight decay $\lambda$
    and a constant rate $\eta$ as under no decay, the rate $\eta / (1 - \eta \lambda)$ and the growth $(1 - \eta \lambda)^{-2}$.

    Source: `li2020`.
    """
    if not growth > 0:
        raise NormlibError(
            f"an exponential schedule got growth={growth!r}; expected a positive factor per step, as 0.999 or 1.001."
        )
    return lambda step: math.exp(exponent) if (exponent := step * math.log(growth)) < 709 else math.inf


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Read a spec whose argument `warmup` is common to all schedules."""
    name, arguments = split_spec(spec)
    known = [*arguments_of(SCHEDULES[name]), "warmup"]
    for argument in arguments:
        if argument not in known:
            raise unknown(f"argument of schedule {name!r}", argument, known)
    if name == "exponential" and "growth" not in arguments:
        raise NormlibError(f"the schedule {spec!r} has no growth; expected a factor per step, as in 'exponential:growth=0.999'.")
    return name, arguments


def _warmup(value: Any, steps: int, spec: str) -> int:
    """Return the number of steps of warm-up."""
    if isinstance(value, str | bool) or value is None or not value >= 0:
        raise NormlibError(
            f"the schedule {spec!r} has warmup={value!r}; expected steps, as 500, or a fraction of the run, as 0.05."
        )
    return round(value * steps) if value < 1 else int(value)
