"""Santurkar et al. (2018), figure 3, on a deep linear network: internal covariate shift with full batches, at two rates."""

from __future__ import annotations

import numpy as np

from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import DeepLinearNet
from normlib.studies.common.looks import note, subplots
from normlib.studies.smoothness.nets import SAMPLES, fit_linear, linear_loss
from normlib.studies.smoothness.shifts import (
    NORMS,
    by_rate,
    draw_layers,
    phase,
    probed_steps,
    rate_in_words,
    ratios,
    shift_probe,
    typical,
    weight_layers,
    with_depth_and_loss,
)

LAYERS = [5, 9, 13, 17, 21, 25]  # of 25; the paper shows 9 and 17
ALMOST_NONE = 0.9  # a cosine

linear = Study(
    "santurkar2018.fig3_linear",
    item="Fig. 3b",
    title="A deep linear network: at which rate is there almost no internal covariate shift?",
    kind="train",
    vary={"norm": list(NORMS), "rate": [1e-6, 1e-7]},
    quick={"steps": 20, "points": 3},
    laptop={"steps": 2000, "points": 11},
    full={"steps": 10_000, "points": 16},
    seeds={"quick": 1, "laptop": 3, "full": 8},
)


@linear.trial
def _(c: Config, seed: int):
    names = weight_layers(DeepLinearNet(norm=c.norm))
    probe = shift_probe(linear_loss, [names[place - 1] for place in LAYERS])
    when = probed_steps(c.steps, c.points)
    _, history = fit_linear(c.norm, seed, c.device, steps=c.steps, rate=c.rate, probe=probe, probe_steps=when)
    columns = with_depth_and_loss(history, LAYERS)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}", **columns)
    return columns


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def lowest(table, norm: str, rate: float):
    """Return, seed by seed, the lowest cosine that the median layer has at any probe."""
    arm = table[(table.norm == norm) & (table.rate == rate)]
    return arm.groupby(["seed", "step"]).cosine.median().groupby("seed").min()


@linear.draw
def _(table):
    rates = sorted(table.rate.unique(), reverse=True)
    figure, axes = subplots(3, len(rates), height=2.1, sharey="row")
    for column, rate in zip(axes.T, rates, strict=True):
        for place, value in enumerate(("shift", "relative_shift", "cosine")):
            draw_layers(column[place], table[table.rate == rate], value)
        column[0].set(yscale="log", title=f"rate {rate_in_words(rate)}")
        column[1].set(yscale="log")
        column[2].set(xlabel="step of training", ylim=(-1.05, 1.05))
    axes[0, 0].set_ylabel("shift ‖G − G′‖")
    axes[1, 0].set_ylabel("shift / ‖G‖")
    axes[2, 0].set_ylabel("cosine of G, G′")
    note(axes[2, 0], "circles: first step\ndashed: highest layer", 0.03, 0.05, fontsize=8.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    cosines, later = typical(phase(table, "all"), "cosine"), phase(table, "all")
    last = table[table.step == table.step.max()]
    lowest_in_words = ", ".join(f"{number(lowest(later, 'none', rate).median())} at rate {rate_in_words(rate)}" for rate in rates)
    return Drawing(
        figure,
        caption=f"The deep linear network, layers {', '.join(map(str, LAYERS))} of 25 (thin lines; bold: the median layer), full "
        f"batches of {SAMPLES} for update and statistic alike, the two rates of the paper, not tuned. Cosine without BN, median: "
        f"{by_rate(cosines['none'])}; with BN: {by_rate(cosines['batch'])}. Lowest cosine of the median layer without BN: "
        f"{lowest_in_words}. Shift with BN over that without: {by_rate(ratios(later, 'shift'))}; relative to the gradient: "
        f"{by_rate(ratios(later, 'relative_shift'))}. Training loss at step {table.step.max()}: without BN "
        f"{by_rate(typical(last, 'loss')['none'])}; with BN {by_rate(typical(last, 'loss')['batch'])}.",
        alt="Two columns for two learning rates of a deep linear network with and without batch normalization. Rows: the shift of "
        "the gradient of each layer over training, the shift relative to the gradient's length, the cosine.",
    )


def _almost_none(table, rate: float):
    rest = phase(table, "all")
    return judge_effect("lowest cosine of the median layer", lowest(rest, "none", rate), claimed=(ALMOST_NONE, np.inf), null=np.nan,
                        note=f"median over training {number(typical(rest, 'cosine')['none'][rate].median())}")  # fmt: skip


@linear.claim(
    "almost-none-slow",
    "At the rate 1e-7 the linear network without BN has almost no internal covariate shift throughout training.",
    criterion=f"cosine of the median layer at least {ALMOST_NONE} at every probe after the first step",
)
def _(table):
    return _almost_none(table, 1e-7)


@linear.claim(
    "almost-none-fast",
    "At the rate 1e-6, too, the linear network without BN has almost no internal covariate shift throughout training.",
    criterion=f"cosine of the median layer at least {ALMOST_NONE} at every probe after the first step",
)
def _(table):
    return _almost_none(table, 1e-6)


@linear.claim(
    "uncorrelated",
    "With BN the gradients of the linear network before and after the layers below take their step are almost uncorrelated.",
    criterion="median over layers and probes after the first step of |cosine| below 0.2, at both rates: the larger one counts",
)
def _(table):
    found = typical(phase(table, "all").assign(cosine=lambda t: t.cosine.abs()), "cosine")["batch"]
    signed = typical(phase(table, "late"), "cosine")["batch"]
    said = f"{by_rate(found)}; with its sign, in the last fifth, {by_rate(signed)}"
    largest = found.max(axis=1, skipna=False)
    return judge_effect("|cosine|, larger of two rates", largest, claimed=(0, 0.2), null=np.nan, note=said)


@linear.claim(
    "even-worse",
    "With BN the internal covariate shift of the linear network is worse than without.",
    criterion="after the first step: shift ‖G − G′‖ with BN over that without above 1 at both rates: the lower ratio counts",
    by="seed001",
)
def _(table):
    found = ratios(phase(table, "all"), "shift")
    losses = ratios(table[table.step == table.step.max()], "loss")
    said = f"{by_rate(found)}; losses at the end {by_rate(losses)}"
    effect = "‖G − G′‖ with BN / without, lower of two rates"
    return judge_effect(effect, found.min(axis=1, skipna=False), claimed=(1, np.inf), null=1, note=said)


@linear.claim(
    "relative",
    "Part of the larger shift is a larger gradient: relative to ‖G‖ the networks differ by less.",
    criterion="at rate 1e-7, after the first step: ‖G − G′‖ with BN over that without, divided by the same ratio of "
    "‖G − G′‖ / ‖G‖, at least 2",
    by="notes",
)
def _(table):
    rest = phase(table, "all")
    raw, relative = ratios(rest, "shift")[1e-7], ratios(rest, "relative_shift")[1e-7]
    said = f"raw {number(raw.median())}, relative {number(relative.median())}"
    return judge_effect("raw ratio / relative ratio", raw / relative, claimed=(2, np.inf), null=1, note=said)
