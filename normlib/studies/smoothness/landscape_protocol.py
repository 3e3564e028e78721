"""A protocol that is no landscape: the losses of several models, trained at several rates, taken for the loss around one point."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.probes import gradient_landscape
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import norm_color, note, subplots
from normlib.studies.smoothness.nets import BATCH, FULL, LAPTOP, QUICK, fit, vgg

RATES = (0.05, 0.1, 0.2, 0.4)
POINT = 0.1  # the rate of the run that the landscape is measured in; RATES are then the steps of the paper's figure
NORMS = {"none": "none", "batch": "batch norm"}
LATE = 1 / 2  # of the steps

protocol = Study(
    "notes.landscape_protocol",
    item="public re-implementations of Fig 4",
    title="The losses of several models are no landscape",
    kind="train",
    vary={"norm": list(NORMS)},
    quick={**QUICK, "steps": 16, "probes": 4},
    laptop={**LAPTOP, "steps": 200, "probes": 16},
    full={**FULL, "probes": 60},
)


@protocol.trial
def _(c, seed):
    images = images_for(c, seed)[0]
    steps = sorted({round(c.steps * place / c.probes) for place in range(c.probes + 1)})
    columns = {}
    for rate in RATES:

        def measure(step, model, rate=rate):
            lengths = RATES if rate == POINT else [rate]
            found = gradient_landscape(model, step.loss, step.x, step.y, lengths, training=True)
            return {"start": found["start_loss"][0], "low": min(found["loss"]), "high": max(found["loss"])}

        net = vgg(c, images, c.norm, seed)
        probes = fit(net, images, steps=c.steps, rate=rate, seed=seed, probe=measure, probe_steps=steps).probes
        short = len(steps) - len(probes["step"])  # a diverged run has fewer
        columns[f"model_{rate:g}"] = probes["start"] + [np.inf] * short
        if rate == POINT:
            columns |= {name: probes[name] + [np.inf] * short for name in ("low", "high")}
    return {"step": steps, **columns}


def bands(table, rates=RATES):
    """Add the two bands: over models at some rates (`models_low`, `models_high`, `models`), and along the gradient (`gradient`)."""
    losses = table[[f"model_{rate:g}" for rate in rates]].to_numpy()
    low, high = losses.min(axis=1), losses.max(axis=1)
    return table.assign(models_low=low, models_high=high, models=high - low, gradient=table.high - table.low)


def widths(table, column: str, rates=RATES):
    """Return the median width of a band in the second half of training: a row a seed, a column a norm."""
    found = bands(table[table.step >= LATE * table.steps], rates)
    return found.groupby(["seed", "norm"])[column].median().unstack("norm")


def ratio(table, column: str, rates=RATES):
    """Return that width without batch norm over the one with it, for each seed."""
    found = widths(table, column, rates)
    return found["none"] / found["batch"]


@protocol.draw
def _(table):
    found = bands(table)
    figure, axes = subplots(1, 2, height=2.9, sharey=True)
    for ax, edges, title in (
        (axes[0], ["low", "high"], "one model, along its gradient"),
        (axes[1], ["models_low", "models_high"], "four models, one for each rate"),
    ):
        for norm, label in NORMS.items():
            middle = found[found.norm == norm].groupby("step")[edges].median()
            ax.fill_between(middle.index, *middle.to_numpy().T, color=norm_color(norm), alpha=0.35, linewidth=0, label=label)
            for edge in edges:
                ax.plot(middle.index, middle[edge], color=norm_color(norm), linewidth=1)
        ax.set(yscale="log", xlabel="step", title=title)
    limits = axes[0].get_ylim()
    axes[0].set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set(ylim=limits, ylabel="loss, lowest to highest")
    note(axes[0], "a landscape", 0.04, 0.05)
    note(axes[1], "no landscape", 0.04, 0.05)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    along, over, fewer = (number(ratio(table, *how).median()) for how in (("gradient",), ("models",), ("models", RATES[:-1])))
    said = ", ".join(f"{rate:g}" for rate in RATES)
    return Drawing(
        figure,
        caption=f"SGD batch and statistic batch {BATCH}, Glorot's start, the same batches in all runs; medians over seeds. "
        f"**Left** The band of the loss along the gradient of one model, trained at the rate {POINT:g}, at steps of {said} times "
        "the gradient. "
        f"**Right** The lowest and highest loss of four models, trained at these rates. In the second half of training the band "
        f"without batch norm is {along} times as wide as with it on the left, {over} times on the right, and {fewer} times if the "
        "largest rate is left out there.",
        alt="Two panels of loss over steps, without and with batch norm: the band along the gradient of one model, and the band "
        "between the losses of four models trained at four rates.",
    )


@protocol.claim(
    "another-number",
    "For one and the same network with batch norm the two bands differ in width by a factor of two at least.",
    criterion="median width in the second half of training, over four models over that along the gradient, or its inverse if that "
    "is larger: at least 2",
)
def _(table):
    both = widths(table, "models")["batch"] / widths(table, "gradient")["batch"]
    note = f"over models / along the gradient: {number(both.median())}"
    return judge_effect("factor between the widths", np.maximum(both, 1 / both), claimed=(2, np.inf), null=1, note=note)


@protocol.claim(
    "overstates",
    "Taken over models the advantage of batch norm comes out at least twice as large as along the gradient.",
    criterion="ratio of the widths, none over batch norm, by models over the same ratio along the gradient: at least 2",
)
def _(table):
    over, along = ratio(table, "models"), ratio(table, "gradient")
    note = f"{number(over.median())} by models, {number(along.median())} along the gradient"
    return judge_effect("ratio by models / ratio along the gradient", over / along, claimed=(2, np.inf), null=1, note=note)


@protocol.claim(
    "who-trains",
    "The band over models tells which rates train: without the largest one the advantage of batch norm is at most half as large.",
    criterion="ratio of the widths, none over batch norm, by the three smaller rates over that by all four: at most 0.5",
)
def _(table):
    fewer, every = ratio(table, "models", RATES[:-1]), ratio(table, "models")
    note = f"{number(fewer.median())} by three models, {number(every.median())} by four"
    return judge_effect("ratio by three models / by four", fewer / every, claimed=(0, 0.5), null=1, note=note)
