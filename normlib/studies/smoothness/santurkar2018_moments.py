"""Santurkar et al. (2018), figures 1(c) and 8: how far means and variances drift, before a norm and after it."""

from __future__ import annotations

import numpy as np
from torch import nn

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import BatchNorm
from normlib.probes import moment_drift, moment_snapshot
from normlib.probes.moments import ChannelMoments
from normlib.probes.watching import Key
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import GRAY, INK, median_and_band, norm_color, subplots
from normlib.studies.common.statements import gap
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg
from normlib.training.history import append_rows

ARMS = {  # norm, initialization
    "none": ("none", "glorot_normalized"),
    "none, He": ("none", "he"),
    "batch": ("batch", "glorot_normalized"),
    "noisy": ("noisy", "glorot_normalized"),
}
SHARES = (2 / 13, 9 / 13, 1.0)  # the paper draws layers 2, 9, 13 of a VGG, whose smallest fit has 13 convolutions
LOOKS = 12
DRIFTS = {  # the columns of `moment_drift`, and what they are called here
    "mean": "mean_drift", "variance": "variance_drift",
    "relative_mean": "relative_mean_drift", "relative_variance": "relative_variance_drift",
}  # fmt: skip
MOMENTS = ["mean", "variance"]
RATE, TOLERANCE = 0.1, 1e-4
FLOOR = 1e-12  # a drift of zero is drawn there
LINES = {  # arm, side, color, line
    "no norm, Glorot": ("none", "after", GRAY, "-"),
    "no norm, He": ("none, He", "after", GRAY, "--"),
    "BN, after": ("batch", "after", norm_color("batch"), "-"),
    "BN, before": ("batch", "before", norm_color("batch"), "--"),
    "noisy BN, after": ("noisy", "after", INK, "-"),
}

moments = Study(
    "santurkar2018.moments",
    item="Figs 1c, 8",
    title="Do the moments drift less with batch norm? Behind it, before it, and under noise",
    kind="train",
    vary={"arm": list(ARMS)},
    quick={**QUICK, "steps": 20},
    laptop={**LAPTOP, "steps": 300},
    full=FULL,
)


def watched_layers(count: int) -> list[int]:
    """Return the positions of three layers among `count` convolutions.

    Example:
        >>> watched_layers(13), watched_layers(6)
        ([1, 8, 12], [0, 4, 5])
    """
    return [int(np.ceil(share * count - 1e-9)) - 1 for share in SHARES]


def when(steps: int) -> list[int]:
    """Return the steps whose update is looked at: at most 12, the first and the last among them."""
    return sorted({round((steps - 1) * share) for share in np.linspace(0, 1, LOOKS)})


def from_parameters(net: nn.Module, found: dict[Key, ChannelMoments], layers: list[str]) -> float:
    """Return how far means and variances after batch norm are from what its parameters say; 0 for layers of other kinds.

    After the norm the mean is β and the variance γ² σ² / (σ² + ε), where σ² is the variance before it.

    Args:
        net: the network.
        found: of `moment_snapshot`, inputs and outputs of the layers.
        layers: names of the norms.
    """
    distances = [0.0]
    for name in layers:
        norm = net.get_submodule(name)
        if type(norm) is not BatchNorm or norm.weight is None or norm.bias is None:
            continue
        before, after = found[name, "input"].variance, found[name, "output"]
        said = norm.weight.detach().double().square() * before / (before + norm.eps)
        distances += [gap(after.variance, said), float((after.mean - norm.bias.detach().double()).abs().max())]
    return max(distances)


@moments.trial
def _(c, seed):
    norm, init = ARMS[c.arm]
    images, _ = images_for(c, seed)
    net, x = vgg(Config({**c, "init": init}, c.device), images, norm, seed), images.x_train[:BATCH]
    layers = [f"blocks.{at}.norm" for at in watched_layers(len(net.get_submodule("blocks")))]  # type: ignore[arg-type]
    found, distances = {}, []

    def look(step: int, model: nn.Module) -> dict[str, float]:
        found[int(step)] = moment_snapshot(model, x, layers, sides=["input", "output"], training=True)
        distances.append(from_parameters(model, found[int(step)], layers))
        return {}

    steps = when(c.steps)
    run = fit(net, images, steps=c.steps, rate=RATE, seed=seed, probe=look, probe_steps={*steps, *(step + 1 for step in steps)})
    columns: dict[str, list[float]] = {}
    for step in [step for step in steps if step + 1 in found]:
        one, whole = moment_drift(found[step], found[step + 1]), moment_drift(found[0], found[step + 1])
        rows = {"layer": [1 + int(name.split(".")[1]) for name in one["layer"]], "side": one["side"]}
        rows |= {name: one[column] for name, column in DRIFTS.items()}
        rows |= {f"{name}_from_start": whole[column] for name, column in DRIFTS.items()}
        append_rows(columns, step, rows)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    return {**columns, "from_parameters": max(distances), "loss": float(run.loss[-20:].mean())}


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------

SIDES = {"before": "input", "after": "output"}


def over_layers(table, column):
    """Return the drift as the geometric mean over the layers: a row for each arm, side, seed and step."""
    logs = table.assign(drift=np.log(np.maximum(table[column].astype(float), FLOOR)))
    return np.exp(logs.groupby(["arm", "side", "seed", "step"]).drift.mean()).reset_index()


def usual(table, column, arm, side="after"):
    """Return for each seed the drift of an arm: the mean over the looks in each layer, of these the geometric mean."""
    rows = table[(table.arm == arm) & (table.side == SIDES[side])]
    layers = rows.groupby(["seed", "layer"])[column].mean().unstack()
    return np.exp(np.log(layers).mean(axis=1, skipna=False))


def ratio(table, numerator, denominator, kind=""):
    """Return for each seed the ratio of the drifts of two arms, that of mean or variance, whichever is smaller.

    Args:
        table: that of the study.
        numerator: arm and side.
        denominator: arm and side.
        kind: "" for drifts as they are, "relative_" for drifts in units of σ and σ².
    """
    ratios = [usual(table, kind + moment, *numerator) / usual(table, kind + moment, *denominator) for moment in MOMENTS]
    return np.minimum(*ratios)


@moments.draw
def _(table):
    figure, axes = subplots(2, 3, height=2.45, sharex=True)
    panels = {"": "per step", "relative_": "per step, in σ or σ²", "from_start": "from the start, in σ or σ²"}
    for row, moment in enumerate(MOMENTS):
        for panel, kind in zip(axes[row], panels, strict=True):
            column = f"relative_{moment}_from_start" if kind == "from_start" else f"{kind}{moment}"
            drifts = over_layers(table, column)
            for label, (arm, side, color, line) in LINES.items():
                runs = drifts[(drifts.arm == arm) & (drifts.side == SIDES[side])]
                shown = label if row == 0 and kind == "" else None
                median_and_band(panel, runs, "step", "drift", color=color, linestyle=line, label=shown)
            panel.set_yscale("log")
            if row == 0:
                panel.set_title(panels[kind], fontsize=9.5)
            else:
                panel.set_xlabel("step")
        axes[row, 0].set_ylabel(f"drift of the {moment}")
    figure.legend(loc="outside upper center", ncols=5, fontsize=8.5)
    plain = ("none", "after")
    noisy, batch, relative, before = (
        number(float(np.median(ratio(table, *pair)))) for pair in (
            (("noisy", "after"), plain), (plain, ("batch", "after")),
            (plain, ("batch", "after"), "relative_"), (("batch", "before"), plain, "relative_"),
        )
    )  # fmt: skip
    return Drawing(
        figure,
        caption="Drift of the means and variances of channels on the same 128 training images, one statistic batch; SGD batch and "
        f"statistic batch {BATCH} in training, rate {RATE:g} for all arms, not tuned. Geometric mean over three layers. As they "
        f"are, the moments behind noisy BN move {noisy} times as far per step as those of the net without norm (Glorot), and these "
        f"{batch} times as far as those behind BN; in units of σ the second number is {relative}. Before BN (dashed) they move "
        f"{before} times as far as without norm, in units of σ. Each number is the smaller of those for mean and variance.",
        alt="Six plots of drift over steps on log axes, for mean and variance: per step, per step in units of sigma, and from the "
        "start. Lines for no norm with two initializations, batch norm before and after the layer, noisy batch norm.",
    )


@moments.claim(
    "noise-drifts",
    "Behind noisy BN the moments move at least 3 times as far from step to step as in the network without norm.",
    criterion="in the unit of the activations, as the paper draws them: for mean and variance (the smaller ratio counts)",
)
def _(table):
    claimed = ratio(table, ("noisy", "after"), ("none", "after"))
    note = f"in units of σ {number(np.median(ratio(table, ('noisy', 'after'), ('none', 'after'), 'relative_')))}"
    return judge_effect("drift per step, noisy BN / none", claimed, claimed=(3, np.inf), null=1, note=note)


@moments.claim(
    "bn-keeps-still",
    "Behind BN the moments move less from step to step than in the network without norm, as figure 8 shows.",
    criterion="in the unit of the activations: without norm at least 2 times as far as behind BN, for mean and variance (the "
    "smaller ratio counts)",
)
def _(table):
    he = ratio(table, ("none, He", "after"), ("batch", "after"))
    note = f"with He's initialization for the network without norm {number(np.median(he))}"
    plain = ratio(table, ("none", "after"), ("batch", "after"))
    return judge_effect("drift per step, none / BN", plain, claimed=(2, np.inf), null=1, note=note)


@moments.claim(
    "in-units",
    "Behind BN the moments move less than without norm in units of σ, too.",
    criterion="drift per step, in σ for the mean and σ² for the variance: more without norm (the smaller ratio counts)",
    by="notes",
)
def _(table):
    he = ratio(table, ("none, He", "after"), ("batch", "after"), "relative_")
    note = f"with He's initialization for the network without norm {number(np.median(he))}"
    plain = ratio(table, ("none", "after"), ("batch", "after"), "relative_")
    return judge_effect("relative drift per step, none / BN", plain, claimed=(1, np.inf), null=1, note=note)


@moments.claim(
    "before-the-norm",
    "Before the norm the order is the other way round: the sums that BN takes in move more than those of the network without norm.",
    criterion="drift per step, in units of σ and σ²: before BN more than without norm (the smaller ratio counts)",
    by="notes",
)
def _(table):
    he = ratio(table, ("batch", "before"), ("none, He", "after"), "relative_")
    note = f"against the network with He's initialization {number(np.median(he))}"
    plain = ratio(table, ("batch", "before"), ("none", "after"), "relative_")
    return judge_effect("relative drift per step, before BN / none", plain, claimed=(1, np.inf), null=1, note=note)


@moments.claim(
    "two-parameters",
    "What drifts behind BN is two parameters: the mean is β, the variance is γ² but for ε, whatever the layers below do.",
    criterion=f"at every look the mean is β and the variance γ² σ² / (σ² + ε), in float32 within {TOLERANCE:g}",
    by="notes",
)
def _(table):
    furthest = table[table.arm == "batch"].from_parameters.max()
    return judge_identity("largest distance of a moment from what the parameters say", furthest, TOLERANCE)
