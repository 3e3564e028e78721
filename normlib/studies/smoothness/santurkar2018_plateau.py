"""Santurkar et al. (2018), figures 4c and 12: the plateau of the effective β-smoothness is two over the learning rate."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import gradient_landscape, hessian_operator, landscape_ranges
from normlib.probes.curvature import model_loss
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import INK, SKY, median_and_band, norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg
from normlib.studies.smoothness.shifts import by_rate
from normlib.training import Step

NORMS = {"none": ("none", norm_color("none")), "batch": ("batch norm", norm_color("batch")), "lp:p=1": ("L1 norm", SKY)}
LINES = {0.05: ":", 0.1: "-", 0.2: "--"}
RUNS = {f"{norm} at {rate}": (norm, rate) for norm in ("none", "batch") for rate in LINES} | {"L1 at 0.1": ("lp:p=1", 0.1)}
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # times the rate of the run, as the paper has them
SETTLED = 1 / 4  # of the steps; what comes before is the transient
CLOSE = (0.85, 1.15)

plateau = Study(
    "santurkar2018.plateau",
    item="Figs 4c, 12",
    title="Does the effective smoothness stand at two over the learning rate?",
    kind="train",
    vary={"run": list(RUNS)},
    quick={**QUICK, "steps": 12, "probes": 3},
    laptop={**LAPTOP, "steps": 240, "probes": 12},
    full={**FULL, "probes": 40},
)


def sharpness(step: Step, model: nn.Module) -> float:
    """Return gᵀHg / gᵀg: the curvature of the loss of the step's batch along its own gradient g, in train mode."""
    loss, params = model_loss(model, step.loss, step.x, step.y, training=True)
    g = torch.cat([part.flatten() for part in step.gradients().values()])
    return float(g @ hessian_operator(loss, params)(g) / (g @ g))


@plateau.trial
def _(c, seed):
    images = images_for(c, seed)[0]

    def measure(step, model):
        lengths = [length * step.rate for length in LENGTHS]
        found = gradient_landscape(model, step.loss, step.x, step.y, lengths, training=True)
        smoothness = landscape_ranges(found)["smoothness"]
        return {"loss": found["start_loss"][0], "smoothness": smoothness, "sharpness": sharpness(step, model)}

    norm, rate = RUNS[c.run]
    steps = sorted({round(c.steps * place / c.probes) for place in range(c.probes + 1)})
    history = fit(vgg(c, images, norm, seed), images, steps=c.steps, rate=rate, seed=seed, probe=measure, probe_steps=steps)
    return {**history.probes, "norm": norm, "rate": rate}


def products(table):
    """Add what is measured times rate / 2: 1 is the edge of stability."""
    return table.assign(beta=table.smoothness * table.rate / 2, sharp=table.sharpness * table.rate / 2)


def settled(table, column: str = "beta"):
    """Return the median of a product after the transient: a row a seed, a column a norm and a rate."""
    part = products(table)[table.step >= SETTLED * table.steps]
    return part.groupby(["seed", "norm", "rate"])[column].median().unstack(["norm", "rate"])


def farthest(values):
    """Return, for each seed, the value that is farthest from 1 among some columns."""
    return values.apply(lambda row: row.iloc[int(np.argmax(np.abs(row.to_numpy() - 1)))], axis=1)


@plateau.draw
def _(table):
    table = products(table)
    figure, axes = subplots(2, 3, height=2.3, sharex=True, sharey="row")
    for (top, bottom), (norm, (label, color)) in zip(axes.T, NORMS.items(), strict=True):
        for rate, line in LINES.items():
            runs = table[(table.norm == norm) & (table.rate == rate)]
            if runs.empty:
                continue
            median_and_band(top, runs, "step", "smoothness", color=color, linestyle=line, label=f"rate {rate:g}")
            median_and_band(bottom, runs, "step", "beta", color=color, linestyle=line)
            top.axhline(2 / rate, color=INK, linestyle=line, linewidth=0.7)
        bottom.axhspan(*CLOSE, color=INK, alpha=0.12, linewidth=0)
        top.set_title(label, fontsize=9.5)
        top.set(yscale="log")
        bottom.set(yscale="log", xlabel="step")
    axes[0, 0].set_ylabel("effective\nβ-smoothness")
    axes[1, 0].set_ylabel("the same\n× rate / 2")
    note(axes[1, 2], "gray: 0.85 to 1.15", 0.04, 0.04, fontsize=8)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    found, said = settled(table), []
    for norm, (label, _) in NORMS.items():
        values = found[norm].median()
        ends = [number(values.min())] if len(values) == 1 else [number(values.min()), number(values.max())]
        said.append(f"{label} {' to '.join(ends)}")
    lowest, highest = min(LINES), max(LINES)
    fall = {norm: (found[norm, lowest] / lowest / (found[norm, highest] / highest)).median() for norm in ("none", "batch")}
    return Drawing(
        figure,
        caption=f"SGD batch and statistic batch {BATCH}, Glorot's start; the batch of the step, at 1/2 to 4 times the step. "
        "**Top** The effective β-smoothness, and 2 / rate as a thin line for each rate. **Bottom** Times rate / 2, after the first "
        f"quarter of the steps, the medians over seeds at these rates are {'; '.join(said)}. "
        f"From rate {lowest:g} to {highest:g} the effective β-smoothness changes by the factor {number(1 / fall['batch'])} with "
        f"batch norm and {number(1 / fall['none'])} without; 2 / rate by {number(lowest / highest)}.",
        alt="Three columns, no norm and batch norm at three learning rates, L1 norm at one: effective smoothness over steps with "
        "lines at two over the rate, and below it the same times half the rate, with a band around one.",
    )


@plateau.claim(
    "batch-norm",
    "With batch norm the effective β-smoothness is 2 / rate, whatever the rate.",
    criterion="median over the probes after the first quarter of the steps, times rate / 2: between 0.85 and 1.15 at each of the "
    "three rates; the one farthest from 1 counts",
    by="notes",
)
def _(table):
    found = settled(table)["batch"]
    return judge_effect("β × rate / 2, farthest from 1", farthest(found), claimed=CLOSE, null=np.nan, note=by_rate(found))


@plateau.claim(
    "without",
    "Without a norm the effective β-smoothness is 2 / rate too.",
    criterion="the same as with batch norm: between 0.85 and 1.15 at each of the three rates",
    by="notes",
)
def _(table):
    found = settled(table)["none"]
    return judge_effect("β × rate / 2, farthest from 1", farthest(found), claimed=CLOSE, null=np.nan, note=by_rate(found))


@plateau.claim(
    "lp",
    "Normalized by the L1 norm the effective β-smoothness is that of batch norm.",
    criterion="median over the probes after the first quarter of the steps, L1 over batch norm: between 0.85 and 1.15 at rate 0.1",
)
def _(table):
    found = settled(table)
    ratio = found["lp:p=1", 0.1] / found["batch", 0.1]
    return judge_effect("β, L1 / batch norm", ratio, claimed=CLOSE, null=np.nan)


@plateau.claim(
    "smoother",
    "With batch norm the effective β-smoothness is better, that is smaller, than without a norm.",
    criterion="median over all probes at rate 0.1, none over batch norm, above 1",
)
def _(table):
    runs = table[table.rate == 0.1].groupby(["seed", "norm"]).smoothness
    middle, largest = runs.median().unstack("norm"), runs.max().unstack("norm")
    note = f"of the largest in a run: {number((largest['none'] / largest['batch']).median())}"
    return judge_effect("β, none / batch norm", middle["none"] / middle["batch"], claimed=(1, np.inf), null=1, note=note)


@plateau.claim(
    "no-saturation",
    "With batch norm the curvature along the gradient lies at 2 / rate too, so the plateau is not that of a gradient that has "
    "vanished at the smallest step.",
    criterion="gᵀHg / gᵀg of the batch's own gradient, an exact product with the Hessian, times rate / 2; median after the first "
    "quarter of the steps: between 0.7 and 1.3 at each of the three rates; the one farthest from 1 counts",
    by="notes",
)
def _(table):
    found = settled(table, "sharp")["batch"]
    effect, note = "gᵀHg / gᵀg × rate / 2, farthest from 1", by_rate(found)
    return judge_effect(effect, farthest(found), claimed=(0.7, 1.3), null=np.nan, note=note)
