"""Santurkar et al. (2018), figures 10 and 13: the landscape of the deep linear network, at their rate and at a tenth of it."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import gradient_landscape
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.studies.smoothness.nets import LINEAR_RATE, SAMPLES, fit_linear

LENGTHS = (0.01, 0.1, 1.0, 10.0, 30.0)  # times the rate: the ends are the paper's
RATES = [LINEAR_RATE, LINEAR_RATE / 10]
NORMS = {"none": "none", "batch": "batch norm"}
CLOSE = (0.85, 1.15)

plateau_linear = Study(
    "santurkar2018.plateau_linear",
    item="Figs 10, 13",
    title="At a small rate the deep linear network is smoother without batch norm, and learns more slowly",
    kind="train",
    vary={"norm": list(NORMS), "rate": RATES},
    quick={"steps": 24, "probes": 3},
    laptop={"steps": 1200, "probes": 15},
    full={"steps": 10_000, "probes": 50},
    seeds={"quick": 1, "laptop": 3, "full": 8},
)


@plateau_linear.trial
def _(c, seed):
    def measure(step, model):
        found = gradient_landscape(model, step.loss, step.x, step.y, [s * step.rate for s in LENGTHS], training=True)
        columns = ("loss", "gradient_change", "smoothness", "start_loss", "gradient_norm")
        return {"length": LENGTHS, **{name: np.nan_to_num(found[name], nan=np.inf, posinf=np.inf).tolist() for name in columns}}

    steps = sorted({round(c.steps * (place / c.probes) ** 1.3) for place in range(c.probes + 1)})
    return fit_linear(c.norm, seed, c.device, steps=c.steps, rate=c.rate, probe=measure, probe_steps=steps)[1].probes


def ranges(table):
    """Return the extremes over step lengths: one row a probe."""
    extremes = {
        "low": ("loss", "min"), "high": ("loss", "max"), "change": ("gradient_change", "max"), "beta": ("smoothness", "max"),
        "start_loss": ("start_loss", "first"),
    }  # fmt: skip
    return table.groupby(["norm", "rate", "seed", "steps", "step"], sort=False).agg(**extremes).reset_index()


def medians(table, column: str, first: float, last: float):
    """Return the median over a stretch of training, as shares of the steps: a row a seed, a column a norm and a rate."""
    found = ranges(table)
    part = found[(found.step >= first * found.steps) & (found.step <= last * found.steps)]
    return part.groupby(["seed", "norm", "rate"])[column].median().unstack(["norm", "rate"])


@plateau_linear.draw
def _(table):
    found, steps = ranges(table), table.steps.iloc[0]
    figure, axes = subplots(2, 3, height=2.3, sharex=True)
    for row, rate in zip(axes, RATES, strict=True):
        loss, change, beta = row
        for norm, label in NORMS.items():
            runs, color = found[(found.norm == norm) & np.isclose(found.rate, rate)], norm_color(norm)
            edges = runs.groupby("step")[["low", "high"]].median()
            loss.fill_between(edges.index, edges.low, edges.high, color=color, alpha=0.3, linewidth=0)
            loss.plot(edges.index, runs.groupby("step").start_loss.median(), color=color, label=label)
            for ax, column in ((change, "change"), (beta, "beta")):
                median_and_band(ax, runs, "step", column, color=color)
        beta.axhline(2 / rate, color=INK, linestyle=":", linewidth=1)
        note(beta, "2 / rate", steps, 2.5 / rate, ha="right", va="bottom", fontsize=8, transform=beta.transData)
        for ax in row:
            ax.set(yscale="log")
            ax.tick_params(labelsize=8)
        loss.set_ylabel(f"rate $10^{{{round(np.log10(rate))}}}$")
    for ax, title in zip(axes[0], ("loss: at the point, and band", "change of gradient", "effective β-smoothness"), strict=True):
        ax.set_title(title, fontsize=9)
    for ax in axes[1]:
        ax.set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    beta, end = medians(table, "beta", 2 / 3, 1).median(), medians(table, "start_loss", 1, 1)
    usual, small = RATES
    return Drawing(
        figure,
        caption=f"25 layers of 10 by 10; SGD batch and statistic batch: all {SAMPLES} samples; at 1/100 to 30 times the step. "
        f"**Top** At the paper's rate the effective β-smoothness in the last third of the steps is {number(beta['none', usual])} "
        f"without batch norm and {number(beta['batch', usual])} with it; 2 / rate is {number(2 / usual)}. **Bottom** At a tenth of "
        f"the rate it is {number(beta['none', small])} without and {number(beta['batch', small])} with it (2 / rate: "
        f"{number(2 / small)}). After {steps:,} steps the loss with it is "
        f"{number((end['batch', small] / end['none', small]).median())} times that without (medians over seeds).",
        alt="Two rows, rates 1e-6 and 1e-7. Each: loss with its band along the gradient, largest change of the gradient, and "
        "effective smoothness over steps, with and without batch norm; a line at two over the rate.",
    )


@plateau_linear.claim(
    "wild-early",
    "Early in training the gradient changes by orders of magnitude more along its direction without batch norm than with it.",
    criterion="largest change of the gradient over 1/100 to 30 times the step at the rate 1e-6, median over the probes of the "
    "first third of the steps, none over batch norm, at least 1000",
)
def _(table):
    found = medians(table, "change", 0, 1 / 3)
    ratio = found["none", RATES[0]] / found["batch", RATES[0]]
    small = (found["none", RATES[1]] / found["batch", RATES[1]]).median()
    peak = ranges(table).groupby(["rate", "seed", "norm"]).change.max().unstack("norm").loc[RATES[0]]
    largest = peak["none"] / peak["batch"]
    note = f"of the largest in a run: {number(largest.median())} ({number(largest.min())} to {number(largest.max())}); at 1e-7: "
    note += number(small)
    return judge_effect("largest change at 1e-6, none / batch norm", ratio, claimed=(1e3, np.inf), null=1, note=note)


@plateau_linear.claim(
    "batch-norm",
    "With batch norm the effective β-smoothness is 2 / rate at either rate.",
    criterion="median over the probes of the last third of the steps, times rate / 2: between 0.85 and 1.15 at both rates; the one "
    "farthest from 1 counts",
    by="notes",
)
def _(table):
    found = medians(table, "beta", 2 / 3, 1)
    product = {rate: found["batch", rate] * rate / 2 for rate in RATES}
    worst = product[RATES[0]].where(np.log(product[RATES[0]]).abs() > np.log(product[RATES[1]]).abs(), product[RATES[1]])
    note = ", ".join(f"{number(value.median())} at {number(rate)}" for rate, value in product.items())
    return judge_effect("β × rate / 2, farthest from 1", worst, claimed=CLOSE, null=np.nan, note=note)


@plateau_linear.claim(
    "smoother-without",
    "At a tenth of the paper's rate the network without batch norm is the smoother one by a factor of ten.",
    criterion="effective β-smoothness at the rate 1e-7, median over the probes of the last third of the steps, none over batch "
    "norm, at most 0.1",
    by="notes",
)
def _(table):
    found = medians(table, "beta", 2 / 3, 1)
    ratio = found["none", RATES[1]] / found["batch", RATES[1]]
    usual = (found["none", RATES[0]] / found["batch", RATES[0]]).median()
    note = f"at 1e-6: {number(usual)}"
    return judge_effect("β at 1e-7, none / batch norm", ratio, claimed=(0, 0.1), null=1, note=note)


@plateau_linear.claim(
    "faster-with",
    "At that rate the network with batch norm learns faster all the same.",
    criterion="loss after the last step at the rate 1e-7, batch norm over none, below 1",
    by="notes",
)
def _(table):
    end = medians(table, "start_loss", 1, 1)
    ratio = end["batch", RATES[1]] / end["none", RATES[1]]
    note = f"at 1e-6: {number((end['batch', RATES[0]] / end['none', RATES[0]]).median())}"
    return judge_effect("loss at 1e-7, batch norm / none", ratio, claimed=(0, 1), null=1, note=note)
