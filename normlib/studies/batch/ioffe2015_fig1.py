"""Ioffe & Szegedy (2015), Batch Normalization, figure 1: a sigmoid network with and without, in four cells of what is not named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.layers.batch import batch_norm
from normlib.networks import MLP
from normlib.probes import record_activations
from normlib.studies.common.arms import first_at, side_by_side
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.training import accuracy, log_steps, train

UNITS = [12, 37, 62, 87]  # of the last hidden layer, whose percentiles are drawn; the movement is that of all units
QUANTILES = [0.15, 0.5, 0.85]
BATCH = 60
NAMES = {"none": "without BN", "batch": "with BN"}

figure1 = Study(
    "ioffe2015.fig1",
    item="Fig. 1",
    title="Batch normalization learns in fewer steps; how many fewer depends on a rate and an initialization that are not named",
    kind="train",
    vary={"norm": ["none", "batch"], "std": [0.01, 0.1], "rate": [0.1, 1.0]},
    quick={"data": "digits", "steps": 100, "points": 10, "target": 0.5},
    laptop={"data": "fashion-mnist", "steps": 8_000, "points": 44, "target": 0.75},
    full={"data": "mnist", "steps": 50_000, "points": 60, "target": 0.95},
)


def binary_images(c: Config, seed: int) -> tuple[Dataset, Dataset]:
    """Return images in black and white, cut at 0.5: the set to tune on, with held-out images as its test set, and the true set."""
    gray = load(c).flat()
    images = replace(gray, x_train=(gray.x_train > 0.5).float(), x_test=(gray.x_test > 0.5).float())
    return images.split_validation(len(images.x_train) // 6, seed), images


def sigmoid_inputs(net: MLP, x: Tensor) -> dict[str, Tensor]:
    """Return what goes into the last hidden sigmoids, (N, units), with the statistics of this batch; and x̂, before γ and β."""
    last = f"blocks.{len(net.blocks) - 1}"
    found = record_activations(net, x, [f"{last}.layer", f"{last}.norm"], training=True)
    return {"y": found[f"{last}.norm"], "x_hat": batch_norm(found[f"{last}.layer"])}


def movement(percentiles: Tensor) -> Tensor:
    """Return how far each unit's percentiles travel in a run, in units of the widest that its 15 to 85 % ever are.

    Args:
        percentiles: shape (times, 3, units), the lowest percentile first.

    Returns:
        Of the three ranges over time the largest, over the largest spread over time, shape (units,).
    """
    travel = (percentiles.amax(0) - percentiles.amin(0)).amax(0)
    return travel / (percentiles[:, -1] - percentiles[:, 0]).amax(0)


@figure1.trial
def _(c, seed):
    images, tests = binary_images(c, seed)
    net = MLP([images.shape[0], 100, 100, 100, images.classes], "logistic", c.norm, f"normal:std={c.std}", seed=seed).to(c.device)
    watched, seen = images.x_train[:1000], {"y": [], "x_hat": []}  # type: ignore[var-annotated]

    def look(step, model):
        for name, values in sigmoid_inputs(model, watched).items():
            seen[name].append(values.quantile(values.new_tensor(QUANTILES), dim=0).cpu())
        return {"accuracy": accuracy(model, tests.x_test, tests.y_test, statistics="eval")}

    run = train(
        net, images.x_train, images.y_train,
        steps=c.steps, batch_size=BATCH, rate=c.rate, seed=seed, probe=look, probe_steps=log_steps(c.steps + 1, c.points),
    )  # fmt: skip
    percentiles = {name: torch.stack(rows) for name, rows in seen.items()}  # (times, 3, units)
    curve = {name: np.repeat(run.probes[name], len(UNITS)) for name in ("step", "accuracy")}  # one row a step and unit
    columns = {
        **curve,
        "unit": UNITS * len(run.probes["step"]),
        **{f"{name}_{q}": rows[:, q, UNITS].flatten().numpy() for name, rows in percentiles.items() for q in range(3)},
        **{f"moved_{name}": float(movement(rows).median()) for name, rows in percentiles.items()},
        "reached": first_at(run.probes["step"], run.probes["accuracy"], c.target),
    }
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    return {**columns, "validation": accuracy(net, images.x_test, images.y_test, statistics="eval")}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def steps_saved(table):
    """Return the factor by which BN needs fewer steps, a row a seed and a column a cell (std, rate).

    Where the plain network never arrives, the length of the run stands for its steps, and the factor is a lower bound. Where
    BN never arrives either, there is no number.
    """
    steps = side_by_side(table, ["norm", "std", "rate"], "reached")
    plain, batch = steps["none"], steps["batch"]
    return (plain.clip(upper=table.steps.iloc[0]) / batch).where(np.isfinite(plain) | np.isfinite(batch))


def movement_ratio(table):
    """Return how much further the sigmoids' inputs move without BN, a row a seed and a column a cell."""
    moved = side_by_side(table, ["norm", "std", "rate"], "moved_y")
    return moved["none"] / moved["batch"]


def at_best_cells(table):
    """Return each arm's best cell by the validation images, and the test accuracies there, in percent: a row a seed."""
    scores = table.groupby(["norm", "std", "rate"]).validation.median()
    best = {norm: scores[norm].idxmax() for norm in NAMES}
    final = side_by_side(table[table.step == table.steps], ["norm", "std", "rate"], "accuracy")
    return best, 100 * final[[(norm, *cell) for norm, cell in best.items()]].set_axis(list(best), axis=1)


def in_words(cell) -> str:
    """Write a cell for a caption or a title."""
    return f"init std {number(cell[0])}, rate {number(cell[1])}"


@figure1.draw
def _(table):
    figure, axes = subplots(3, 4, height=1.75, sharex=True, sharey="row")
    never = np.isinf(side_by_side(table, ["norm", "std", "rate"], "reached")["none"]).median() > 0
    saved, moved = steps_saved(table).median().sort_index(), movement_ratio(table).median()
    (best, final), target = at_best_cells(table), table.target.iloc[0]
    table = table.assign(after=table.step + 1)
    for ax, (cell, arms) in zip(axes[0], table.groupby(["std", "rate"]), strict=True):
        for norm in NAMES:
            arm = arms[(arms.norm == norm) & (arms.unit == UNITS[0])]
            median_and_band(ax, arm, "after", "accuracy", color=norm_color(norm))
        ax.axhline(target, color=INK, linewidth=0.8, linestyle=":")
        ax.set_title(f"{in_words(cell)}\n{_factor(saved[cell], never[cell])} fewer steps", fontsize=8.5)
    for row, norm in zip(axes[1:], NAMES, strict=True):
        shown = table[(table.norm == norm) & (table.seed == table.seed.min())].set_index(["std", "rate"]).loc[[best["none"]]]
        for ax, (unit, run) in zip(row, shown.groupby("unit"), strict=True):
            color = norm_color(norm)
            ax.fill_between(run.after, run.y_0, run.y_2, color=color, alpha=0.25, linewidth=0)
            ax.plot(run.after, run.y_1, color=color)
            if norm == "batch":
                for q in range(3):
                    ax.plot(run.after, run[f"x_hat_{q}"], color=INK, linewidth=0.7, linestyle="--")
            note(ax, f"unit {unit}", 0.04, 0.04, fontsize=8.5)
    axes[0, 0].set(xscale="log", ylabel="a   test accuracy", ylim=(0, 1))
    axes[1, 0].set_ylabel("b   sigmoid's input\nwithout BN")
    axes[2, 0].set_ylabel("c   sigmoid's input\nwith BN")
    axes[1, 0].set_title(f"four units, all at {in_words(best['none'])}", fontsize=8.5, loc="left").set_in_layout(False)
    note(axes[0, 0], "with BN", 0.04, 0.83, color=norm_color("batch"), fontsize=8.5)
    note(axes[0, 0], "without BN", 0.47, 0.2, color=norm_color("none"), fontsize=8.5)
    note(axes[2, 0], "dashed: $\\hat{x}$", 0.04, 0.16, fontsize=8.5)
    for ax in axes[2]:
        ax.set_xlabel("step + 1")
    limits = axes[1, 0].get_ylim(), axes[2, 0].get_ylim()
    for row in axes[1:]:
        row[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    factors = ", ".join(f"{_factor(saved[cell], never[cell])} ({in_words(cell)})" for cell in saved.index)
    bound = "; >: the plain network never arrives" if never.any() else ""
    return Drawing(
        figure,
        caption=f"How many steps BN saves hangs on a rate and an initialization that the paper does not name. **a** Steps to "
        f"{100 * target:.0f} % test accuracy (dotted), without BN over with BN: {factors}{bound}. At its own best cell, chosen "
        f"on held-out images, each ends at {final['batch'].median():.1f} % (with BN; {in_words(best['batch'])}) and "
        f"{final['none'].median():.1f} % (without; {in_words(best['none'])}). **b, c** Inputs of four sigmoids of the last "
        f"hidden layer, 15 to 85 % and median, all four at {in_words(best['none'])}, one seed; with BN these are "
        "$y = \\gamma\\hat x + \\beta$, and dashed is $\\hat x$. Relative to their spread, the inputs of the median unit move "
        f"{number(moved.min())} to {number(moved.max())} times as far without BN, by cell.",
        alt="Top: test accuracy against steps, log axis, with and without batch normalization, in four panels by initial standard "
        "deviation and rate. Below, all in one of these settings: bands of the inputs of four sigmoids, without and with it.",
    )


def _factor(value: float, bound: bool) -> str:
    return f"{'> ' if bound else ''}{number(value)}×" if np.isfinite(value) else "unknown ×"


@figure1.claim(
    "fewer-steps",
    "With batch normalization the network reaches a given accuracy in far fewer steps.",
    criterion="the plain network needs at least 1.5 times the steps to the accuracy that the preset names, in each of the four "
    "cells: the smallest factor counts; a run that never arrives counts with its length",
)
def _(table):
    saved = steps_saved(table)
    higher = table.assign(reached=table.step.where(table.accuracy >= table.target + 0.05))  # five points more than was asked for
    higher["reached"] = higher.groupby(["seed", "norm", "std", "rate"]).reached.transform("min").fillna(np.inf)
    smallest, beyond = (factors.min(axis=1, skipna=False) for factors in (saved, steps_saved(higher)))
    text = f"{in_words(saved.median().idxmin())}; to an accuracy five points higher: {number(beyond.median())}"
    return judge_effect("steps, without / with BN, smallest of four cells", smallest, claimed=(1.5, np.inf), null=1, note=text)


@figure1.claim(
    "final-accuracy",
    "With batch normalization the network ends at a higher test accuracy.",
    criterion="each arm at the cell that is best for it on held-out images: BN ends at least half a point higher",
)
def _(table):
    best, final = at_best_cells(table)
    cells = "; ".join(f"{NAMES[norm]}: {in_words(cell)}" for norm, cell in best.items())
    difference = final["batch"] - final["none"]
    return judge_effect("test accuracy, with less without BN, in points", difference, claimed=(0.5, np.inf), null=0, note=cells)


@figure1.claim(
    "stable-inputs",
    "Batch normalization keeps the distribution of a sigmoid's inputs more stable in the course of training.",
    criterion="without BN the percentiles of the median unit travel at least 1.5 times as far, relative to their own spread, in "
    "each of the four cells: the smallest ratio counts",
)
def _(table):
    ratio = movement_ratio(table)
    worst = ratio.median().idxmin()
    smallest = ratio.min(axis=1, skipna=False)
    return judge_effect(
        "movement, without / with BN, smallest of four cells", smallest, claimed=(1.5, np.inf), null=1, note=in_words(worst)
    )


@figure1.claim(
    "gain-and-shift-move",
    "What the sigmoid receives, y = γx̂ + β, may drift although the mean and variance of x̂ cannot: γ and β are learned.",
    criterion="with BN the percentiles of y travel at least twice as far as those of x̂, relative to their own spreads, in each "
    "of the four cells: the smallest ratio counts",
    by="notes",
)
def _(table):
    arms = [side_by_side(table, ["std", "rate"], f"moved_{name}", norm="batch") for name in ("y", "x_hat")]
    ratios = arms[0] / arms[1]
    text = f"{in_words(ratios.median().idxmin())}; largest {number(ratios.median().max())}; x̂ moves too, in its shape"
    ratio = ratios.min(axis=1, skipna=False)
    return judge_effect("movement of y / movement of x̂, smallest of four cells", ratio, claimed=(2, np.inf), null=1, note=text)


@figure1.claim(
    "unnamed-settings",
    "How many steps are saved depends on the rate and the initialization, which the paper does not name.",
    criterion="the factor of steps in the cell with the largest is at least twice that in the cell with the smallest",
    by="notes",
)
def _(table):
    saved = steps_saved(table)
    ratio = saved.max(axis=1, skipna=False) / saved.min(axis=1, skipna=False)
    text = "a lower bound, as some runs without BN never arrive" if np.isinf(table[table.norm == "none"].reached).any() else ""
    return judge_effect("factor of steps, largest / smallest of four cells", ratio, claimed=(2, np.inf), null=1, note=text)
