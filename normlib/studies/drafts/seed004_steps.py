"""Notes on normalization (the draft `seed004`): all layers move at once, each as if the others stayed. How far is that foreseen?"""

from __future__ import annotations

import torch
from torch.autograd.functional import jvp

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.looks import BLUE, VERMILION, median_and_band, subplots
from normlib.studies.common.statements import normal

COLORS = {0.1: VERMILION, 0.01: BLUE}  # by learning rate

steps = Study(
    "seed004.steps",
    item="Normalization",
    title="A step changes all layers at once: depth makes its outcome harder to foresee, a small rate easier",
    kind="init",
    vary={"rate": list(COLORS), "depth": [2, 4, 8, 16]},
    quick={},
    laptop={},
    full=None,
    seeds={"quick": 3, "laptop": 7},
)


@steps.trial
def _(c, seed):
    return {"unforeseen": unforeseen(c.depth, c.rate, seed)}


def unforeseen(depth, rate, seed, width=32):
    """Take one step on all layers; return the change of the outputs that the first order misses, relative to what it foresees."""
    x, target, *weights = normal(seed, depth + 2, width, width)
    start = tuple(weight / width**0.5 for weight in weights)

    def outputs(*layers):
        hidden = x
        for layer in layers:
            hidden = (hidden @ layer).tanh()
        return hidden

    loss = torch.func.grad(lambda layers: (outputs(*layers) - target).square().sum(1).mean() / 2)
    step = tuple(-rate * gradient for gradient in loss(start))
    before, foreseen = jvp(outputs, start, step)
    after = outputs(*[weight + change for weight, change in zip(start, step, strict=True)])
    return float((after - before - foreseen).norm() / foreseen.norm())


@steps.draw
def _(table):
    figure, axes = subplots(height=2.7)
    for rate, color in COLORS.items():
        arm = table[table.rate == rate]
        median_and_band(axes, arm, "depth", "unforeseen", color=color, label=f"rate {number(rate)}", marker="o")
    depths = sorted(table.depth.unique())
    axes.set(xscale="log", yscale="log", xlabel="layers", ylabel="unforeseen / foreseen")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.xaxis.set_minor_locator(axes.xaxis.get_major_locator())
    axes.legend(loc="lower right")
    return Drawing(
        figure,
        caption="One step of gradient descent changes every layer of a tanh network at once. Shown is the part of the outputs' "
        "change that the first derivative fails to foresee, relative to what it foresees. From 2 layers to 16 it becomes "
        f"{number(_by_depth(table).median())} times as large, at a tenth of the rate {number(_by_rate(table).median())} times.",
        alt="The unforeseen part of a step against the number of layers, on log axes, at two learning rates: rising with depth, "
        "and about ten times lower at the small rate.",
    )


def _by_depth(table):
    shares = table[table.rate == 0.1].pivot(index="seed", columns="depth", values="unforeseen")
    return shares[16] / shares[2]


def _by_rate(table):
    shares = table[table.depth == 16].pivot(index="seed", columns="rate", values="unforeseen")
    return shares[0.01] / shares[0.1]


@steps.claim(
    "less-foreseeable-when-deep",
    "Every layer is updated as if the others stayed; the deeper the network, the less can the outcome of a step be foreseen.",
    criterion="at the rate 0.1 the part of the outputs' change that the first derivative misses is larger in 16 tanh layers than "
    "in 2",
)
def _(table):
    return judge_effect("unforeseen share, 16 layers / 2", _by_depth(table), claimed=(1, float("inf")), null=1)


@steps.claim(
    "foreseeable-at-a-small-rate",
    "Unless the learning rate is small, the outcome of updating all layers at once is unpredictable.",
    criterion="in 16 layers a tenth of the rate at least halves (our bound) the part of the outputs' change that the first "
    "derivative misses",
)
def _(table):
    return judge_effect("unforeseen share, rate 0.01 / 0.1", _by_rate(table), claimed=(0, 0.5), null=1)
