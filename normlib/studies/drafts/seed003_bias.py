"""A short review of batch normalization (the draft `seed003`): why the gradient has to flow through the statistics.

A bias b is added to numbers u, the mean is taken off again, x̂ = u + b − E[u + b], and b descends the gradient of a loss of x̂.
"""

from __future__ import annotations

import torch

from normlib.lab import Drawing, Study
from normlib.studies.common.looks import BLUE, VERMILION, median_and_band, note, subplots
from normlib.studies.common.statements import at_most, gap, normal

STEPS = 2_000
SHOWN = 40  # every how many steps a point is kept
WAYS = {True: ("through the mean", BLUE), False: ("mean held constant", VERMILION)}

bias = Study(
    "seed003.bias",
    item="Why do we need to backprop through it?",
    title="A gradient that takes the mean for a constant drives a bias away without end, at a loss that does not move",
    kind="exact",
    vary={"through_the_mean": list(WAYS)},
    quick={},
    laptop={},
    full=None,
)


@bias.trial
def _(c, seed):
    u = normal(seed, 64)
    biases, losses = descend(u, c.through_the_mean, STEPS)
    before, after = u + 1 - (u + 1).mean(), u + 8 - (u + 8).mean()
    return {
        "step": list(range(0, STEPS + 1, SHOWN)),
        "bias": biases[::SHOWN].tolist(),
        "loss": losses[::SHOWN].tolist(),
        "cancelled": gap(after, before),
    }


def loss_of(x_hat):
    """Return the mean squared distance of outputs from 1, which no bias can reach once the mean is subtracted."""
    return (x_hat - 1).square().mean()


def descend(u, through_the_mean, steps, rate=0.1):
    """Learn b by gradient descent from 0; return its values and the loss, before the first step and after each."""
    b, biases, losses = torch.zeros((), dtype=u.dtype, requires_grad=True), [], []
    for _ in range(steps + 1):
        mean = (u + b).mean()
        loss = loss_of(u + b - (mean if through_the_mean else mean.detach()))
        (gradient,) = torch.autograd.grad(loss, b)
        biases.append(float(b.detach()))
        losses.append(float(loss.detach()))
        b = (b - rate * gradient).detach().requires_grad_()
    return torch.tensor(biases, dtype=u.dtype), torch.tensor(losses, dtype=u.dtype)


@bias.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=2.7)
    for through, (label, color) in WAYS.items():
        arm = table[table.through_the_mean == through]
        style = "--" if through else "-"
        median_and_band(left, arm, "step", "bias", color=color, label=label, linestyle=style)
        median_and_band(right, arm, "step", "loss", color=color, linestyle=style)
    left.set(xlabel="step", ylabel="bias b")
    left.legend(loc="upper left", fontsize=8.5)
    right.set(xlabel="step", ylabel="loss", ylim=(0, 1.3 * table.loss.max()))
    note(right, "both lines coincide", 0.3, 0.1)
    return Drawing(
        figure,
        caption="Gradient descent on a bias whose effect the normalization takes away. If the gradient takes the mean for a "
        "constant, the bias runs away at a steady pace. The loss does not move. If the gradient flows through the mean, the bias "
        "stays where it is.",
        alt="Left: the bias against the step, a rising straight line if the mean is held constant, zero if not. Right: the loss "
        "against the step, flat and the same for both.",
    )


def _arm(table, through):
    return table[table.through_the_mean == through]


@bias.claim(
    "update-cancelled",
    "u + (b + Δb) − E[u + (b + Δb)] = u + b − E[u + b]: the normalization cancels the update of the bias.",
    criterion="relative difference at most 1e-10",
)
def _(table):
    return at_most(1e-10, table.cancelled, "largest relative difference")


@bias.claim(
    "loss-stays-constant",
    "If the gradient ignores how the mean depends on the bias, the loss stays constant while the bias is being updated.",
    criterion="over 2,000 steps the loss changes by at most 1e-5, relatively",
)
def _(table):
    first = _arm(table, False).groupby("seed").loss.transform("first")
    return at_most(1e-5, (_arm(table, False).loss / first - 1).abs(), "largest relative change of the loss")


@bias.claim(
    "bias-grows-forever",
    "If the gradient ignores how the mean depends on the bias, the bias grows without end.",
    criterion="after 2,000 steps it is twice what it was after 1,000, within 1 %",
)
def _(table):
    biases = _arm(table, False).pivot(index="seed", columns="step", values="bias")
    return at_most(0.01, (biases[STEPS] / biases[STEPS // 2] / 2 - 1).abs(), "distance of the ratio from 2, relatively")


@bias.claim(
    "both-jacobians-stop-it",
    "With both Jacobians, of the sample and of the mini-batch, the bias does not grow.",
    criterion="it moves by at most 1e-10 of what it moves by with the first Jacobian alone",
)
def _(table):
    moved = [_arm(table, through).groupby("seed").bias.agg(lambda b: b.abs().max()) for through in (True, False)]
    return at_most(1e-10, moved[0] / moved[1], "movement of the bias, both / first alone")
