"""De & Smith (2020): how deep a residual network trains with batch norm, with nothing, and with what stands in for it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import GREEN, INK, ORANGE, PINK, SKY, VERMILION, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import RECIPE, TRICKS, fit, resnet

LOOKS = {
    "batch": (norm_color("batch"), "o"), "none": (norm_color("none"), "v"), "scaled_sum": (ORANGE, "s"),
    "skipinit_root": (GREEN, "^"), "skipinit": (SKY, "P"), "fixup": (VERMILION, "X"), "rescale": (PINK, "D"),
    "nf": (norm_color("scaled_weight"), "*"),
}  # fmt: skip
SMALL = [
    "skipinit_root",
    "skipinit",
    "fixup",
    "rescale",
    "nf",
]  # each keeps branches small beside their shortcuts
GUESS = 10.0  # percent
NEAR = 5.0  # points of held-out accuracy that count as near the best
LAST = 10  # updates over which the final training loss is averaged

depth = Study(
    "de2020.depth",
    item="§4, Table 1",
    title="How deep does a residual network train, with batch norm and with what replaces it?",
    kind="train",
    vary={"trick": list(LOOKS), "blocks": [1, 4, 12], "rate": [0.02, 0.06, 0.2, 0.6]},
    quick={
        "data": "digits", "pool": 2, "train": 256, "validation": 64, "test": 128, "width": 4, "batch": 32, "steps": 10,
        "blocks": [1, 4], "rate": [0.2],
    },
    laptop={
        "data": "fashion-mnist", "pool": 4, "train": 2_560, "validation": 512, "test": 1_000, "width": 8, "batch": 64, "steps": 60,
    },
    full={
        "data": "cifar10", "pool": 1, "validation": 5_000, "width": 16, "batch": 128, "steps": 10_000, "blocks": [4, 16, 64, 256],
        "rate": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
    },
)  # fmt: skip


@depth.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = resnet(Config({**c, "stages": [c.blocks]}, c.device), tune, c.trick, seed)
    looks = [c.steps // 10, c.steps // 3]  # a run that has diverged ends there
    history = fit(
        net, tune, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch, probe=lambda *_: {"alive": 1}, probe_steps=looks
    )  # fmt: skip
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}")
    batches = tune.x_train.split(c.batch)[:8]
    parts = {"held_out": (tune.x_test, tune.y_test), "accuracy": (images.x_test, images.y_test)}
    scores = {name: 100 * population_accuracy(net, batches, *part) for name, part in parts.items()}
    return {"loss": float(history.loss[-LAST:].mean()), **scores}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Return the runs at the best rate of each cell, by held-out images, and that rate by (trick, blocks)."""
    return tuned(table, ["trick", "blocks"], "held_out")


def trainable(table):
    """Return the largest number of blocks that trained, 0 if none did: a row a seed, a column a trick.

    Trained means a test accuracy at least halfway from a guess to the best of the same seed, over all tricks and depths.
    """
    scores = side_by_side(best(table)[0], ["trick", "blocks"], "accuracy")
    halfway = (GUESS + scores.max(axis=1)) / 2
    learned = scores.ge(halfway, axis=0).stack(["trick", "blocks"]).rename("learned").reset_index()
    learned["depth"] = np.where(learned.learned, learned.blocks, 0)
    return learned.groupby(["seed", "trick"]).depth.max().unstack("trick").astype(float)


def deepest(table):
    """Return test accuracies of the deepest networks, each at its rate: a row a seed, a column a trick."""
    return side_by_side(best(table)[0], "trick", "accuracy", blocks=table.blocks.max())


def largest_rates(table):
    """Return the largest rate within `NEAR` points of a trick's best held-out accuracy in the deepest network."""
    runs = table[table.blocks == table.blocks.max()]
    top = runs.groupby(["seed", "trick"]).held_out.transform("max")
    return runs[runs.held_out >= top - NEAR].groupby(["seed", "trick"]).rate.max().unstack("trick")


@depth.draw
def _(table):
    kept, rates = best(table)
    most = table.blocks.max()
    figure, (losses, scores, by_rate) = subplots(1, 3, height=3.4)
    for trick, (color, marker) in LOOKS.items():
        dashes = "--" if trick in ("none", "scaled_sum") else "-"
        for place, runs, x, y in (
            (losses, kept[kept.trick == trick], "blocks", "loss"),
            (scores, kept[kept.trick == trick], "blocks", "accuracy"),
            (by_rate, table[(table.trick == trick) & (table.blocks == most)], "rate", "held_out"),
        ):
            label = TRICKS[trick].name if place is losses else None
            median_and_band(
                place, runs, x, y, color=color, label=label, marker=marker, markersize=5, linestyle=dashes, errorbar=None
            )  # fmt: skip
            if place is scores:
                place.plot(runs[x], runs[y], marker, color=color, markersize=3, alpha=0.4)
    for place, column in ((losses, "blocks"), (scores, "blocks"), (by_rate, "rate")):
        ticks = sorted(table[column].unique())
        place.set(xscale="log", xlabel=column)
        place.set_xticks(ticks, [number(tick) for tick in ticks])
        place.xaxis.set_minor_locator(NullLocator())
    losses.axhline(math.log(10), color=INK, linewidth=0.8, linestyle=":")
    losses.set_ylim(0, 3.2)
    for place, title in ((losses, "training loss"), (scores, "test accuracy (%)"), (by_rate, f"held out (%), {most} blocks")):
        place.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    reached = trainable(table).median()
    tested = deepest(table).median()
    said = ", ".join(f"{TRICKS[trick].name} {_percent(tested[trick])}" for trick in LOOKS)
    chosen = {trick: rates[trick, most] for trick in LOOKS}
    names = {trick: TRICKS[trick].name for trick in LOOKS}
    cells = at_ends(table, ["trick", "blocks"], rates)
    ends = ends_in_words([TRICKS[trick].name for trick, blocks in cells if blocks == most])
    return Drawing(
        figure,
        caption=f"Residual networks after {table.steps.iloc[0]} updates of {table.batch.iloc[0]} images; a statistic of batch norm "
        f"is of as many. In each cell the rate is the best of {table.rate.nunique()} by held-out images; {len(cells)} of "
        f"{len(rates)} cells have it at an end of those tried. **Left** Training loss, mean of the last {LAST} updates; dotted: a "
        f"guess. **Middle** Test accuracy; lines are medians, faint marks are seeds. "
        f"With {most} blocks: {said}. The most blocks that train: {number(reached['batch'])} with "
        f"batch norm, {number(reached['none'])} without. **Right** Held-out accuracy by rate with {most} blocks; the best: "
        f"{rates_in_words(chosen, names)}{ends}. Runs whose loss was not finite are left out. "
        f"Recipe: {RECIPE}.",
        alt="Three panels for eight ways to build a residual network: training loss and test accuracy against the number of "
        "blocks, and held-out accuracy against the learning rate in the deepest network.",
    )


def _percent(value: float) -> str:
    return f"{value:.1f} %" if np.isfinite(value) else "diverged"


def _depths(table, *tricks: str) -> str:
    """Say which depths were tried and how far each trick came."""
    reached = trainable(table).median()
    tried = ", ".join(str(blocks) for blocks in sorted(table.blocks.unique()))
    return "; ".join([f"tried: {tried} blocks", *(f"{TRICKS[trick].name}: {number(reached[trick])}" for trick in tricks)])


@depth.claim(
    "skipinit",
    "SkipInit trains networks as deep as batch norm does.",
    criterion="most blocks that train (test accuracy halfway from a guess to the best of the seed, each cell at its best rate), "
    "SkipInit over batch norm, at least 1; of the initial values 0 and 1/√L the one that does worse counts",
)
def _(table):
    reached = trainable(table)
    ratio = reached[["skipinit", "skipinit_root"]].min(axis=1, skipna=False) / reached["batch"]
    said = _depths(table, "batch", "skipinit", "skipinit_root")
    return judge_effect("most blocks that train, SkipInit / batch norm", ratio, claimed=(1, np.inf), null=math.nan, note=said)


@depth.claim(
    "none",
    "Batch norm raises the depth that can be trained.",
    criterion="most blocks that train, as above, batch norm over no norm, at least 2",
)
def _(table):
    reached = trainable(table)
    said = _depths(table, "batch", "none")
    ratio = reached["batch"] / reached["none"]
    return judge_effect("most blocks that train, batch norm / no norm", ratio, claimed=(2, np.inf), null=1, note=said)


@depth.claim(
    "fixup",
    "Fixup trains networks as deep as batch norm does.",
    criterion="most blocks that train, as above, Fixup over batch norm, at least 1",
    by="zhang2019fixup",
)
def _(table):
    reached = trainable(table)
    said = _depths(table, "batch", "fixup")
    ratio = reached["fixup"] / reached["batch"]
    return judge_effect("most blocks that train, Fixup / batch norm", ratio, claimed=(1, np.inf), null=math.nan, note=said)


@depth.claim(
    "root-two",
    "To divide each sum by √2 is not enough in a deep network: SkipInit reaches more.",
    criterion="deepest network, each at its best rate: test accuracy of SkipInit at 1/√L less that of the sum over √2, at least 3 "
    "points",
)
def _(table):
    scores = deepest(table)
    lead = scores["skipinit_root"] - scores["scaled_sum"]
    return judge_effect("points, SkipInit 1/√L less sum / √2", lead, claimed=(3, np.inf), null=0)


@depth.claim(
    "alike",
    "How a branch is kept small matters little: SkipInit, Fixup, RescaleNet and NF end near each other.",
    criterion="deepest network, each at its best rate: of these five (SkipInit at 0 and at 1/√L), the best test accuracy less the "
    "worst, at most 5 points",
    by="notes",
)
def _(table):
    scores = deepest(table)
    spread = scores[SMALL].max(axis=1, skipna=False) - scores[SMALL].min(axis=1, skipna=False)
    said = f"batch norm less the best of them: {number((scores['batch'] - scores[SMALL].max(axis=1)).median())} points"
    return judge_effect("points, best less worst of five", spread, claimed=(0, 5), null=math.nan, note=said)


@depth.claim(
    "rates",
    "Batch norm withstands larger learning rates than SkipInit.",
    criterion="deepest network: the largest rate within 5 points of a network's own best held-out accuracy, batch norm over "
    "SkipInit at 1/√L, above 1",
)
def _(table):
    largest = largest_rates(table)
    ratio = largest["batch"] / largest["skipinit_root"]
    return judge_effect("largest usable rate, batch norm / SkipInit", ratio, claimed=(1, np.inf), null=1)
