"""Covariate shift, and the analogy that gave internal covariate shift its name: which of the two distributions moves?

Covariate shift: P(x) moves, P(y given x) stays. For a hidden unit with value h, layers below that learn move P(h); whether they
leave P(y given h) alone is a question for measurement.
"""

from __future__ import annotations

import copy
import itertools
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.polynomial import polynomial
from torch import Tensor

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.studies.batch.unit_shift import Array, compare, curves
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, INK, VERMILION, note, subplots
from normlib.training import train

SOURCE, TARGET = (-1.2, 0.4), (0.3, 0.4)  # mean and standard deviation of x
DEGREES = {1: "line", 2: "parabola", 3: "cubic"}
SITUATIONS = {
    "input": "covariate shift\nx moves, a cubic stays",
    "selection": "covariate shift of a unit\nother images",
    "learning": "internal covariate shift\nlower layers learned",
}

covariate_shift = Study(
    "notes.covariate_shift",
    item="seed001, section 1",
    title="Covariate shift moves the best misspecified model; internal covariate shift moves the answer itself",
    kind="train",
    vary={"shift": list(SITUATIONS)},
    quick={"data": "digits", "pool": 1, "width": 16, "steps": 200, "bins": 8, "permutations": 10},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 20_000, "width": 32, "steps": 2_000, "bins": 20, "permutations": 50},
    full={"data": "mnist", "pool": 2, "width": 64, "steps": 10_000, "bins": 20, "permutations": 200},
    seeds={"quick": 1, "laptop": 5, "full": 5},
)


def population(mean: float, deviation: float) -> tuple[Array, Array]:
    """Return nodes and weights whose weighted sums are expectations over N(mean, deviation²), exact for polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return mean + deviation * nodes, weights / weights.sum()


def best(degree: int, answer: Array, x: Array, weights: Array) -> Array:
    """Return the coefficients, lowest first, of the polynomial with the smallest expected squared error."""
    powers = polynomial.polyvander(x, degree) * np.sqrt(weights)[:, None]
    return np.linalg.lstsq(powers, polynomial.polyval(x, answer) * np.sqrt(weights), rcond=None)[0]


def fit_both(seed: int) -> dict[str, Any]:
    """Fit the same random cubic under the source's and under the target's inputs by polynomials of each degree."""
    answer = np.array([0.0, -1.0, 0.0, 0.6]) + 0.2 * np.random.default_rng(seed).standard_normal(4)
    source, target = population(*SOURCE), population(*TARGET)
    x, weights = np.concatenate([source[0], target[0]]), np.concatenate([source[1], target[1]]) / 2
    spread = np.sqrt(np.cov(polynomial.polyval(x, answer), aweights=weights, bias=True))
    at = np.linspace(-2.2, 1.4, 60)
    found: dict[str, Any] = {"at": at.tolist(), "answer_before": polynomial.polyval(at, answer).tolist()}
    for when, (mean, deviation) in (("before", SOURCE), ("after", TARGET)):
        found[f"density_{when}"] = np.exp(-(((at - mean) / deviation) ** 2) / 2).tolist()
    for degree, name in DEGREES.items():
        first, second = best(degree, answer, *source), best(degree, answer, *target)
        apart = polynomial.polyval(x, first) - polynomial.polyval(x, second)
        found[f"{name}_moved"] = float(np.sqrt(weights @ apart**2) / spread)
        found[f"{name}_before"], found[f"{name}_after"] = (polynomial.polyval(at, fit).tolist() for fit in (first, second))
    errors = [
        side[1] @ (polynomial.polyval(side[0], answer) - polynomial.polyval(side[0], best(1, answer, *source))) ** 2
        for side in (source, target)
    ]
    return {**found, "line_error_ratio": float(errors[1] / errors[0])}


def activations(net: MLP, x: Tensor) -> list[Array]:
    """Return what each hidden layer hands on, shape (items, units), the lowest layer first."""
    with torch.no_grad():
        return [net.blocks[: depth + 1](x).cpu().double().numpy() for depth in range(len(net.blocks))]


def trained_in_halves(c: Config, images: Dataset, seed: int) -> list[MLP]:
    """Return a network before training, after half of the steps, and after all of them."""
    states = [MLP([images.x_train.shape[1], c.width, c.width, images.classes], init="lecun", seed=seed).to(c.device)]
    for part in range(2):
        states.append(copy.deepcopy(states[-1]))
        train(states[-1], images.x_train, images.y_train, steps=c.steps // 2, batch_size=100, rate=0.1, seed=2 * seed + part)
    return states


@covariate_shift.trial
def _(c, seed):
    if c.shift == "input":
        return fit_both(seed)
    images, rng = load(c, seed).pooled(c.pool).standardized().flat(), np.random.default_rng(seed)
    halves = torch.from_numpy(rng.permutation(len(images.x_test))).tensor_split(2)  # of images that were not trained on
    y = [images.y_test[half.to(c.device)].cpu().numpy() for half in halves]
    start, middle, end = (
        [activations(net, images.x_test[half.to(c.device)]) for half in halves] for net in trained_in_halves(c, images, seed)
    )
    units: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    measure, late = {"bins": c.bins, "permutations": c.permutations, "rng": rng}, []
    for layer, unit in itertools.product(units, range(c.width)):
        h = end[1][layer - 1][:, unit]
        if c.shift == "learning":
            units[layer].append(compare(start[0][layer - 1][:, unit], h, *y, **measure))
            late.append(compare(middle[0][layer - 1][:, unit], h, *y, **measure)["conditional"])
        else:  # the larger the value of the unit, the more likely an image is taken
            taken = rng.random(len(h)) < 1 / (1 + np.exp(-2 * (h - h.mean()) / h.std()))
            units[layer].append(compare(end[0][layer - 1][:, unit], h[taken], y[0], y[1][taken], **measure))
    typical = sorted(units[2], key=lambda unit: unit["conditional"])[c.width // 2]
    medians = {f"{name}_{n}": median(unit[name] for unit in units[n]) for n in units for name in ("marginal", "conditional")}
    return {**curves(typical), **medians, "late": median(late) if late else None}


@covariate_shift.draw
def _(table):
    figure, axes = subplots(1, 3, height=3.3)
    table = table.reset_index(drop=True)
    shown = table[table.seed == table.seed.min()]
    for ax, (shift, title) in zip(axes, SITUATIONS.items(), strict=True):
        rows = shown[shown["shift"] == shift]
        ax.set_title(title, fontsize=9.5)
        low, high = (-2.6, 1.3) if shift == "input" else (0, 1.1 * rows[["answer_before", "answer_after"]].max().max())
        floor = low - 0.4 * (high - low)
        for when, color in (("before", BLUE), ("after", VERMILION)):
            density = floor + 0.3 * (high - low) * rows[f"density_{when}"] / rows[["density_before", "density_after"]].max().max()
            ax.fill_between(rows["at"], floor, density, color=color, alpha=0.35, linewidth=0)
            if shift == "input":
                ax.plot(rows["at"], rows[f"line_{when}"], color=color)
            else:
                ax.plot(rows["at"], rows[f"answer_{when}"], "o-", color=color, markersize=2.5)
        if shift == "input":
            ax.plot(rows["at"], rows.answer_before, color=INK, linewidth=1.2, linestyle="--")
        ax.axhline(low, color=INK, linewidth=0.6)
        ax.set(ylim=(floor, high), xlabel="x" if shift == "input" else "value of the unit (rank)")
        ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])
        ax.grid(False)
    axes[0].set_ylabel("y")
    axes[1].set_ylabel("share of one class\namong images of this value")
    note(axes[0], "best line\nbefore", 0.5, 0.86, color=BLUE, fontsize=8.5)
    note(axes[0], "best line\nafter", 0.97, 0.47, color=VERMILION, fontsize=8.5, ha="right")
    note(axes[1], "before", 0.05, 0.9, color=BLUE)
    note(axes[1], "after", 0.05, 0.81, color=VERMILION)
    line, cubic = (table[f"{name}_moved"].dropna().groupby(table.seed).first() for name in ("line", "cubic"))
    return Drawing(
        figure,
        caption="Below, where the inputs lie, before and after (blue, red); above, what is to be learned there. Left: the curve "
        f"(dashed) stays, yet the best line moves by {number(line.median())} standard deviations of y; the best cubic moves by "
        f"{number(cubic.max())}. Middle: other images are drawn, the conditional of a hidden unit moves by "
        f"{number(_units(table, 'selection', 'conditional').median())} times chance. Right: the same images, the layers up to the "
        f"unit have learned, and it moves by {number(_units(table, 'learning', 'conditional').median())} times chance. Drawn: the "
        "median unit of the upper layer, and the class most frequent among its largest values.",
        alt="Three panels with two densities below and curves above. Left: a cubic and two different best lines. Middle: two "
        "nearly equal curves of the share of a class against a unit's value. Right: two different ones.",
    )


def _units(table, shift, name):
    """Return for each seed the median unit's distance, in units of chance: of the layer where it is smaller, or larger."""
    layers = table[table["shift"] == shift].groupby("seed")[[f"{name}_1", f"{name}_2"]].first()
    return layers.min(axis=1) if shift == "learning" else layers.max(axis=1)


def _fits(table):
    return table[table["shift"] == "input"].groupby("seed").first()


@covariate_shift.claim(
    "optimal-model",
    "Under covariate shift the optimal model for the source differs from the optimal model for the target.",
    criterion="for each kind of model (line, parabola, cubic) and seed the two optima differ by at least 1 % of the standard "
    "deviation of y, as the statement has no condition",
    by="seed001",
)
def _(table):
    moved = _fits(table)[[f"{name}_moved" for name in DEGREES.values()]].min()
    text = ", ".join(f"{name} {number(moved[f'{name}_moved'])}" for name in DEGREES.values())
    said = f"smallest difference: {text}; the answer is a cubic"
    return judge_identity("1 % less the smallest difference of the optima", 0.01 - moved.min(), 0.0, said)


@covariate_shift.claim(
    "dense-area",
    "The model that is optimal for the source performs better where the source is dense.",
    criterion="the expected squared error of the source's best line is at least 1.1 times as large on the target as on the source",
    by="seed001",
)
def _(table):
    return judge_effect("error on target / on source", _fits(table).line_error_ratio, claimed=(1.1, np.inf), null=1)


@covariate_shift.claim(
    "well-specified",
    "The optimum stays where it is if the model can express E[y given x].",
    criterion="the best cubics for both populations differ by at most 1e-10 of the standard deviation of y",
)
def _(table):
    return judge_identity("largest difference of the two best cubics", _fits(table).cubic_moved.max(), 1e-10)


@covariate_shift.claim(
    "activations-move",
    "The distribution of what a layer receives changes as the layers below it learn.",
    criterion="in both hidden layers P(h) of the median unit moves by at least 2 times what chance makes of it",
    by="ioffe2015",
)
def _(table):
    return judge_effect("movement of P(h) / chance", _units(table, "learning", "marginal"), claimed=(2, np.inf), null=1)


@covariate_shift.claim(
    "control",
    "If other images are drawn by the value of a unit, P(y given h) stays: the measure knows covariate shift where it is.",
    criterion="in both hidden layers P(y given h) of the median unit moves by 0.9 to 1.2 times what chance makes of it, and P(h) "
    "by at least 2 times (else the verdict is not reproduced)",
)
def _(table):
    moved = _units(table, "selection", "conditional")
    shifted = table[table["shift"] == "selection"][["marginal_1", "marginal_2"]].min().min()
    claimed = (0.9, 1.2) if shifted >= 2 else (np.inf, np.inf)
    note = f"P(h) moves by at least {number(shifted)} times chance"
    return judge_effect("movement of P(y given h) / chance", moved, claimed=claimed, null=np.nan, note=note)


@covariate_shift.claim(
    "not-a-covariate-shift",
    "When the layers below learn, P(y given h) moves as well. So internal covariate shift is not a covariate shift.",
    criterion="in both hidden layers P(y given h) of the median unit moves by at least 2 times what chance makes of it, from "
    "before training to its end",
)
def _(table):
    late = table[table["shift"] == "learning"].groupby("seed").late.first()
    note = f"over the second half of training alone: {number(late.median())}"
    moved = _units(table, "learning", "conditional")
    return judge_effect("movement of P(y given h) / chance", moved, claimed=(2, np.inf), null=1, note=note)
