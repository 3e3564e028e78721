"""Lp norms in a deep linear network: the order in which they learn, and batch norm with a gain that stands in for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.layers.lp import lp_moments
from normlib.networks import DeepLinearNet
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GREEN, OLIVE, ORANGE, median_and_band, subplots
from normlib.studies.smoothness.nets import SAMPLES, linear_loss, linear_task
from normlib.training import train

GAIN = " + gain"  # batch norm whose gains start where the other norm's outputs do
NAMES = {
    "none": "no norm", "batch": "BN", "lp:p=1": "L1", "lp:p=2": "L2", "lp:p=inf": "L∞",
    f"lp:p=1{GAIN}": "BN, gain as L1", f"lp:p=inf{GAIN}": "BN, gain as L∞",
}  # fmt: skip
NORMS = list(NAMES)[1:5]
LOOKS = {
    "none": (GRAY, "-"), "batch": (BLUE, "-"), "lp:p=1": (ORANGE, "-"), "lp:p=2": (OLIVE, "--"), "lp:p=inf": (GREEN, "-"),
    f"lp:p=1{GAIN}": (ORANGE, ":"), f"lp:p=inf{GAIN}": (GREEN, ":"),
}  # fmt: skip
LAST = 20  # steps whose mean loss stands for the end

linear = Study(
    "santurkar2018.fig5_linear",
    item="Fig. 5b",
    title="In a deep linear network L1 and L2 end where batch norm does, and L∞ comes later",
    kind="train",
    vary={"arm": list(NAMES)},
    quick={"steps": 30, "rate": 3e-6},
    laptop={"steps": 700, "rate": 3e-6},
    full={"steps": 10_000, "rate": 1e-6},
)


def gain_of(p: float) -> float:
    """Return the deviation of normal values after division by their Lp scale: 1.25 for p = 1, 0.3 for the largest of 1000."""
    values = torch.randn(SAMPLES, 200, generator=torch.Generator().manual_seed(0))
    return float((1 / lp_moments(values, p)[1]).mean())


def network(arm: str, seed: int) -> DeepLinearNet:
    """Build the deep linear network of an arm."""
    spec, _, gained = arm.partition(" + ")
    net = DeepLinearNet(norm="batch" if gained else spec, seed=seed)
    if gained:
        gain = gain_of(float(spec.partition("=")[2]))
        for block in net.get_submodule("blocks").children():
            nn.init.constant_(block.get_parameter("norm.weight"), gain)
    return net


@linear.trial
def _(c, seed):
    net, (x, y) = network(c.arm, seed).to(c.device), linear_task(seed, c.device)
    run = train(net, x, y, steps=c.steps, batch_size=None, rate=c.rate, loss=linear_loss, seed=seed)
    finite = run.diverged_at is None
    return {**run.curve(50), "end": float(run.loss[-LAST:].mean()) if finite else np.inf}


def _ends(table):
    """Return the loss at the end: a row a seed, a column an arm."""
    return side_by_side(table, "arm", "end")


@linear.draw
def _(table):
    figure, (curves, ends) = subplots(1, 2, height=3.2, gridspec_kw={"width_ratios": [1.5, 1]})
    for place, (arm, (color, style)) in enumerate(LOOKS.items()):
        runs = table[table.arm == arm]
        median_and_band(curves, runs, "step", "loss", color=color, linestyle=style, label=NAMES[arm])
        last = runs.drop_duplicates("seed").end
        ends.plot(last, np.full(len(last), place), "o", color=color, markerfacecolor="none" if GAIN in arm else color)
    curves.set(yscale="log", xlabel="step", ylabel="loss (sum over samples)")
    ends.set(xlim=(0, None), xlabel="loss at the end", ylim=(len(LOOKS) - 0.5, -0.5))
    ends.set_yticks(range(len(LOOKS)), list(NAMES.values()), fontsize=8)
    ends.ticklabel_format(axis="x", scilimits=(0, 0))
    end = _ends(table).median()
    order = sorted(list(NAMES)[:5], key=lambda arm: end[arm])
    return Drawing(
        figure,
        caption="Loss of a deep linear network, 25 layers of 10 by 10 on 1000 samples, all of them in every statistic and step; "
        f"rate {number(table.rate.iloc[0])} for all arms, {int(table.steps.iloc[0])} steps. At the end, from the lowest loss: "
        f"{', '.join(f'{NAMES[arm]} {number(end[arm])}' for arm in order)}. Dotted, and circles: batch norm whose gains start at "
        f"{number(gain_of(1))} and {number(gain_of(np.inf))}, the deviations that L1 and L∞ leave; it ends at "
        f"{number(end[f'lp:p=1{GAIN}'])} and {number(end[f'lp:p=inf{GAIN}'])}.",
        alt="Left: loss against the step on a log scale for no norm, batch norm, L1, L2, L-infinity norm and, dotted, batch norm "
        "with two other initial gains. Right: the losses at the end, a dot a seed.",
    )


@linear.claim(
    "below-none",
    "Every normalized network ends at a lower loss than the one without norm.",
    criterion="loss at the end, the highest of BN, L1, L2, L∞ over that without norm, below 1",
)
def _(table):
    end = _ends(table)
    said = ", ".join(f"{NAMES[arm]} {number((end[arm] / end['none']).median())}" for arm in NORMS)
    return judge_effect("highest of four / no norm", end[NORMS].max(axis=1) / end["none"], claimed=(0, 1), null=1, note=said)


@linear.claim(
    "l1-below-bn",
    "L1 normalization ends at a lower loss than batch norm.",
    criterion="ratio of the losses at the end below 1",
)
def _(table):
    end = _ends(table)
    return judge_effect("loss, L1 / BN", end["lp:p=1"] / end["batch"], claimed=(0, 1), null=1)


@linear.claim(
    "l2-as-bn",
    "L2 normalization does as batch norm does, as there is next to no mean to take out.",
    criterion="ratio of the losses at the end between 0.8 and 1.25",
    by="notes",
)
def _(table):
    end = _ends(table)
    return judge_effect("loss, L2 / BN", end["lp:p=2"] / end["batch"], claimed=(0.8, 1.25), null=np.nan)


@linear.claim(
    "a-gain-instead",
    "The size of the outputs tells the speed: batch norm with its gains started at that size ends where the Lp norm does.",
    criterion="loss of L∞ against BN with the gain of L∞, and of L1 against BN with the gain of L1: within a factor of 1.5; the "
    "larger of the two factors counts",
    by="notes",
)
def _(table):
    end = _ends(table)
    factors = np.exp(np.stack([np.log(end[arm] / end[arm + GAIN]).abs() for arm in ("lp:p=1", "lp:p=inf")]).max(0))
    plain = (end["lp:p=inf"] / end["batch"]).median()
    return judge_effect("larger factor", factors, claimed=(1, 1.5), null=np.nan, note=f"L∞ over BN with gain 1: {number(plain)}")
