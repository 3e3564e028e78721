"""Luo et al. (2019), switchable normalization: which statistics a layer chooses when it may, and what the choice is worth."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.layers import SwitchNorm
from normlib.layers.moments import instance_moments, pooled_moments
from normlib.networks import PlainConvNet
from normlib.probes import record_activations
from normlib.studies.common.looks import median_and_band, norm_color, subplots
from normlib.studies.common.statements import at_most, gap
from normlib.studies.flavors.convnets import BATCH, RECIPE
from normlib.studies.flavors.relatives import best, chosen_rates, error_rows, read_arm, test_errors, trained

SWITCHES = {64: "switch", 8: "switch + per 8", 2: "switch + per 2"}  # images per statistic
BATCHES = {64: "batch", 2: "batch:ghost=2"}
INSTANCE, LAYER, GROUP = ["instance", "layer", "group:size=8"]
NAMES = {arm: f"switch {images}" for images, arm in SWITCHES.items()} | {arm: f"batch {images}" for images, arm in BATCHES.items()}
NAMES |= {INSTANCE: "instance", LAYER: "layer", GROUP: "group"}
SHARES = ["instance", "layer", "batch"]
KINDS = {"mean": "-", "variance": "--"}

switch = Study(
    "luo2019.switch",
    item="§3, §4.1",
    title="Which statistics a layer chooses when it may mix those of instance, layer and batch norm",
    kind="train",
    vary={"arm": list(NAMES), "rate": [0.02, 0.06, 0.2, 0.6]},
    quick={"data": "digits", "train": 640, "validation": 128, "test": 256, "depth": 4, "width": 8, "epochs": 5, "rate": [0.2]},
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_400, "validation": 800, "test": 2_000, "depth": 6, "width": 32, "epochs": 4,
    },
    full={"data": "cifar10", "pool": 1, "validation": 5_000, "depth": 12, "width": 64, "epochs": 30},
)  # fmt: skip


@switch.trial
def _(c, seed):
    network, tune, measured = trained(c, seed)
    maps = record_activations(network, tune.x_train[:BATCH], ["blocks.0.layer"], training=False)["blocks.0.layer"]
    return {**measured, "pooling": pooling_gap(maps.double()), **shares(network)}


def shares(network: PlainConvNet) -> dict[str, object]:
    """Return the learned weights of the three kinds of statistics, a row a block and moment; no numbers without a switch."""
    switches = [module for module in network.modules() if isinstance(module, SwitchNorm)]
    if not switches:
        return {"block": 0, "moment": "", **dict.fromkeys(SHARES, np.nan)}
    columns: dict[str, list[object]] = {name: [] for name in ("block", "moment", *SHARES)}
    for block, norm in enumerate(switches, 1):
        for moment, logits in (("mean", norm.mean_weight), ("variance", norm.var_weight)):
            row = dict(zip(SHARES, logits.detach().softmax(0).tolist(), strict=True))
            for name, value in {"block": block, "moment": moment, **row}.items():
                columns[name].append(value)
    return dict(columns)


def pooling_gap(maps: Tensor) -> float:
    """Return how far the moments of layer and batch norm, pooled from those of instance norm, are from the direct ones."""
    cells = instance_moments(maps)
    worst = 0.0
    for axis, over in ((1, (1, 2, 3)), (0, (0, 2, 3))):
        mean, var = (pooled.squeeze(axis) for pooled in pooled_moments(*cells, axis))
        worst = max(worst, gap(mean, maps.mean(over)), gap(var, maps.var(over, correction=0)))
    return worst


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def mean_shares(runs):
    """Return the shares of the switches, the mean over layers: a row for each seed, images per statistic and moment."""
    runs = runs[runs.arm.isin(SWITCHES.values())]
    runs = runs.assign(images=[read_arm(arm)[2] for arm in runs.arm])
    return runs.groupby(["seed", "images", "moment"])[SHARES].mean().reset_index()


@switch.draw
def _(table):
    kept, rates = best(table)
    figure, ((rows, learned), *by_block) = subplots(2, 2, height=2.7)
    error_rows(rows, kept, NAMES)
    means = mean_shares(kept)
    for moment, style in KINDS.items():
        for name in SHARES:
            label = name if moment == "mean" else None
            arm = means[means.moment == moment]
            median_and_band(learned, arm, "images", name, color=norm_color(name), label=label, linestyle=style, marker="o")
    for axes, images in zip(by_block[0], (64, 2), strict=True):
        arm = kept[(kept.arm == SWITCHES[images]) & (kept.moment == "mean")]
        for name in SHARES:
            median_and_band(axes, arm, "block", name, color=norm_color(name), marker="o")
        axes.set(xlabel="layer", ylabel="learned weight, means", xticks=sorted(arm.block.unique()), ylim=(0, 1))
        axes.set_title(f"{images} images per statistic", fontsize=8.5)
    for axes in (learned, *by_block[0]):
        axes.axhline(1 / 3, color=norm_color("switch"), linestyle=":", linewidth=1)
    ticks = sorted(SWITCHES)
    learned.set(xscale="log", xlabel="images per statistic", ylabel="learned weight", ylim=(0, None))
    learned.set_xticks(ticks, [str(tick) for tick in ticks])
    learned.minorticks_off()
    learned.set_title("solid: means, dashed: variances", fontsize=8.5)
    learned.legend(fontsize=8.5)
    error = test_errors(table).median()
    middle = means.groupby(["images", "moment"]).batch.median()
    said = ", ".join(
        f"{number(middle[images, 'mean'])} and {number(middle[images, 'variance'])} at {images}" for images in SWITCHES
    )
    top = kept[(kept.block == kept.block.max()) & (kept.moment == "mean")].groupby("arm").batch.median()
    return Drawing(
        figure,
        caption="64 images per update; the number beside switch and batch is how many of them share a batch statistic. "
        f"**Top left** Test error: switchable norm {error[SWITCHES[64]]:.1f} % at 64 images and {error[SWITCHES[2]]:.1f} % at 2, "
        f"batch norm {error[BATCHES[64]]:.1f} % and {error[BATCHES[2]]:.1f} %, instance norm {error[INSTANCE]:.1f} %, layer norm "
        f"{error[LAYER]:.1f} %, group norm {error[GROUP]:.1f} %. **Top right** Learned weights of the three statistics, the mean "
        f"over layers; all start at 1/3 (dotted). The batch's weight in means and variances is {said} images. **Bottom** The same "
        f"by layer: of the last layer's means the batch has {number(top[SWITCHES[64]])} at 64 images and "
        f"{number(top[SWITCHES[2]])} at 2. Learning rates, by held-out images: {chosen_rates(table, rates, NAMES)}. "
        f"Recipe: {RECIPE}.",
        alt="Top left: test errors of each seed and median training errors for switchable and batch norm by images per statistic, "
        "instance, layer and group norm. Others: learned weights of the three statistics, by images per statistic and by layer.",
    )


@switch.claim(
    "batch-share",
    "The fewer images share a statistic, the less weight a switchable layer gives to the batch's.",
    criterion="weight of the batch statistics, mean over layers, means and variances: at 64 images less that at 2, above 0",
)
def _(table):
    weight, equal = (mean_shares(r).groupby(["seed", "images"]).batch.mean().unstack() for r in (best(table)[0], table))
    said = ", ".join(f"{number(weight[images].median())} at {images}" for images in SWITCHES)
    note = f"over all rates alike {number((equal[64] - equal[2]).median())}; at the best ones {said}"
    return judge_effect("weight at 64 images less that at 2", weight[64] - weight[2], claimed=(0, np.inf), null=0, note=note)


@switch.claim(
    "best-single",
    "A switchable layer is at least as accurate as the best of the three that it mixes.",
    criterion="test error less that of the one of instance, layer and batch norm with the lowest held-out error, each at its best "
    "rate, at most half a point at 64 and at 2 images per statistic: the larger difference counts",
)
def _(table):
    error, worse, names = test_errors(table), [], []
    held_out = best(table)[0].groupby("arm").held_out_error.median()
    for images, batch in BATCHES.items():
        single = held_out[[INSTANCE, LAYER, batch]].idxmin()
        names.append(f"{NAMES[single]} at {images}")
        worse.append(error[SWITCHES[images]] - error[single])
    larger = np.maximum(*worse)
    note = f"best single: {', '.join(names)}; {number(worse[0].median())} points more at 64, {number(worse[1].median())} at 2"
    return judge_effect("points above the best single norm", larger, claimed=(-np.inf, 0.5), null=np.nan, note=note)


@switch.claim(
    "above-batch",
    "At two images per statistic a switchable layer is more accurate than batch norm, at 64 no less.",
    criterion="test error of batch norm less that of switchable norm, above 0 at 2 images and above −0.5 points at 64: the smaller "
    "of the first and of the second plus half a point counts",
)
def _(table):
    error = test_errors(table)
    few, many = (error[BATCHES[images]] - error[SWITCHES[images]] for images in (2, 64))
    note = f"{number(few.median())} points at 2 images, {number(many.median())} at 64"
    return judge_effect("smaller margin, in points", np.minimum(few, many + 0.5), claimed=(0, np.inf), null=0, note=note)


@switch.claim(
    "one-pass",
    "The means and variances of layer and batch norm follow from those of instance norm.",
    criterion="in float64, on first-layer maps of trained networks, pooled and direct moments agree to 1e-12 of the largest",
)
def _(table):
    return at_most(1e-12, table.dropna(subset=["pooling"]).pooling, "gap of the moments")
