"""Qiao et al. (2019), weight standardization: beside group norm and batch norm, at 64 and at 2 images per statistic."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, ORANGE, SKY, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.flavors.convnets import BATCH, RECIPE, convnet, errors, fit
from normlib.studies.flavors.row_gradients import convolutions, identities, shares

WS = "standardized_weight + "
GROUP, LARGE, SMALL = "group:size=8", "batch:ghost=64", "batch:ghost=2"
NAMES = {GROUP: "group", LARGE: "batch, 64", SMALL: "batch, 2"}
NAMES |= {WS + arm: f"{name} + WS" for arm, name in NAMES.items()}
BY_WS = ["mean", "length"]  # the two directions of a row that weight standardization takes out of the gradient

ws = Study(
    "qiao2019.ws",
    item="micro-batches; the gradient",
    title="What standardized weights add to group norm and to batch norm",
    kind="train",
    vary={"arm": list(NAMES), "rate": [0.01, 0.03, 0.1, 0.3, 1.0]},
    quick={"data": "digits", "pool": 1, "train": 640, "depth": 5, "width": 16, "epochs": 2, "rate": [0.1]},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 3_600, "test": 3_000, "depth": 6, "width": 24, "epochs": 4},
    full={"data": "cifar10", "pool": 1, "depth": 10, "width": 64, "epochs": 30},
)


@ws.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    network = convnet(c, tune, c.arm, seed)
    x, y = tune.x_train[: 4 * BATCH], tune.y_train[: 4 * BATCH]
    exact = identities(network, x[:BATCH], y[:BATCH], seed) if c.arm.startswith(WS) else {}
    start = shares(network, x, y)
    run = fit(network, tune, epochs=c.epochs, rate=c.rate, seed=seed)
    finite = run.diverged_at is None
    along = {f"{name}_start": values for name, values in zip(BY_WS, start, strict=True)}
    ends = shares(network, x, y) if finite else [[np.nan] * len(network.blocks)] * 2
    along |= {f"{name}_end": values for name, values in zip(BY_WS, ends, strict=True)}
    fans = [layer.weight[0].numel() for layer in convolutions(network)]
    found = errors(network, tune, images) if finite else {}
    keys = ("train_error", "held_out_error", "test_error", "train_loss")
    return {
        **{key: found.get(key, np.nan) for key in keys},
        **{key: exact.get(key, np.nan) for key in ("by_hand", "row_sum", "affine")},
        "layer": list(range(1, len(fans) + 1)),
        "fan_in": fans,
        **along,
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def _best(table):
    return tuned(table, ["arm"], "held_out_error", low=True)


def _errors(table):
    """Return one row per seed, one column per arm: the test error at each arm's best rate, in percent."""
    return side_by_side(_best(table)[0], "arm", "test_error")


def _style(arm):
    """Return color and marker: the norm's color, a square at 2 images per statistic."""
    return norm_color(arm.removeprefix(WS)), "s" if arm.endswith(SMALL) else "o"


@ws.draw
def _(table):
    kept, rates = _best(table)
    runs = kept.drop_duplicates(["arm", "seed"])
    figure, (left, middle, right) = subplots(1, 3, height=3.3, width_ratios=[1.25, 1.25, 1])
    for row, arm in enumerate([arm for norm in (GROUP, LARGE, SMALL) for arm in (norm, WS + norm)]):
        (color, marker), values = _style(arm), runs[runs.arm == arm]
        for column, face in (("train_error", "none"), ("test_error", color)):
            left.plot(
                values[column], [row] * len(values), marker, color=color, markerfacecolor=face, markersize=5, linestyle="none"
            )
    left.set_yticks(range(len(NAMES)), [NAMES[arm] for norm in (GROUP, LARGE, SMALL) for arm in (norm, WS + norm)], fontsize=8)
    left.set(xlabel="error (%)", ylim=(len(NAMES) - 0.5, -0.5))
    left.set_title("filled: test; hollow: training", fontsize=8.5, loc="left")
    scores = table.groupby(["arm", "rate"], sort=False).held_out_error.median().reset_index()
    for arm in NAMES:
        color, marker = _style(arm)
        curve = scores[scores.arm == arm].sort_values("rate")
        middle.plot(curve.rate, curve.held_out_error, "-" if arm.startswith(WS) else ":", color=color, marker=marker, markersize=4)
    ticks = sorted(table.rate.unique())
    middle.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="held-out error (%)")
    middle.set_yticks(levels := [15, 20, 30, 50, 90], [str(level) for level in levels])
    middle.set_xticks(ticks, [number(rate) for rate in ticks])
    middle.minorticks_off()
    middle.set_title("solid: with WS", fontsize=8.5)
    layers = kept[kept.arm == GROUP].groupby("layer")[["fan_in", *[f"{n}_{w}" for n in BY_WS for w in ("start", "end")]]].median()
    for name, color, label in (("mean", ORANGE, "row mean"), ("length", SKY, "row itself")):
        right.plot(layers.index, 100 * layers[f"{name}_end"], "o-", color=color, label=label, markersize=4)
        right.plot(layers.index, 100 * layers[f"{name}_start"], "o:", color=color, markerfacecolor="none", markersize=4)
    right.plot(layers.index, 100 / layers.fan_in, "--", color=GRAY, label="1 / fan-in", linewidth=1)
    right.set(yscale="log", xlabel="convolution", ylabel="share of the gradient (%)", xticks=layers.index)
    right.set_title("filled: trained", fontsize=8.5)
    right.legend(fontsize=8)
    error = runs.groupby("arm").test_error.median()
    pairs = ", ".join(f"{NAMES[arm]} {number(error[arm])} % and {number(error[WS + arm])} %" for arm in (GROUP, LARGE, SMALL))
    chosen = rates_in_words({arm: rates[arm] for arm in NAMES}, NAMES)
    ends = [NAMES[arm] for arm in at_ends(table, ["arm"], rates)]
    part = 100 * layers.iloc[1:][["mean_end", "length_end"]].median()
    return Drawing(
        figure,
        caption=f"Left: test error without and with weight standardization (WS): {pairs}. {BATCH} images per update in every arm, "
        "batch statistics over 64 or over 2. Middle: held-out error against the learning rate, squares for 2 images per "
        "statistic. Right: what WS would take out of the squared gradient of group norm's convolutions, before training (hollow) "
        f"and after it; after it the row mean holds {number(part.mean_end)} % and the row itself {number(part.length_end)} % "
        f"(median from the second convolution on). Recipe: {RECIPE}; rate tuned per arm on held-out images: "
        f"{chosen}{ends_in_words(ends)}.",
        alt="Left: test and training error of group norm and batch norm at 64 and 2 images, with and without standardized "
        "weights. Middle: held-out error against rate. Right: shares of the squared gradient by convolution, log axis.",
    )


@ws.claim(
    "better-than-group",
    "Group norm with standardized weights has a lower error than group norm alone.",
    criterion="test error of group norm minus that of group norm with standardized weights, each at its best rate, above 0 points",
)
def _(table):
    error = _errors(table)
    return judge_effect("points of test error gained", error[GROUP] - error[WS + GROUP], claimed=(0, np.inf), null=0)


@ws.claim(
    "large-batch",
    "Group norm with standardized weights, which takes no statistics over images, matches batch norm with large batches.",
    criterion="its test error is at most 0.5 points above that of batch norm at 64 images per statistic",
)
def _(table):
    error = _errors(table)
    note = f"batch norm with standardized weights: {number((error[WS + LARGE] - error[LARGE]).median())}"
    apart = error[WS + GROUP] - error[LARGE]
    return judge_effect("points of test error above batch norm", apart, claimed=(-np.inf, 0.5), null=np.nan, note=note)


@ws.claim(
    "micro-batch",
    "At micro-batches it has a lower error than batch norm.",
    criterion="test error of batch norm at 2 images per statistic, with the SGD batch held fixed, minus its own, above 0 points",
)
def _(table):
    error = _errors(table)
    note = f"batch norm at 2 images gains {number((error[SMALL] - error[WS + SMALL]).median())} points by standardized weights"
    return judge_effect("points of test error", error[SMALL] - error[WS + GROUP], claimed=(0, np.inf), null=0, note=note)


@ws.claim(
    "gradient",
    "Standardizing the weights takes two directions out of each row's gradient, the mean and the row itself, and divides the "
    "rest by the row's deviation; so the gradient of the raw weights sums to zero over each row.",
    criterion="networks before training, double precision: largest relative difference from automatic differentiation at most 1e-6",
)
def _(table):
    return judge_identity("largest relative difference", table[["by_hand", "row_sum"]].max().max(), 1e-6)


@ws.claim(
    "affine",
    "The output does not change if every filter is scaled by a positive factor and a constant is added to its weights.",
    criterion="factors from 0.5 to 1.5 and shifts of up to one deviation, double precision: relative difference at most 1e-6",
    by="notes",
)
def _(table):
    return judge_identity("largest relative difference", table.affine.max(), 1e-6)


@ws.claim(
    "mean-or-length",
    "Of the two directions, the mean of the row holds more of the gradient than the row itself.",
    criterion="group norm without standardized weights, convolutions from the second on: ratio of the shares of the squared "
    "gradient, median over layers, above 1 both before and after training (the lesser is judged)",
    by="notes",
)
def _(table):
    arm = _best(table)[0]
    arm = arm[(arm.arm == GROUP) & (arm.layer > 1)]
    when = {end: (arm[f"mean_{end}"] / arm[f"length_{end}"]).groupby(arm.seed).median() for end in ("start", "end")}
    note = f"before training {number(when['start'].median())}, after it {number(when['end'].median())}"
    least = np.minimum(when["start"], when["end"])
    return judge_effect("ratio of shares", least, claimed=(1, np.inf), null=1, note=note)
