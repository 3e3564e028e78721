"""A rule of thumb put to the test: group norm for batches of one, layer norm for five, batch norm for a thousand."""

from __future__ import annotations

import numpy as np

from normlib.lab import Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import INK, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.studies.flavors.convnets import RECIPE, convnet, fit
from normlib.studies.flavors.wu2018_damage import over
from normlib.training import accuracy

RULE = {1: "group", 5: "layer", 1000: "batch"}  # images per update and per statistic, and what the draft recommends
SPECS = {"group": "group:size=4", "layer": "layer", "batch": "batch", "instance": "instance:affine=True"}
RIVALS = list(RULE.values())
MIDDLE = {1: 0.009, 5: 0.015, 1000: 0.6}  # of the learning rates
ARMS = [f"{batch} {norm}" for batch in RULE for norm in RIVALS] + ["1 instance"]

rule_of_thumb = Study(
    "notes.rule_of_thumb",
    item="seed 004, other notes",
    title="Does the batch decide between group, layer and batch norm?",
    kind="train",
    vary={"arm": ARMS, "times": [0.33, 1, 3]},
    quick={
        "data": "digits", "pool": 1, "train": 1_300, "validation": 200, "test": 300, "depth": 4, "width": 8, "times": [1],
        "updates": {"1": 200, "1000": 10, "5": 100},
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 6_000, "validation": 1_000, "test": 5_000, "depth": 4, "width": 16,
        "updates": {"1": 2_500, "1000": 50, "5": 1_200},
    },
    full={
        "data": "cifar10", "pool": 1, "train": 50_000, "validation": 5_000, "test": 10_000, "depth": 10, "width": 64,
        "updates": {"1": 90_000, "1000": 1_800, "5": 36_000},
    },
)  # fmt: skip


@rule_of_thumb.trial
def _(c, seed):
    batch, norm = c.arm.split()
    size = int(batch)
    tune, images = images_for(c, seed)
    net = convnet(c, tune, SPECS[norm], seed)
    rate, per_epoch = c.times * MIDDLE[size], len(tune.x_train) // size
    run = fit(net, tune, epochs=c.updates[batch] / per_epoch, rate=rate, seed=seed, batch=size)
    columns = {"batch": size, "norm": norm, "rate": rate, "steps": len(run.loss)}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    x, y = images.x_test, images.y_test
    own = accuracy(over(net, min(size, len(x))), x, y, statistics="train", batch_size=max(size, 100))
    return {
        **columns,
        "held_out_error": 100 * (1 - accuracy(net, tune.x_test, tune.y_test, statistics="eval", batch_size=500)),
        "test_error": 100 * (1 - accuracy(net, x, y, statistics="eval", batch_size=500)),
        "own_error": 100 * (1 - own),
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def _best(table):
    return tuned(table, ["batch", "norm"], "held_out_error", low=True)


def _scores(table):
    """Return the test error: one row per seed, columns (images, norm), each at its rate."""
    return side_by_side(_best(table)[0], ["batch", "norm"], "test_error")


def ahead(scores, batch: int, norm: str):
    """Return by how many points the better of the two other norms is above a norm, at a batch; below zero if it is better.

    Args:
        scores: the error in percent, columns (images, norm).
        batch: images per update.
        norm: one of the three that the rule chooses from.
    """
    others = scores[batch][[other for other in RIVALS if other != norm]]
    return others.min(axis=1, skipna=False) - scores[batch][norm]


@rule_of_thumb.draw
def _(table):
    kept, rates = _best(table)
    figure, panels = subplots(1, 3, height=3.0, sharey=True, gridspec_kw={"width_ratios": [4.4, 3, 3]})
    for axes, (batch, choice) in zip(panels, RULE.items(), strict=True):
        norms = [norm for norm in SPECS if (batch, norm) in rates]
        for at, norm in enumerate(norms):
            arm = kept[(kept.batch == batch) & (kept.norm == norm)]
            axes.plot([at] * len(arm), arm.test_error, "o", color=norm_color(norm), alpha=0.9)
            axes.plot([at - 0.22, at + 0.22], [arm.test_error.median()] * 2, color=norm_color(norm))
            if norm == "batch" and batch == 1:
                axes.plot([at] * len(arm), arm.own_error, "o", color=norm_color(norm), mfc="none")
        axes.set(yscale="log", xlim=(-0.5, len(norms) - 0.5))
        axes.set_title("1 image" if batch == 1 else f"{batch} images", fontsize=10)
        axes.set_xticks(range(len(norms)), norms, fontsize=8.5)
        place = norms.index(choice)
        axes.axvspan(place - 0.42, place + 0.42, color=norm_color(choice), alpha=0.13, linewidth=0)
        axes.grid(False, axis="x")
    low, high = panels[0].get_ylim()
    ticks = [tick for tick in (5, 10, 15, 20, 30, 40, 60, 80) if low < tick < high]
    panels[0].set_yticks(ticks, [f"{tick}" for tick in ticks])
    for axes in panels:
        axes.minorticks_off()
    panels[0].set_ylabel("test error (%)")
    note(panels[1], "shaded: the rule's choice", 0.97, 0.93, ha="right", fontsize=8.5, color=INK)
    if any((kept.batch == 1) & (kept.norm == "batch")):
        note(panels[0], "open: own statistics", 0.97, 0.04, ha="right", fontsize=8.5, color=norm_color("batch"))
    scores = _scores(table).median()
    words = "; ".join(
        f"{batch}: " + ", ".join(f"{norm} {number(scores[batch, norm])} %" for norm in RIVALS if (batch, norm) in scores)
        for batch in RULE
    )
    own = kept[(kept.batch == 1) & (kept.norm == "batch")].own_error.median()
    chosen = "; ".join(
        f"at {batch} " + ", ".join(f"{number(rates[batch, norm])} {norm}" for norm in SPECS if (batch, norm) in rates)
        for batch in RULE
    )
    updates = ", ".join(f"{count} of {batch}" for batch, count in kept.groupby("batch").steps.first().items())
    ends = [f"{norm} at {batch}" for batch, norm in at_ends(table, ["batch", "norm"], rates)]
    return Drawing(
        figure,
        caption="Test error by images per update, over which batch norm also takes its statistics: a dot a seed, the bar their "
        f"median; shaded the norm that the rule names. {words}. Batch norm is tested with running averages; with one image it has "
        f"{number(own)} % with each image's own statistics (open), as instance norm. Updates: {updates} images; within a panel "
        f"every norm sees the same images in the same order ({RECIPE}). Rates, by held-out error: {chosen}{ends_in_words(ends)}.",
        alt="Three panels for updates of 1, 5 and 1000 images: test errors of group, layer and batch norm, with one image also "
        "instance norm, a dot a seed on a log axis. The norm that the rule of thumb names is shaded.",
    )


def _judge(table, batch, remark=""):
    scores, choice = _scores(table), RULE[batch]
    said = ", ".join(f"{norm} {number(scores[batch][norm].median())} %" for norm in RIVALS) + remark
    effect = f"points of error, the better other norm minus {choice} norm"
    return judge_effect(effect, ahead(scores, batch, choice), claimed=(0, np.inf), null=0, note=said)


@rule_of_thumb.claim(
    "one-group",
    "For a batch of one image group norm might be the best choice.",
    criterion="at 1 image per update and statistic group norm has the lowest test error of group, layer and batch norm",
    by="seed004",
)
def _(table):
    return _judge(table, 1, "; at a first grid of rates the lead of layer norm was not resolved")


@rule_of_thumb.claim(
    "five-layer",
    "For a batch of five images layer norm might be the best choice.",
    criterion="at 5 images per update and statistic layer norm has the lowest test error of group, layer and batch norm",
    by="seed004",
)
def _(table):
    return _judge(table, 5)


@rule_of_thumb.claim(
    "thousand-batch",
    "For a batch of a thousand images batch norm makes more sense than layer or group norm.",
    criterion="at 1000 images per update and statistic batch norm has the lowest test error of group, layer and batch norm",
    by="seed004",
)
def _(table):
    return _judge(table, 1000)


@rule_of_thumb.claim(
    "group-or-layer",
    "The batch does not decide between group and layer norm: in this network group norm has the lower error at all three.",
    criterion="layer norm's test error less group norm's, at 1, 5 and 1000 images: the smallest of the three is above 0",
    by="notes",
)
def _(table):
    scores = _scores(table)
    gaps = {batch: scores[batch]["layer"] - scores[batch]["group"] for batch in RULE}
    said = ", ".join(f"{batch}: {number(gap.median())}" for batch, gap in gaps.items())
    smallest = np.minimum.reduce([gap.to_numpy() for gap in gaps.values()])
    return judge_effect(
        "points of error, layer minus group norm, smallest of three", smallest, claimed=(0, np.inf), null=0, note=said
    )


@rule_of_thumb.claim(
    "one-is-instance",
    "Batch norm trained on batches of one image is instance norm, as long as it keeps each image's own statistics in the test.",
    criterion="at 1 image, at every rate and seed, its test error with each image's own statistics differs from instance norm's "
    "by at most half a point",
    by="notes",
)
def _(table):
    one = table[table.batch == 1]
    errors = side_by_side(one, ["norm", "rate"], "own_error")
    difference = (errors["batch"] - errors["instance"]).abs().to_numpy().max()
    return judge_identity("largest difference, in points of error", difference, 0.5)
