"""Brock, De & Smith (2021a), their comparison at small batches: batch norm, no norm, and a norm that takes no batch."""

from __future__ import annotations

import numpy as np

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import ResNet
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import PAPER, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.studies.normalizer_free.tricks import FULL, LAPTOP, QUICK, RECIPE, fit, resnet
from normlib.surgery import swap
from normlib.training import accuracy

MOST = 64  # images per update at which the rate is chosen
SIZES = [64, 8, 4, 2]  # images per update, and per statistic of batch norm
NAMES = {"batch": "batch norm", "nf": "NF", "group": "group norm"}
COLORS = {"batch": norm_color("batch"), "nf": norm_color("scaled_weight"), "group": norm_color("group")}
TRIED = {"batch": [0.2, 0.4, 0.8, 1.6], "nf": [0.1, 0.2, 0.4, 0.8], "group": [0.05, 0.1, 0.2, 0.4]}  # rates at 64 images
BASE = {"batch": 0.4, "nf": 0.2, "group": 0.2}  # of these, the best on held-out images over all seeds


def runs(sizes: list[int], tried: dict[str, list[float]]) -> list[str]:
    """List the runs, "arm images rate": every rate at most images, and the chosen one at fewer."""
    at_most = [f"{arm} {MOST} {rate}" for arm in NAMES for rate in tried[arm]]
    return at_most + [f"{arm} {size} {BASE[arm]}" for arm in NAMES for size in sizes if size != MOST]


small_batch = Study(
    "brock2021a.small_batch",
    item="small batches, after Table 2",
    title="Batch norm, no norm and group norm as the batch goes down to two images",
    kind="train",
    vary={"run": runs(SIZES, TRIED)},
    quick={**QUICK, "train": 320, "epochs": 2, "run": runs([64, 2], {arm: [rate] for arm, rate in BASE.items()})},
    laptop={**LAPTOP, "stages": [1, 1, 1], "train": 1_024, "validation": 384, "epochs": 6},
    full={**FULL, "epochs": 30},
)


def read(run: str) -> tuple[str, int, float]:
    """Return the arm, the images per update, and the rate that belongs to 64 of them, which a run's name holds.

    Example:
        >>> read("nf 8 0.2")
        ('nf', 8, 0.2)
    """
    arm, size, rate = run.split()
    return arm, int(size), float(rate)


def network(c: Config, images: Dataset, arm: str, seed: int) -> ResNet:
    """Build the residual network of an arm; group norm stands where batch norm does, in groups of four channels."""
    net = resnet(c, images, "nf" if arm == "nf" else "batch", seed)
    if arm == "group":
        swap(net, {"batch": "group:size=4"})
    return net


@small_batch.trial
def _(c, seed):
    arm, size, base = read(c.run)
    tuning, testing = images_for(c, seed)
    net = network(c, tuning, arm, seed)
    steps = c.epochs * (len(tuning.x_train) // size)
    run = fit(net, tuning, steps=steps, rate=base * size / MOST, seed=seed, batch=size)
    columns = {"arm": arm, "images": size, "rate": base, "updates": steps}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    held_out, tested = (
        100 * accuracy(net, images.x_test, images.y_test, statistics="eval", batch_size=500) for images in (tuning, testing)
    )
    batches = tuning.x_train[: len(tuning.x_train) // size * size].split(size)
    renewed = 100 * population_accuracy(net, batches, testing.x_test, testing.y_test)
    return {**columns, "held_out": held_out, "tested": tested, "renewed": renewed}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def kept(table):
    """Keep the runs at each arm's rate: the best at most images, and what it becomes at fewer."""
    return table[[BASE[arm] == rate for arm, rate in zip(table.arm, table.rate, strict=True)]]


def scores(table, column="tested"):
    """Return the accuracy in percent: one row per seed, columns (arm, images)."""
    return side_by_side(kept(table), ["arm", "images"], column)


def lead(table, arm="nf"):
    """Return by how many points an arm is ahead of batch norm: one row per seed, one column per number of images."""
    points = scores(table)
    return points[arm] - points["batch"]


@small_batch.draw
def _(table):
    shown = kept(table)
    figure, (left, right) = subplots(1, 2, height=3.3)
    for arm, name in NAMES.items():
        median_and_band(left, shown[shown.arm == arm], "images", "tested", color=COLORS[arm], marker="o", label=name)
    batch = shown[shown.arm == "batch"]
    dashed = {"linestyle": "--", "marker": "o", "mfc": PAPER}
    median_and_band(left, batch, "images", "renewed", color=COLORS["batch"], label="batch norm, renewed", **dashed)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5)
    left.set_ylabel("test accuracy (%)")
    for arm, move in (("nf", 0.94), ("group", 1.06)):
        ahead = lead(table, arm)
        for _, row in ahead.iterrows():
            right.plot(ahead.columns * move, row, "o", color=COLORS[arm], mfc="none")
        right.plot(ahead.columns * move, ahead.median(), color=COLORS[arm])
    right.axhline(0, color=COLORS["batch"], linewidth=1)
    note(right, "batch norm", 0.03, 0, transform=right.get_yaxis_transform(), color=COLORS["batch"], va="bottom")
    right.set_ylabel("points ahead of batch norm")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="images per update and statistic", xlim=(1.6, 80))
        axes.invert_xaxis()
        axes.set_xticks(sorted(table.images.unique()), [f"{size}" for size in sorted(table.images.unique())])
        axes.minorticks_off()
    middle, updates = scores(table).median(), shown.groupby("images").updates.first()
    sizes = sorted(updates.index, reverse=True)
    said = "; ".join(f"{name} {', '.join(number(middle[arm][size]) for size in sizes)}" for arm, name in NAMES.items())
    lost = shown[shown.tested.isna()].groupby(["arm", "images"]).seed.nunique()
    failed = "".join(f" {count} run of {NAMES[arm]} at {size} diverged and is left out." for (arm, size), count in lost.items())
    return Drawing(
        figure,
        caption=f"Test accuracy in percent at {', '.join(map(str, sizes))} images per update, "
        f"median of seeds: {said}.{failed} For batch norm the SGD batch is the statistic batch, "
        f"too. The epochs are the same, so the updates grow from {updates[MOST]} to {updates[2]}; the rate is proportional to the "
        f"images. **Left** Running averages in the test; dashed, averages over all training batches of the same size "
        f"({number(scores(table, 'renewed').median()['batch', 2])} % at 2). **Right** Differences to batch norm, a ring a seed. "
        f"Residual network of {len(table.stages.iloc[0])} blocks, {RECIPE}. {_rates(table)}",
        alt="Left: test accuracy against images per update from 64 to 2 for batch norm, a normalizer-free network and group norm; "
        "batch norm with renewed statistics dashed. Right: points ahead of batch norm, a ring a seed.",
    )


def _rates(table):
    """Say which rates were used at most images, and which are the best by the records."""
    most = table[table.images == MOST]
    best = tuned(most, ["arm"], "held_out")[1]
    off = ("" if best[arm] == BASE[arm] else f" (here the best is {number(best[arm])})" for arm in NAMES)
    said = "; ".join(f"{name} {number(BASE[arm])}{other}" for (arm, name), other in zip(NAMES.items(), off, strict=True))
    ends = ends_in_words([NAMES[arm] for arm in at_ends(most, ["arm"], best)])
    return f"Rates at {MOST} images, by held-out accuracy over the seeds: {said}{ends}."


@small_batch.claim(
    "nf-ahead-at-4",
    "With 4 images in a batch the normalizer-free network has a higher accuracy than batch norm.",
    criterion="test accuracy at batch 4, NF less batch norm, above 0",
)
def _(table):
    ahead = lead(table)
    said = ", ".join(f"{size}: {number(ahead[size].median())}" for size in sorted(ahead, reverse=True))
    if 4 not in ahead:
        return judge_effect("points of accuracy at batch 4, NF less batch norm", [], claimed=(0, np.inf), null=0)
    note = f"by batch, {said}"
    return judge_effect("points of accuracy at batch 4, NF less batch norm", ahead[4], claimed=(0, np.inf), null=0, note=note)


@small_batch.claim(
    "batch-loses-ground",
    "From 64 to 2 images batch norm loses ground on the normalizer-free network, which gets the same updates.",
    criterion="NF less batch norm, in points of test accuracy, is greater at batch 2 than at 64",
    by="notes",
)
def _(table):
    ahead = lead(table)
    note = f"ahead by {number(ahead[MOST].median())} at {MOST} and by {number(ahead[2].median())} at 2"
    return judge_effect("points that NF gains on batch norm", ahead[2] - ahead[MOST], claimed=(0, np.inf), null=0, note=note)


@small_batch.claim(
    "nf-stays",
    "The normalizer-free network is at no smaller batch more than 2 points below its accuracy at 64.",
    criterion="test accuracy at 64 less the lowest at 8, 4 and 2: at most 2 points",
    by="notes",
)
def _(table):
    points = scores(table)["nf"]
    lost = points[MOST] - points.drop(columns=MOST).min(axis=1, skipna=False)
    said = ", ".join(f"{size}: {number(points[size].median())} %" for size in sorted(points, reverse=True))
    return judge_effect("points lost at the worst batch", lost, claimed=(-np.inf, 2), null=np.nan, note=said)


@small_batch.claim(
    "the-batch-and-not-the-norm",
    "At batch 2 a network that normalizes without a batch, by group norm, has a higher accuracy than batch norm.",
    criterion="test accuracy at batch 2, group norm less batch norm, above 0",
    by="notes",
)
def _(table):
    ahead = lead(table, "group")[2]
    note = f"NF is ahead by {number(lead(table)[2].median())}"
    return judge_effect("points of accuracy at batch 2, group less batch norm", ahead, claimed=(0, np.inf), null=0, note=note)


@small_batch.claim(
    "lost-in-the-test",
    "At batch 2 at least half of batch norm's gap to the normalizer-free network lies in its running averages: averages over all "
    "training batches close it.",
    criterion="share of the gap in test accuracy at batch 2 that goes with averages over all training batches of that size: at "
    "least 0.5; no number for a seed without a gap",
    by="notes",
)
def _(table):
    gap = lead(table)[2]
    gained = (scores(table, "renewed") - scores(table))["batch"][2]
    share = (gained / gap).where(gap > 0)
    note = f"{number(gained.median())} points of {number(gap.median())}"
    return judge_effect("share of the gap at batch 2", share, claimed=(0.5, np.inf), null=0, note=note)
