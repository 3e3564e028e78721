"""Wu & He (2018), the protocol of their figures 1 and 5: eight workers, ever fewer images for each, and ever more updates."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MultipleLocator

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, INK, PAPER, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import tuned
from normlib.studies.flavors.convnets import RECIPE, convnet, errors, fit

WORKERS = 8
MOST = 32  # images per worker at which the rate is chosen
IMAGES = [32, 16, 8, 4, 2]  # per worker
SPECS = {"batch": "batch:ghost={}", "group": "group:size=8"}
BASE = {"batch": 0.6, "group": 0.1}  # rate at 32 images per worker; of those tried below, the best on held-out images
TRIED = {"batch": [0.2, 0.6, 1.8], "group": [0.033, 0.1, 0.3]}
PAPER_TABLE = {"batch": [23.6, 23.7, 24.8, 27.3, 34.7], "group": [24.1, 24.2, 24.0, 24.2, 24.1]}  # ImageNet, ResNet-50, percent


def runs(images: list[int], tried: dict[str, list[float]]) -> list[str]:
    """List the runs, "norm images rate": every rate at most images per worker, and the chosen one at fewer."""
    at_most = [f"{norm} {images[0]} {rate}" for norm in SPECS for rate in tried[norm]]
    return at_most + [f"{norm} {count} {BASE[norm]}" for norm in SPECS for count in images[1:]]


batch_size = Study(
    "wu2018.batch_size",
    item="Figs 1 and 5, Table 2",
    title="Batch norm against group norm as each worker gets fewer images",
    kind="train",
    vary={"run": runs(IMAGES, TRIED)},
    quick={
        "data": "digits", "pool": 1, "train": 1_152, "test": 352, "depth": 4, "width": 8, "epochs": 4,
        "run": runs([32, 8, 2], {norm: [rate] for norm, rate in BASE.items()}),
    },
    laptop={"data": "fashion-mnist", "train": 7_680, "test": 6_000, "pool": 2, "depth": 6, "width": 32, "epochs": 3},
    full={"data": "cifar10", "train": 49_152, "test": 10_000, "pool": 1, "depth": 10, "width": 64, "epochs": 30},
)  # fmt: skip


def read(run: str) -> tuple[str, int, float]:
    """Return the norm, the images per worker, and the rate that belongs to 32 of them, which a run's name holds.

    Example:
        >>> read("batch 8 0.2")
        ('batch', 8, 0.2)
    """
    norm, images, rate = run.split()
    return norm, int(images), float(rate)


@batch_size.trial
def _(c, seed):
    norm, count, base = read(c.run)
    tune, images = images_for(c, seed)
    net = convnet(c, tune, SPECS[norm].format(count), seed)
    run = fit(net, tune, epochs=c.epochs, rate=base * count / MOST, seed=seed, batch=WORKERS * count)
    columns = {"norm": norm, "images": count, "rate": base, "updates": len(run.loss)}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    return {**columns, **errors(net, tune, images)}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def _kept(table):
    """Keep the runs at the rate that was fixed for each norm before the runs, and tell which rates they are."""
    return table[[BASE[norm] == rate for norm, rate in zip(table.norm, table.rate, strict=True)]]


def _scores(table, column="test_error"):
    """Return the error in percent: one row per seed, columns (norm, images per worker)."""
    return side_by_side(_kept(table), ["norm", "images"], column)


def _gap(table):
    """Return batch norm's test error less group norm's, in points: one row per seed, one column per number of images."""
    scores = _scores(table)
    return scores["batch"] - scores["group"]


@batch_size.draw
def _(table):
    kept = _kept(table)
    figure, (left, right) = subplots(1, 2, height=3.1)
    for norm in SPECS:
        arm = kept[kept.norm == norm]
        median_and_band(left, arm, "images", "test_error", color=norm_color(norm), marker="o", label=f"{norm} norm")
        median_and_band(left, arm, "images", "train_error", color=norm_color(norm), marker="o", mfc=PAPER, linestyle="--")
    left.set_ylabel("error (%)")
    left.set_ylim(0, None)
    left.legend(loc="upper right")
    note(left, "solid: test\ndashed: training", 0.03, 0.04, fontsize=8.5)
    gap = _gap(table)
    for _, row in gap.iterrows():
        right.plot(gap.columns, row, "o", color=norm_color("batch"), mfc="none")
    right.plot(gap.columns, gap.median(), color=norm_color("batch"), label="here, a dot a seed")
    paper = np.subtract(PAPER_TABLE["batch"], PAPER_TABLE["group"])
    right.plot(IMAGES, paper, "D:", color=GRAY, label="the paper, ImageNet")
    right.axhline(0, color=INK, linewidth=0.8)
    right.set_ylabel("batch norm less group norm\n(points of test error)")
    right.yaxis.set_major_locator(MultipleLocator(5))
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="images per worker", xlim=(1.75, 37))
        axes.invert_xaxis()
        axes.set_xticks(list(gap.columns), [f"{count}" for count in gap.columns])
        axes.minorticks_off()
    scores, updates = _scores(table).median(), kept.groupby("images").updates.first()
    most, least = max(gap.columns), min(gap.columns)
    words = "; ".join(
        f"{norm} norm {number(scores[norm, most])} % at {most} and {number(scores[norm, least])} % at {least}" for norm in SPECS
    )
    return Drawing(
        figure,
        caption=f"The paper's protocol: {WORKERS} workers share gradients and no statistics. Batch norm takes its statistics over "
        f"the images of a worker, and an update takes {WORKERS} times as many. The epochs are the same, so the updates grow from "
        f"{updates[most]} to {updates[least]}; the rate is proportional to the images ({RECIPE}). **Left** Test error: {words}. "
        f"**Right** From {most} to {least} images batch norm less group norm goes from {number(gap[most].median())} to "
        f"{number(gap[least].median())} points, in the paper from {number(paper[0])} to {number(paper[-1])}. Running averages in "
        f"every test. {_rates(table)}",
        alt="Left: test and training error of batch and group norm against images per worker, from 32 down to 2. Right: batch "
        "norm's test error less group norm's, a dot a seed, with the paper's differences on ImageNet.",
    )


def _rates(table):
    """Say which rates were used at most images, and which are the best by the records."""
    most = table[table.images == table.images.max()]
    best = tuned(most, ["norm"], "held_out_error", low=True)[1]
    tried = {norm: ", ".join(number(rate) for rate in sorted(most[most.norm == norm].rate.unique())) for norm in SPECS}
    said = "; ".join(
        f"{norm} norm {number(BASE[norm])}, set beforehand (best by held-out error of {tried[norm]}: {number(best[norm])})"
        for norm in SPECS
    )
    return f"Rates at {most.images.max()} images: {said}."


@batch_size.claim(
    "batch-rises",
    "Batch norm's error rises as the images per worker become fewer.",
    criterion="batch norm's test error is higher at 2 images per worker than at 32",
)
def _(table):
    scores = _scores(table)["batch"]
    said = ", ".join(f"{count}: {number(scores[count].median())} %" for count in sorted(scores, reverse=True))
    return judge_effect("points of error, 2 images minus 32", scores[2] - scores[32], claimed=(0, np.inf), null=0, note=said)


@batch_size.claim(
    "group-flat",
    "Group norm's error is the same at 32 images per worker and at every smaller number down to 2.",
    criterion="the largest of group norm's test errors, over the numbers of images, is less than half a point above the smallest",
)
def _(table):
    scores = _scores(table)["group"]
    said = ", ".join(f"{count}: {number(scores[count].median())} %" for count in sorted(scores, reverse=True))
    spread = scores.max(axis=1, skipna=False) - scores.min(axis=1, skipna=False)
    return judge_effect("points of error, largest minus smallest", spread, claimed=(0, 0.5), null=np.nan, note=said)


@batch_size.claim(
    "batch-ahead-at-32",
    "At 32 images per worker batch norm has the lower error.",
    criterion="group norm's test error is above batch norm's at 32 images per worker (the paper: by half a point)",
)
def _(table):
    return judge_effect("points of error, group minus batch norm", -_gap(table)[32], claimed=(0, np.inf), null=0)


@batch_size.claim(
    "group-ahead-at-2",
    "At 2 images per worker group norm has the lower error.",
    criterion="batch norm's test error is above group norm's at 2 images per worker",
)
def _(table):
    return judge_effect("points of error, batch minus group norm", _gap(table)[2], claimed=(0, np.inf), null=0)


@batch_size.claim(
    "ten-points",
    "At 2 images per worker group norm's error is 10.6 points lower than batch norm's.",
    criterion="at 2 images per worker it is lower by at least 5.3 points, half of the paper's number",
)
def _(table):
    note = "on a small network and small images, where the errors are others than on ImageNet"
    return judge_effect("points of error, batch minus group norm", _gap(table)[2], claimed=(5.3, np.inf), null=0, note=note)


@batch_size.claim(
    "against-group",
    "From 32 to 2 images per worker batch norm loses ground on group norm, which gets the same updates.",
    criterion="batch norm's test error less group norm's is greater at 2 images per worker than at 32",
)
def _(table):
    gap = _gap(table)
    said = ", ".join(f"{count}: {number(gap[count].median())}" for count in sorted(gap, reverse=True))
    return judge_effect("points of error gained by the gap", gap[2] - gap[32], claimed=(0, np.inf), null=0, note=said)


@batch_size.claim(
    "updates-move",
    "The protocol moves the updates too: group norm, which has no statistic batch, gets better where the workers get fewer images.",
    criterion="group norm's test error is at least one point lower at 2 images per worker than at 32",
    by="notes",
)
def _(table):
    scores = _scores(table)["group"]
    return judge_effect("points of error, 32 images minus 2", scores[32] - scores[2], claimed=(1, np.inf), null=0)
