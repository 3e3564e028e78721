"""Before or after the nonlinearity: where batch normalization stands, in a dense and in a convolutional network."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.networks.blocks import WeightLayers, preactivation
from normlib.probes import record_activations
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, INK, ORANGE, SKY, median_and_band, note, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.training import accuracy, train

ORDERS = {"norm-activation": ("before", BLUE), "activation-norm": ("after", SKY)}
LAYERS = 3
WIDTHS = {"dense": 100, "conv": 16}
MOMENTS = ["skew", "kurtosis"]
WHERE = ["sum", "output"]  # what the weight layer puts out, Wu + b, and what the nonlinearity puts out
COLORS = {"sum": INK, "output": ORANGE}

placement = Study(
    "notes.placement",
    item="§3.2 of Ioffe & Szegedy; seed 001",
    title="Does BN belong before or after the nonlinearity?",
    kind="train",
    vary={"network": list(WIDTHS), "order": list(ORDERS), "rate": [0.03, 0.1, 0.3, 1.0]},
    quick={"data": "digits", "pool": 1, "steps": 60, "batch": 32, "rate": [0.1, 0.3]},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 12_000, "steps": 1_000, "batch": 64},
    full={"data": "cifar10", "pool": 1, "steps": 20_000, "batch": 64},
)


def make_network(kind: str, order: str, images: Dataset, seed: int) -> nn.Sequential:
    """Build three times weights, then norm and ReLU in either order; then a linear head.

    The weights are the same for both orders, and so is the number of parameters: every weight layer keeps its bias. Before
    the nonlinearity BN subtracts this bias, so there it does nothing; after it, it does something.
    """
    weights, width = WeightLayers("he", seed), WIDTHS[kind]
    inputs = images.shape[0] if kind == "conv" else images.x_train[0].numel()
    parts: dict[str, nn.Module] = {} if kind == "conv" else {"flat": nn.Flatten()}
    for layer in range(LAYERS):
        if kind == "conv":
            parts[f"layer{layer}"] = weights(nn.Conv2d, inputs, width, 3, padding=1, stride=1 if layer == 0 else 2)
        else:
            parts[f"layer{layer}"] = weights(nn.Linear, inputs, width)
        parts[f"unit{layer}"] = preactivation(width, "batch", "relu", order)
        inputs = width
    if kind == "conv":
        parts.update(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    return nn.Sequential(OrderedDict(parts, head=weights(nn.Linear, inputs, images.classes)))


def shape(values: Tensor) -> dict[str, float]:
    """Return the median over units of |skew| and |excess kurtosis|, which are 0 for a Gaussian.

    A unit of a map is a channel with all its positions. Units that never vary have neither and are left out.
    """
    units = values.double().transpose(0, 1).flatten(1)
    units = units[units.var(dim=1) > 0]
    z = (units - units.mean(1, keepdim=True)) / units.var(1, correction=0, keepdim=True).sqrt()
    return {"skew": float(z.pow(3).mean(1).abs().median()), "kurtosis": float((z.pow(4).mean(1) - 3).abs().median())}


def shapes(net: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Return `shape` of what the weight layers and the nonlinearities put out in train mode, the mean over layers."""
    names = {"sum": [f"layer{i}" for i in range(LAYERS)], "output": [f"unit{i}.activation" for i in range(LAYERS)]}
    found = record_activations(net, x, names["sum"] + names["output"], training=True)
    moments = {where: [shape(found[name]) for name in names[where]] for where in WHERE}
    return {f"{moment}_{where}": float(np.mean([m[moment] for m in moments[where]])) for where in WHERE for moment in MOMENTS}


@placement.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    net = make_network(c.network, c.order, images, seed).to(c.device)
    before = shapes(net, images.x_train[:500])
    run = train(net, images.x_train, images.y_train, steps=c.steps, batch_size=c.batch, rate=c.rate, seed=seed)
    columns = {f"{name}_start": value for name, value in before.items()}
    columns["parameters"] = sum(p.numel() for p in net.parameters())
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    return {
        **columns,
        **{f"{name}_end": value for name, value in shapes(net, images.x_train[:500]).items()},
        "validation": accuracy(net, images.x_test, images.y_test, statistics="eval"),
        "accuracy": accuracy(net, tests.x_test, tests.y_test, statistics="eval"),
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def gaps(table, column: str):
    """Return the accuracy with BN before less that with BN after, in points: a row a seed, a column a network (and a rate)."""
    arms = ["order", "network", *(["rate"] if table.groupby(["network", "order"]).rate.nunique().max() > 1 else [])]
    scores = side_by_side(table, arms, column)
    return 100 * (scores["norm-activation"] - scores["activation-norm"])


def less_gaussian(table):
    """Return each moment of the nonlinearity's output over that of Wu + b, with BN before, at its tuned rate."""
    kept = tuned(table, ["network", "order"], "validation")[0]
    runs = kept[kept.order == "norm-activation"].drop_duplicates(["seed", "network"]).set_index(["seed", "network"])
    ratios = {(m, when): runs[f"{m}_output_{when}"] / runs[f"{m}_sum_{when}"] for m in MOMENTS for when in ("start", "end")}
    return runs.assign(**{f"{m} {when}": ratio for (m, when), ratio in ratios.items()})[[f"{m} {when}" for m, when in ratios]]


@placement.draw
def _(table):
    kept, rates = tuned(table, ["network", "order"], "validation")
    figure, axes = subplots(2, 2, height=2.4, sharey="row")
    for top, bottom, network in zip(*axes, WIDTHS, strict=True):
        for order, (label, color) in ORDERS.items():
            arm = table[(table.network == network) & (table.order == order)]
            style = {"marker": "o"} if color == BLUE else {"marker": "s", "linestyle": "--"}
            median_and_band(top, arm, "rate", "validation", color=color, label=f"BN {label} ReLU", **style)
        top.set(xscale="log", xlabel="learning rate", title=network)
        top.set_xticks(sorted(table.rate.unique()), [number(rate) for rate in sorted(table.rate.unique())])
        top.xaxis.set_minor_locator(NullLocator())
        runs = kept[(kept.network == network) & (kept.order == "norm-activation")]
        for at, where in enumerate(WHERE):
            for place, moment in enumerate(MOMENTS):
                start, end = (runs[f"{moment}_{where}_{when}"].median() for when in ("start", "end"))
                x = place + 0.3 * at - 0.15
                bottom.plot(x - 0.05, start, "o", color=COLORS[where], mfc="none")
                bottom.plot(x + 0.05, end, "o", color=COLORS[where])
        bottom.set(yscale="log", xticks=[0, 1], xticklabels=["|skew|", "|excess kurtosis|"], xlim=(-0.5, 1.5))
        bottom.set_ylim(0.1, 10)
        bottom.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes[0, 0].set_ylabel("validation accuracy")
    axes[0, 0].legend(loc="lower right", fontsize=8.5)
    axes[1, 0].set_ylabel("median over units\n(a Gaussian: 0)")
    note(axes[1, 0], "$Wu+b$", 0.03, 0.03, color=COLORS["sum"])
    note(axes[1, 0], "ReLU's output", 0.03, 0.87, color=COLORS["output"])
    note(axes[1, 1], "open: before training\nfilled: after", 0.97, 0.03, ha="right", fontsize=8.5)
    signed = gaps(kept, "accuracy")
    words = ", ".join(f"{network} {_signed(signed[network])}" for network in WIDTHS)
    factors = less_gaussian(table)
    names = {(network, order): f"{network} {ORDERS[order][0]}" for network, order in rates}
    return Drawing(
        figure,
        caption="Each order at its own rate, BN before ReLU is ahead of BN after it by these points of test accuracy (median of "
        f"the differences seed by seed, and their range): {words}. **Top** Accuracy on held-out images, which chose the rates: "
        f"{rates_in_words(rates, names)}. **Bottom** With BN before ReLU, |skew| and |excess kurtosis| of what ReLU puts out are "
        f"{number(factors.median().min())} to {number(factors.median().max())} times those of the sum $Wu+b$ that it starts from.",
        alt="Top: validation accuracy against the learning rate with batch normalization before and after ReLU, for a dense and a "
        "convolutional network. Bottom: absolute skew and excess kurtosis of sums and of ReLU outputs.",
    )


def _signed(differences) -> str:
    return f"{number(differences.median())} ({number(differences.min())} to {number(differences.max())})"


@placement.claim(
    "more-gaussian",
    "The sum Wu + b is closer to a Gaussian than what a nonlinearity puts out.",
    criterion="with BN before ReLU, at the tuned rate, the median |skew| and |excess kurtosis| of ReLU's outputs are at least 1.5 "
    "times those of the sums, before and after training, in both networks: the smallest of the eight ratios counts",
    by="ioffe2015",
)
def _(table):
    ratios = less_gaussian(table)
    smallest = ratios.min(axis=1).unstack().min(axis=1, skipna=False)
    return judge_effect("|moment|, ReLU's output / Wu + b, smallest of eight", smallest, claimed=(1.5, np.inf), null=1)


@placement.claim(
    "debate",
    "Whether BN stands before or after the nonlinearity is open to debate.",
    criterion="with the rate tuned for each, the test accuracies of the two orders differ by less than one point in both networks: "
    "the larger difference counts; at one point and more the measurements would take a side",
    by="seed001",
)
def _(table):
    signed = gaps(tuned(table, ["network", "order"], "validation")[0], "accuracy")
    said = ", ".join(f"{_signed(signed[network])} {network}" for network in WIDTHS)
    largest = signed.abs().max(axis=1, skipna=False)
    return judge_effect(
        "larger difference of the two networks, in points", largest, claimed=(0, 1), null=1, note=f"before less after: {said}"
    )


@placement.claim(
    "common-rate",
    "At one rate for both, the orders can differ by more than at the rate that suits each.",
    criterion="on held-out images the largest difference at a common rate of the grid exceeds that at the tuned rates by at least "
    "half a point, in both networks: the smaller excess counts",
    by="notes",
)
def _(table):
    own = gaps(tuned(table, ["network", "order"], "validation")[0], "validation").abs()
    common = gaps(table, "validation").abs().T.groupby("network").max().T
    excess = common - own
    said = ", ".join(f"{_signed(excess[network])} {network}" for network in WIDTHS)
    smaller = excess.min(axis=1, skipna=False)
    return judge_effect(
        "excess of the difference at a common rate, smaller of two networks, in points",
        smaller,
        claimed=(0.5, np.inf),
        null=0,
        note=said,
    )
