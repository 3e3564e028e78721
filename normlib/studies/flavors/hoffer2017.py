"""Hoffer, Hubara & Soudry (2017): what a large batch loses, and whether ghost batches or more updates give it back."""

from __future__ import annotations

import numpy as np

from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import BLUE, INK, SKY, median_and_band, note, subplots
from normlib.studies.flavors.convnets import RECIPE, convnet, errors, fit
from normlib.studies.flavors.relatives import best, chosen_rates, error_rows, test_errors
from normlib.surgery import reestimate_statistics

LARGE_BATCH, TIMES = 512, 8  # images per update, and how many times the small batch that is
SMALL, SMALL_GHOST, LARGE, GHOST_128, GHOST_32, LONGER = ARMS = [
    "small", "small, ghost 32", "large", "large, ghost 128", "large, ghost 32", "large, longer",
]  # fmt: skip
SPECS = {SMALL: "batch", SMALL_GHOST: "batch:ghost=32", GHOST_128: "batch:ghost=128", GHOST_32: "batch:ghost=32"}
NAMES = {arm: arm.replace(",", " +") for arm in ARMS} | {LONGER: "large + 8× the epochs"}
SQRT = TIMES**0.5

ghost = Study(
    "hoffer2017.ghost",
    item="§3-§5",
    title="Large batches: fewer updates, ghost batches and a longer training",
    kind="train",
    vary={"arm": ARMS, "rate": [0.05 * SQRT**power for power in range(5)]},
    quick={
        "data": "digits", "train": 768, "validation": 128, "test": 256, "depth": 4, "width": 8, "epochs": 4,
        "rate": [0.05, 0.05 * SQRT],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 2_848, "validation": 800, "test": 2_000, "depth": 5, "width": 16, "epochs": 8,
    },
    full={"data": "cifar10", "pool": 1, "train": 45_056, "validation": 4_096, "depth": 8, "width": 64, "epochs": 20},
)  # fmt: skip


@ghost.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = convnet(c, tune, SPECS.get(c.arm, "batch"), seed)
    batch = LARGE_BATCH if "large" in c.arm else LARGE_BATCH // TIMES
    epochs = c.epochs * (TIMES if c.arm == LONGER else 1)
    history = fit(net, tune, epochs=epochs, rate=c.rate, seed=seed, batch=batch)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}")
    reestimate_statistics(net, tune.x_train.split(LARGE_BATCH))  # running ones lag behind after few updates
    return {**errors(net, tune, images), "updates": len(history.loss)}


@ghost.draw
def _(table):
    kept, rates = best(table)
    figure, (rows, by_rate) = subplots(1, 2, height=2.9, gridspec_kw={"width_ratios": [1, 1]})
    error_rows(rows, kept.assign(arm=kept.arm.map(lambda arm: f"batch: {arm}")), {f"batch: {arm}": NAMES[arm] for arm in ARMS})
    looks = {SMALL: (BLUE, "-", "o"), LARGE: (INK, "-", "s"), GHOST_32: (SKY, "--", "s"), LONGER: (INK, ":", "D")}
    for arm, (color, style, marker) in looks.items():
        label = NAMES[arm]
        median_and_band(
            by_rate, table[table.arm == arm], "rate", "held_out_error", color=color, linestyle=style, marker=marker, label=label
        )
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="held-out error (%)")
    by_rate.set_xticks(sorted(table.rate.unique()), [f"{rate:.2g}" for rate in sorted(table.rate.unique())])
    by_rate.minorticks_off()
    by_rate.legend(fontsize=8)
    note(by_rate, "steps of √8", 0.03, 0.03, fontsize=8.5)
    error, updates = test_errors(table).median(), kept.groupby("arm").updates.median()
    return Drawing(
        figure,
        caption=f"Small: {LARGE_BATCH // TIMES} images per update and per statistic; large: {LARGE_BATCH}, over all or over ghosts "
        f"of 128 or 32. **Left** Test error: small {error[SMALL]:.1f} % after {updates[SMALL]:.0f} updates; large "
        f"{error[LARGE]:.1f} % after {updates[LARGE]:.0f}, with ghosts of 128 {error[GHOST_128]:.1f} %, of 32 "
        f"{error[GHOST_32]:.1f} %; large with 8 times the epochs, {updates[LONGER]:.0f} updates, {error[LONGER]:.1f} %. The small "
        f"batch with ghosts of 32 has {error[SMALL_GHOST]:.1f} %. **Right** Held-out error against the rate. Statistics "
        f"re-estimated after training. Learning rates, by held-out images: {chosen_rates(table, rates, NAMES)}. Recipe: {RECIPE}.",
        alt="Left: test errors of each seed and median training errors for small and large batches, with ghost batches of 128 and "
        "32 images and with eight times the epochs. Right: held-out error against the learning rate for four of them.",
    )


@ghost.claim(
    "large-loses",
    "At equal epochs a large batch ends at a higher test error than a small one.",
    criterion="each at its best rate, test error of 512 images per update less that of 64, above 0",
)
def _(table):
    error = test_errors(table)
    return judge_effect("points of error, 512 less 64", error[LARGE] - error[SMALL], claimed=(0, np.inf), null=0)


@ghost.claim(
    "ghosts-narrow",
    "Ghost batches reduce what a large batch loses, without a single update more.",
    criterion="each at its best rate, test error at 512 images with statistics over all less that with ghosts of 32, above 0",
)
def _(table):
    error = test_errors(table)
    note = f"ghosts of 128 save {number((error[LARGE] - error[GHOST_128]).median())} points"
    return judge_effect("points that ghosts of 32 save", error[LARGE] - error[GHOST_32], claimed=(0, np.inf), null=0, note=note)


@ghost.claim(
    "ghosts-at-large",
    "Ghost batches are worth more to a large batch than to a small one.",
    criterion="points of test error that ghosts of 32 save at 512 images per update less those that they save at 64, above 0",
    by="notes",
)
def _(table):
    error = test_errors(table)
    large, small = error[LARGE] - error[GHOST_32], error[SMALL] - error[SMALL_GHOST]
    note = f"{number(large.median())} at 512, {number(small.median())} at 64"
    return judge_effect("points saved, large less small", large - small, claimed=(0, np.inf), null=0, note=note)


@ghost.claim(
    "too-few-updates",
    "The loss comes from too few updates: with as many as the small batch had, the large one has no higher test error.",
    criterion="each at its best rate, test error of 512 images with 8 times the epochs less that of 64, at most half a point",
)
def _(table):
    error = test_errors(table)
    return judge_effect(
        "points of error, 512 and 8 times the epochs less 64", error[LONGER] - error[SMALL], claimed=(-np.inf, 0.5), null=np.nan
    )


@ghost.claim(
    "square-root",
    "The rate should grow as the square root of the batch.",
    criterion="held-out error of 512 images at the best rate of 64 images, and at 8 times this rate, less that at √8 times the "
    "rate: the smaller of both differences, above 0",
)
def _(table):
    chosen = best(table)[1][SMALL]
    large = table[table.arm == LARGE].pivot_table(index="seed", columns="rate", values="held_out_error")
    at = [rate for rate in sorted(table.rate.unique()) if rate > 0.99 * chosen][:3]  # steps of √8
    same, root, linear = (large.get(rate, large.mean(axis=1) * np.nan) for rate in [*at, np.nan, np.nan][:3])
    note = f"held-out error {same.median():.1f} % at the same rate, {root.median():.1f} % at √8, {linear.median():.1f} % at 8 times"
    return judge_effect("points, smaller of both", np.minimum(same - root, linear - root), claimed=(0, np.inf), null=0, note=note)
