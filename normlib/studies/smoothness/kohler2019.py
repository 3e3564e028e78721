"""Kohler et al. (2019): least squares by its length and its direction, beside plain gradient descent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import BLUE, GRAY, INK, SKY, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned

Vector = NDArray[np.float64]

ARMS = {
    "plain": ("plain, on w", GRAY, 3.5, "-"),
    "joint": ("g and v together", SKY, 1.6, "--"),
    "alternating": ("g solved, then v", BLUE, 1.6, "-"),
}
TARGETS = {"random": "random target", "slowest": "slowest direction"}
REACHED = 1e-8  # of the excess at the start
SMALLEST = 1e-20  # of it: there a run stops
POINTS = 60

length_direction = Study(
    "kohler2019.length_direction",
    item="least squares",
    title="Length and direction apart: least squares in one direction less",
    kind="train",
    vary={"target": list(TARGETS), "arm": list(ARMS), "rate": [0.5, 1.0, 1.95, *(2.0**k for k in range(2, 10))]},
    quick={"dimension": 10, "slow": 1.0, "rest": [5.0, 50.0], "steps": 600, "rate": [0.5, 1.0, 1.95, 4.0, 16.0, 64.0]},
    laptop={"dimension": 50, "slow": 1.0, "rest": [10.0, 1000.0], "steps": 10_000},
    full=None,
)


class Problem(NamedTuple):
    """Least squares in the eigenbasis of the second moment S: the loss is ½‖w − w*‖² in the norm of S."""

    s: Vector  # eigenvalues, the smallest first
    best: Vector  # w*, of length 1 in the norm of S
    start: Vector  # of the same length, on the side of w*

    def excess(self, w: Vector) -> float:
        """Return the loss above its minimum."""
        return float(0.5 * (self.s * (w - self.best) ** 2).sum())

    def length(self, v: Vector) -> float:
        """Return ‖v‖ in the norm of S, which is the deviation of vᵀx for inputs of mean zero."""
        return float(np.sqrt((self.s * v * v).sum()))

    def towards(self, v: Vector) -> float:
        """Return vᵀu with u = S w*, the mean of the inputs times the targets."""
        return float((self.s * v * self.best).sum())


def draw(c: Config, seed: int) -> Problem:
    """Draw target and start: one slow direction, and the others spread evenly."""
    random = np.random.default_rng(seed)
    s = np.array([c.slow, *np.linspace(*c.rest, c.dimension - 1)])  # type: ignore[call-overload]
    start, best = random.standard_normal((2, c.dimension))
    if c.target == "slowest":
        best = np.eye(c.dimension)[0]
    problem = Problem(s, best, start)
    best = best / problem.length(best)
    return Problem(s, best, start / problem.length(start) * np.sign((s * start * best).sum()))


def descend(problem: Problem, arm: str, rate: float, steps: int) -> Vector:
    """Return the excess before each step and after the last, up to where it is not finite or a tiny share of the first.

    Args:
        problem: what is solved.
        arm: "plain" steps along the gradient in w; "joint" along that in g and v at once, where w = g v / ‖v‖; "alternating"
            sets g to its best value, then steps along the gradient in v at the rate times ‖v‖² / g².
        rate: of each step.
        steps: at most so many.
    """
    s, u = problem.s, problem.s * problem.best
    w, v, g = problem.start, problem.start, problem.length(problem.start)
    found = [problem.excess(w)]
    for _ in range(steps):
        if arm == "plain":
            w = w - rate * (s * w - u)
        elif arm == "joint":
            size, along = problem.length(v), problem.towards(v)
            g, v = g - rate * (g - along / size), v + rate * g / size * (u - along / size**2 * s * v)
            w = g * v / problem.length(v)
        else:
            v = v - rate * (s * v - problem.length(v) ** 2 / problem.towards(v) * u)
            size = problem.length(v)
            w = problem.towards(v) / size**2 * v
        found.append(problem.excess(w))
        if not SMALLEST * found[0] < found[-1] < 1e6 * found[0]:
            break
    return np.array(found)


def closed_form(problem: Problem, rate: float) -> float:
    """Return by what the excess is multiplied per step in the end, "alternating": the direction of the target is taken out of S."""
    d, z = len(problem.s), np.sqrt(problem.s) * problem.best
    across = np.linalg.svd(z[None])[2][1:]  # an orthonormal basis of what is orthogonal to z
    seen = np.linalg.eigvalsh(across * problem.s @ across.T)
    assert len(seen) == d - 1
    return float(np.abs(1 - rate * seen).max() ** 2)


@length_direction.trial
def _(c: Config, seed: int):
    problem = draw(c, seed)
    rate = c.rate / problem.s.max()
    with np.errstate(all="ignore"):  # plain descent overflows at large rates
        curve = descend(problem, c.arm, rate, c.steps)
    share = curve / curve[0]
    last = len(curve) - 1
    kept = sorted({round(c.steps * (i / (POINTS - 1)) ** 2) for i in range(POINTS)} | {last})
    kept = [step for step in kept if step <= last][-POINTS:]
    below = np.flatnonzero(share <= REACHED)
    window = max(last // 10, 1)
    solved = problem.excess(problem.towards(problem.start) / problem.length(problem.start) ** 2 * problem.start)
    bound = solved * (1 - problem.s.min() / problem.s.max()) ** (2 * np.arange(1, len(curve)))
    return {
        "step": kept,
        "share": [float(share[step]) for step in kept],
        "reached": float(below[0]) if len(below) else np.inf,
        "final": float(share[-1]) if np.isfinite(share[-1]) else np.inf,
        "over_bound": float((curve[1:] / bound).max()) if c.arm == "alternating" and c.rate == 1 else np.nan,
        "slope": float(np.log(share[-1] / share[-1 - window]) / window) if c.arm == "alternating" else np.nan,
        "closed_form": float(np.log(closed_form(problem, rate))) if c.arm == "alternating" else np.nan,
    }


def steps_at_best(table, target: str):
    """Return the steps that each arm needs at its own rate: a row a seed, a column an arm; and the rates."""
    kept, rates = tuned(table[table.target == target], ["arm"], "reached", low=True)
    return side_by_side(kept, "arm", "reached"), rates


@length_direction.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.2)
    said, ends = {}, []
    for axis, target in zip(axes, TARGETS, strict=False):
        chosen = table[table.target == target]
        kept, rates = tuned(chosen, ["arm"], "reached", low=True)
        ends += [f"{ARMS[arm][0]} ({target})" for arm in at_ends(chosen, ["arm"], rates)]
        needed, _ = steps_at_best(table, target)
        said[target] = ", ".join(f"{number(needed[arm].median())} ({label})" for arm, (label, *_) in ARMS.items())
        for arm, (label, color, width, style) in ARMS.items():
            look = {"color": color, "linewidth": width, "linestyle": style}
            for seed, run in kept[(kept.arm == arm) & np.isfinite(kept.share)].groupby("seed"):
                axis.plot(run.step, run.share, **look, label=label if seed == 0 else None)
                if arm == "alternating" and seed == 0:
                    end = run.iloc[-1]
                    line = np.array([0.2, 1.0]) * end.reached
                    said_there = 3 * REACHED * np.exp(end.closed_form * (line - end.reached))
                    axis.plot(line, said_there, color=INK, linewidth=1, dashes=(2, 2))
        largest = np.nanmax(needed[["plain", "alternating"]].replace(np.inf, np.nan).to_numpy())
        axis.set(yscale="log", ylim=(REACHED / 10, 3), xlim=(0, 1.3 * largest), xlabel="step", title=TARGETS[target])
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("excess loss / its start")
    for arm, (_, color, width, style) in ARMS.items():
        runs = table[(table.target == "random") & (table.arm == arm)].drop_duplicates(["seed", "rate"])
        medians = runs.groupby("rate").reached.median()
        medians = medians[np.isfinite(medians)]
        axes[2].plot(medians.index, medians, color=color, linewidth=width, linestyle=style, marker="o", markersize=width + 2)
    axes[2].set(xscale="log", yscale="log", xlabel="rate × L", ylabel=f"steps to {number(REACHED)}")
    axes[2].set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    ticks = [tick for tick in (100, 200, 500, 1000, 2000, 5000) if axes[2].get_ylim()[0] < tick < axes[2].get_ylim()[1]]
    axes[2].set_yticks(ticks, [number(tick) for tick in ticks])
    axes[2].minorticks_off()
    axes[2].set_title("random target", fontsize=10)
    note(axes[0], "dotted: closed form", 0.97, 0.9, ha="right", fontsize=8.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Drawing(
        figure,
        caption=f"Least squares without noise, all data at once, so there is no statistic batch beside the SGD batch. Steps until "
        f"the excess is {number(REACHED)} of its start, each arm at the rate that needs fewest "
        f"(median over seeds){ends_in_words(ends)}: random target {said['random']}; slowest direction {said['slowest']}. "
        "**Left, middle** One line a seed. The slope that the closed form gives for the direction is drawn above the curve of one "
        "seed. **Right** The same count at every rate that reaches it; L is the largest eigenvalue of the second moment.",
        alt="Three plots. Left and middle: excess loss against the step for plain gradient descent, for length and direction "
        "together and for length solved, with two targets. Right: steps needed against the rate.",
    )


@length_direction.claim(
    "linear-rate",
    "With the length solved for, descent on the direction converges at a linear rate, though the loss is not convex in it.",
    criterion="at the rate ‖v‖²/(L g²) the excess at step t is at most (1 − μ/L)²ᵗ of that at the start with g solved, at every "
    "step, for both targets, where μ and L are the extreme eigenvalues of S: the largest quotient is at most 1 + 1e-9",
)
def _(table):
    runs = table[(table.arm == "alternating") & (table.rate == 1)]
    return judge_identity("largest excess / bound", runs.over_bound.max(skipna=False), 1 + 1e-9)


@length_direction.claim(
    "slope",
    "The slope in the end is that of the second moment with one direction taken out, that of the target.",
    criterion="logarithm of the excess per step over the last tenth of the steps, at the rate ‖v‖²/(L g²), divided by that of the "
    "closed form, both targets: from 0.98 to 1.02",
    by="notes",
)
def _(table):
    runs = table[(table.arm == "alternating") & (table.rate == 1)].drop_duplicates(["target", "seed"])
    ratio = (runs.slope / runs.closed_form).groupby(runs.seed)
    both = np.concatenate([ratio.min(), ratio.max()])
    return judge_effect("slope / closed form, lowest and highest of each seed", both, claimed=(0.98, 1.02), null=np.nan)


@length_direction.claim(
    "no-faster",
    "For a random target the split of length and direction needs as many steps as plain descent, to a factor of two.",
    criterion=f"steps to {REACHED:g} of the excess, plain / with g solved, each at its own rate: from 0.5 to 2",
    by="notes",
)
def _(table):
    needed, _ = steps_at_best(table, "random")
    together = f"plain / g and v together: {number((needed.plain / needed.joint).median())}"
    return judge_effect("steps, plain / split", needed.plain / needed.alternating, claimed=(0.5, 2), null=np.nan, note=together)


@length_direction.claim(
    "slowest-direction",
    "If the target lies along the slowest direction, the split does not wait for it.",
    criterion=f"steps to {REACHED:g} of the excess, plain / with g solved, each at its own rate: at least 3, where the slowest "
    "eigenvalue is a tenth of the next (at laptop)",
    by="notes",
)
def _(table):
    needed, _ = steps_at_best(table, "slowest")
    together = f"plain / g and v together: {number((needed.plain / needed.joint).median())}"
    return judge_effect("steps, plain / split", needed.plain / needed.alternating, claimed=(3, np.inf), null=1, note=together)


@length_direction.claim(
    "larger-rates",
    "Descent on length and direction together reaches the optimum at rates at least 8 times as large as plain descent does.",
    criterion=f"largest rate of the grid that reaches {REACHED:g} of the excess in time, together / plain, random target",
    by="notes",
)
def _(table):
    runs = table[(table.target == "random") & np.isfinite(table.reached)]
    largest = runs.groupby(["seed", "arm"]).rate.max().unstack()
    return judge_effect("largest rate, together / plain", largest.joint / largest.plain, claimed=(8, np.inf), null=1)
