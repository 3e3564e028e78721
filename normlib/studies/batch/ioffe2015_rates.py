"""Ioffe & Szegedy (2015), Batch Normalization, Figs 2 and 3: the layer, higher rates, and the recipe that changed with them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.networks import VGG
from normlib.studies.common.arms import first_at, images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, INK, PAPER, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import tuned
from normlib.training import train

RECIPES = {"old": (0.4, 5e-4, 1), "new": (0.0, 1e-4, 6)}  # dropout, weight decay, how often the rate halves over the run
PRINTED = {"none": 31.0e6, "layer": 13.3e6, "x5": 2.1e6}  # steps to 72.2 % in the paper's Fig. 3
MOMENTUM = 0.9

rates = Study(
    "ioffe2015.rates",
    item="Figs 2, 3",
    title="Fourteen times fewer steps: how much is the layer, how much the rate and the recipe that changed with it",
    kind="train",
    vary={"norm": ["none", "batch"], "recipe": list(RECIPES), "times": [0.5, 1, 2, 5, 30]},
    quick={
        "data": "digits", "train": 600, "base": 0.02, "width": 1 / 16, "batch": 32, "steps": 20, "first": 5, "points": 3,
        "population": 64, "times": [1, 5, 30],
    },
    laptop={
        "data": "fashion-mnist", "train": 6_000, "test": 2_000, "pool": 2, "base": 0.02, "width": 1 / 8, "batch": 32,
        "steps": 360, "first": 15, "points": 20, "population": 256,
    },
    full={
        "data": "cifar10", "base": 0.02, "width": 1 / 2, "batch": 32, "steps": 4_000, "first": 50, "points": 40,
        "population": 2_048,
    },
)  # fmt: skip


@rates.trial
def _(c, seed):
    tune, whole = images_for(c, seed)
    dropout, decay, halvings = RECIPES[c.recipe]
    shape = {"width": c.width, "in_channels": tune.shape[0], "classes": tune.classes}
    net = VGG(11, **shape, norm=c.norm, dropout=dropout, seed=seed).to(c.device)
    population = tune.x_train[: c.population].split(c.batch)
    watched = sorted({int(step) for step in np.geomspace(c.first, c.steps, c.points).round()})
    run = train(
        net, tune.x_train, tune.y_train,
        steps=c.steps, batch_size=c.batch, rate=c.base * c.times, schedule=f"exponential:growth={0.5 ** (halvings / c.steps)!r}",
        momentum=MOMENTUM, weight_decay=decay, seed=seed, probe_steps=watched,
        probe=lambda step, model: {"accuracy": population_accuracy(model, population, tune.x_test, tune.y_test)},
    )  # fmt: skip
    reached = run.probes.get("accuracy", [])
    curve = {"step": watched, "accuracy": reached + [np.nan] * (len(watched) - len(reached)), "rate": c.base * c.times}
    if run.diverged_at is not None:
        raise Diverged(f"loss is not finite at step {run.diverged_at}", **curve, validation=np.nan, test_accuracy=np.nan)
    return {**curve, "validation": reached[-1], "test_accuracy": population_accuracy(net, population, whole.x_test, whole.y_test)}


# ---------------------------------------------------------------------------------------------------------------------------
# From runs to arms
# ---------------------------------------------------------------------------------------------------------------------------

ARMS = {
    "none": ("no BN", {"color": GRAY}),
    "none_x5": ("no BN, ×5", {"color": GRAY, "linestyle": ":"}),
    "layer": ("BN, nothing else changed", {"color": BLUE}),
    "x5": ("BN ×5, new recipe", {"color": BLUE, "linestyle": "--"}),
    "x30": ("BN ×30, new recipe", {"color": BLUE, "linestyle": "-."}),
}


def runs_of(table: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Return one row a run and the multiple of the base rate that suits the network without BN best, on held-out images.

    The column `needed` holds the steps until a run reaches the accuracy that the latter, of the same seed, ends with.
    """
    plain, _ = tuned(table[(table.norm == "none") & (table.recipe == "old")], ["norm"], "validation")
    target = plain.groupby("seed").validation.first()
    keys = ["norm", "recipe", "times", "seed"]
    needed = {key: first_at(run.step, run.accuracy, target[key[-1]]) for key, run in table.groupby(keys, sort=False)}
    runs = table.drop_duplicates(keys).drop(columns=["step", "accuracy"]).set_index(keys)
    return runs.assign(needed=pd.Series(needed)).reset_index(), float(plain.times.iloc[0])


def arms_of(table: pd.DataFrame) -> dict[str, tuple[str, str, float]]:
    """Return norm, recipe and multiple of the base rate of each arm; that of `recipe`, without BN, is tuned anew."""
    best = runs_of(table)[1]
    renewed, _ = tuned(table[(table.norm == "none") & (table.recipe == "new")], ["norm"], "validation")
    return {
        "none": ("none", "old", best), "none_x5": ("none", "old", 5), "none_x30": ("none", "old", 30),
        "layer": ("batch", "old", best), "layer_x5": ("batch", "old", 5), "recipe": ("none", "new", renewed.times.iloc[0]),
        "x5": ("batch", "new", 5), "x30": ("batch", "new", 30),
    }  # fmt: skip


def by_arm(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return one row a seed, one column an arm."""
    wide = side_by_side(runs_of(table)[0], ["norm", "recipe", "times"], value)
    return pd.DataFrame({name: wide[arm] for name, arm in arms_of(table).items()})


@rates.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=3.8)
    runs, best = runs_of(table)
    arms = arms_of(table)
    for name, (label, line) in ARMS.items():
        norm, recipe, times = arms[name]
        arm = table[(table.norm == norm) & (table.recipe == recipe) & (table.times == times)]
        median_and_band(left, arm, "step", "accuracy", label=label, **line)
    target = runs[(runs.norm == "none") & (runs.recipe == "old") & (runs.times == best)].validation.median()
    left.axhline(target, color=INK, linewidth=0.8, linestyle="--")
    left.set(xscale="log", xlabel="step", ylabel="accuracy on held-out images", ylim=(0, 1))
    never = 1.5 * table.step.max()
    for norm in ("none", "batch"):
        for recipe, style in (("old", "-"), ("new", "--")):
            chosen = runs[(runs.norm == norm) & (runs.recipe == recipe)]
            medians = chosen.groupby("rate").needed.median().clip(upper=never)
            name = "BN" if norm == "batch" else "no BN"
            marker = {"marker": "o", "markersize": 4, "mfc": None if recipe == "old" else PAPER}
            right.plot(medians.index, medians, style, color=norm_color(norm), label=f"{name}, {recipe} recipe", **marker)
    right.axhline(never, color=INK, linewidth=0.8, linestyle=":")
    note(right, "not reached", 0.02, never * 1.04, transform=right.get_yaxis_transform(), fontsize=8.5, va="bottom")
    right.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="steps to the dashed accuracy", ylim=(None, 1.4 * never))
    right.set_xticks(sorted(runs.rate.unique()), [f"{rate:g}" for rate in sorted(runs.rate.unique())])
    for axis, ends in ((left.xaxis, table.step), (right.yaxis, runs.needed)):
        ticks = [
            tick for tick in (5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000) if ends.min() / 1.1 <= tick <= table.step.max()
        ]
        axis.set_ticks(ticks, [f"{tick:,}" for tick in ticks])
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_minor_locator(NullLocator())
    look = {"fontsize": 8, "title_fontsize": 8.5, "handlelength": 3}
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", title="left panel", **look)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", title="right panel", **look)
    steps, final = by_arm(table, "needed").median(), by_arm(table, "test_accuracy").median()
    base = table.base.iloc[0]
    said = {name: f"{number(steps[name])} steps" if np.isfinite(steps[name]) else "never" for name in steps.index}
    return Drawing(
        figure,
        caption=f"The network without BN, at its best rate of {number(base * best)}, ends at {target:.0%} (dashed) and first "
        f"gets there after {said['none']} (median over seeds). With BN and nothing else changed: {said['layer']}. With BN, the "
        f"rate ×5 (of {number(base)}) and the new recipe (no dropout, a fifth of the weight decay, rate halved six times instead "
        f"of once): {said['x5']}; with ×30: {said['x30']}. The new recipe without BN: {said['recipe']}. Test accuracy at "
        f"the end: {_percent(final['none'])} without BN, {_percent(final['layer'])} with it, {_percent(final['x5'])} at ×5, "
        f"{_percent(final['x30'])} at ×30.",
        alt="Left: accuracy on held-out images against steps for five arms, with and without batch normalization. Right: steps to "
        "the accuracy of the network without it, against the learning rate, for both recipes.",
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "not a number (diverged)"


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


@rates.claim(
    "layer-alone",
    "At the same rate and with the same recipe, the layer alone reaches the accuracy of the network without it in about half "
    "the steps (the paper: 13.3 instead of 31.0 million).",
    criterion="per seed, steps without BN at its best rate over steps with BN at the same rate: at least 2",
)
def _(table):
    steps = by_arm(table, "needed")
    return judge_effect("times fewer steps by the layer alone", steps.none / steps.layer, claimed=(2, np.inf), null=1)


@rates.claim(
    "fourteen",
    "With five times the rate and the new recipe the steps are fourteen times fewer.",
    criterion="per seed, steps without BN at its best rate over steps with BN ×5 and the new recipe: at least 10",
)
def _(table):
    steps = by_arm(table, "needed")
    said = f"BN ×5 with the old recipe: {number((steps.none / steps.layer_x5).median())} times"
    return judge_effect("times fewer steps in all", steps.none / steps.x5, claimed=(10, np.inf), null=1, note=said)


@rates.claim(
    "beyond-the-layer",
    "Rate and recipe together make the network with BN several times faster still (the paper: 13.3 down to 2.1 million steps).",
    criterion="per seed, steps with BN at the old rate and recipe over steps with BN ×5 and the new recipe: at least 2",
)
def _(table):
    steps = by_arm(table, "needed")
    return judge_effect("times fewer steps by rate and recipe", steps.layer / steps.x5, claimed=(2, np.inf), null=1)


@rates.claim(
    "larger-part",
    "In this network the layer is the larger part of the gain, rate and recipe the smaller one.",
    criterion="per seed, logarithm of the layer's factor over logarithm of the whole factor (BN ×5, new recipe): above 0.5",
    by="notes",
)
def _(table):
    steps = by_arm(table, "needed")
    with np.errstate(divide="ignore", invalid="ignore"):  # an accuracy that is never reached
        share = np.log(steps.none / steps.layer) / np.log(steps.none / steps.x5)
    paper = np.log(PRINTED["none"] / PRINTED["layer"]) / np.log(PRINTED["none"] / PRINTED["x5"])
    alone = (steps.none / steps.recipe).median()
    said = f"from the steps that the paper prints: {number(paper)}; the recipe without the layer is {number(alone)} times faster"
    return judge_effect("the layer's share of the logarithm", share, claimed=(0.5, np.inf), null=0.5, note=said)


@rates.claim(
    "overflow",
    "Without BN the network cannot be trained at five times the rate: its parameters overflow.",
    criterion="per seed, accuracy above chance at ×5 over that at the best rate: at most 0.1; a diverged run counts as 0",
)
def _(table):
    above = (by_arm(table, "validation") - 0.1).fillna(0.0)
    diverged = ((table.status == "diverged") & (table.norm == "none") & (table.recipe == "old") & (table.times == 5)).any()
    said = (
        f"{'some' if diverged else 'no'} run diverges at ×5; at ×30 the share is {number((above.none_x30 / above.none).median())}"
    )
    return judge_effect("share of the accuracy left at ×5", above.none_x5 / above.none, claimed=(-0.1, 0.1), null=1, note=said)


@rates.claim(
    "thirty",
    "The highest rate, thirty times the old one, ends at the highest accuracy of all (the paper: 74.8 %).",
    criterion="per seed, test accuracy of BN ×30 less the best of no BN, BN alone and BN ×5: above 0",
)
def _(table):
    final = by_arm(table, "test_accuracy").fillna(0.0)
    gain = final.x30 - final[["none", "layer", "x5"]].max(axis=1)
    return judge_effect("gain in test accuracy", gain, claimed=(0, np.inf), null=0)
