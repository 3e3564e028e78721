"""Notes in Korean on Lubana, Dick and Tanaka (the draft `seed002`): gradients in random networks, and why they grow."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.layers import batch_norm, group_norm
from normlib.studies.common.statements import normal, ranges, through_network, verdict_counts

INFINITY = float("inf")
HE = 2**0.5  # He's gain: standard deviation of the weights times the root of the width
SAID = {
    "batch-norm-explodes": (1.05, INFINITY),
    "sigma-is-below-1": (0.0, 1.0),
    "not-if-sigma-is-above-1": (0.0, 1.0),
    "instance-norm-explodes": (1.05, INFINITY),
    "layer-norm-explodes": (1.05, INFINITY),
    "larger-groups-help": (1.0, INFINITY),
}

gradients = Study(
    "seed002.gradients",
    item="Stable backward",
    title="With batch norm gradients grow toward the input, and a small σ is not the reason",
    kind="init",
    vary={},
    quick={},
    laptop={},
    full=None,
    seeds={"quick": 3, "laptop": 7},
)


@gradients.trial
def _(c, seed):
    return {
        "growth": through_network(batch_norm, seed, gain=HE).growth(),
        "growth_above_1": through_network(batch_norm, seed, gain=10 * HE).growth(),
        "sigma": spread_of_summed_inputs(HE, seed),
        "sigma_above_1": spread_of_summed_inputs(10 * HE, seed),
        "groups_of_1": growth_on_maps(32, seed),
        "groups_of_4": growth_on_maps(8, seed),
        "one_group": growth_on_maps(1, seed),
    }


def spread_of_summed_inputs(gain, seed, width=64):
    """Return the mean standard deviation σ that batch normalization divides by in the second layer."""
    hidden = through_network(batch_norm, seed, depth=1, width=width).signals[0].relu()
    return float((hidden @ (gain / width**0.5 * normal(seed + 1, width, width))).std(0, correction=0).mean())


def growth_on_maps(groups, seed, depth=10, channels=32, size=4):
    """Return the growth of the gradient per layer of 3×3 convolutions on small maps, with group normalization."""
    maps, *weights = normal(seed, 16, channels, size, size), *normal(seed + 1, depth, channels, channels, 3, 3)
    signals, hidden = [], maps
    for weight in weights:
        padded = F.pad(hidden, (1, 1, 1, 1), mode="circular")
        signals.append(F.conv2d(padded, weight * (2 / (9 * channels)) ** 0.5).requires_grad_())
        hidden = group_norm(signals[-1], groups).relu()
    loss = F.cross_entropy(hidden.mean((2, 3)), torch.arange(len(maps)))
    found = torch.autograd.grad(loss, signals)
    return float((found[1].norm() / found[-1].norm()) ** (1 / (depth - 2)))


@gradients.draw
def _(table):
    median = table.median(numeric_only=True)
    return Drawing(
        ranges(gradients, table, SAID),
        caption="ReLU networks before training: growth of the gradient per layer on its way to the input; the row on "
        "σ has σ itself, that on larger groups the growth at smaller groups over that at larger. Gray: what the notes say; "
        f"{verdict_counts(gradients, table)} statements hold. At He's weights σ is {number(median.sigma)} and the growth "
        f"{number(median.growth)}; at weights ten times as large σ is {number(median.sigma_above_1)} and the growth "
        f"{number(median.growth_above_1)}.",
        alt="Six rows on a log axis of a ratio, one for each statement on gradients, with intervals. Gray bars mark what is said.",
    )


@gradients.claim(
    "batch-norm-explodes",
    "In a deep network with batch normalization the gradient explodes toward the input at the start of training.",
    criterion="growth by at least 5 % per layer (our bound), 20 layers, He's initialization",
)
def _(table):
    note = "mean field theory says √(π/(π − 1)) = 1.211"
    return judge_effect("growth of the gradient per layer", table.growth, claimed=SAID["batch-norm-explodes"], null=1, note=note)


@gradients.claim(
    "sigma-is-below-1",
    "If the weights are drawn from a Gaussian of mean zero, the standard deviation σ of the activations is below 1 at the start.",
    criterion="at He's initialization the mean σ of the second layer is below 1",
)
def _(table):
    note = "it is as large as the weights: not their mean but their variance decides"
    return judge_effect("mean σ", table.sigma, claimed=SAID["sigma-is-below-1"], null=1, note=note)


@gradients.claim(
    "not-if-sigma-is-above-1",
    "The gradient grows because each layer multiplies it by 1/σ, and σ is below 1.",
    criterion="then it does not grow where σ is above 1: at most 1 per layer with weights ten times as large",
)
def _(table):
    note = "the scale of the weights cancels: a gradient that is divided by a large σ comes through a large weight"
    effect = "growth of the gradient per layer, weights × 10"
    return judge_effect(effect, table.growth_above_1, claimed=SAID["not-if-sigma-is-above-1"], null=1, note=note)


@gradients.claim(
    "instance-norm-explodes",
    "With instance normalization, groups of one channel, the gradient explodes in deep networks.",
    criterion="growth by at least 5 % per layer (our bound), ten 3×3 convolutions on maps of 4×4",
)
def _(table):
    effect = "growth of the gradient per layer, instance norm"
    return judge_effect(effect, table.groups_of_1, claimed=SAID["instance-norm-explodes"], null=1)


@gradients.claim(
    "layer-norm-explodes",
    "Norms within a single sample can suffer exploding gradients: here layer normalization.",
    criterion="growth by at least 5 % per layer (our bound), ten 3×3 convolutions on maps of 4×4",
)
def _(table):
    return judge_effect(
        "growth of the gradient per layer, layer norm", table.one_group, claimed=SAID["layer-norm-explodes"], null=1
    )


@gradients.claim(
    "larger-groups-help",
    "The larger the groups of group normalization, the milder the growth of the gradient.",
    criterion="growth per layer at groups of 1 over that at 4, and at 4 over that at 32: the smaller of the two is above 1",
)
def _(table):
    steps = (table.groups_of_1 / table.groups_of_4).combine(table.groups_of_4 / table.one_group, min)
    return judge_effect("growth per layer, smaller groups / larger", steps, claimed=SAID["larger-groups-help"], null=1)
