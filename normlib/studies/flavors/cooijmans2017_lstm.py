"""Cooijmans, Ballas, Laurent, Gülçehre & Courville (2017), Recurrent Batch Normalization: the long short-term memory (LSTM)."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import NullLocator
from torch import nn

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.layers.recurrent import Cell
from normlib.networks import RecurrentClassifier
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.flavors.sequences import BATCH, learn, share_of_steps

ARMS = {
    "none": "none",
    "layer": "layer from 1",
    "layer small": "layer from 0.1",
    "batch": "batch from 1",
    "batch small": "batch from 0.1",
}
SMALL = 0.1  # the gain of the arms that are called small; the others start at 1

lstm = Study(
    "cooijmans2017.lstm",
    item="§4 and §5.1, in small",
    title="An LSTM that reads images row by row: batch and layer norm, gains of 1 and of 0.1",
    kind="train",
    vary={"arm": list(ARMS), "rate": [0.006, 0.018, 0.05]},
    quick={"data": "digits", "test": 200, "validation": 200, "hidden": 16, "steps": 25, "rate": [0.05]},
    laptop={"data": "fashion-mnist", "train": 12_000, "test": 2_000, "validation": 600, "hidden": 32, "steps": 320},
    full={"data": "mnist", "hidden": 100, "steps": 4_000},
)


def start_gains(cell: Cell, gain: float) -> None:
    """Set all gains of the norms of a cell, in place."""
    for norm in cell.children():
        if not isinstance(norm, nn.Identity):
            nn.init.constant_(norm.weight, gain)  # type: ignore[arg-type]


@lstm.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    norm, _, small = c.arm.partition(" ")
    net = RecurrentClassifier(images.shape[-1], c.hidden, images.classes, "lstm", norm, max_length=images.shape[-2], seed=seed)
    start_gains(net.cell, SMALL if small else 1.0)
    return learn(net.to(c.device), c, images, tests, seed)


def best(table):
    """Keep each arm's runs at the rate with the lowest held-out loss, and return them with the rates."""
    return tuned(table, ["arm"], "lowest", low=True)


@lstm.draw
def _(table):
    runs, rates = best(table)
    figure, (losses, gradients, errors) = subplots(1, 3, height=3.1)
    for place, (arm, label) in enumerate(ARMS.items()):
        own, color = runs[runs.arm == arm], norm_color(arm.split()[0])
        line = "--" if "small" in arm else "-"
        median_and_band(losses, own, "step", "loss", color=color, label=label, linestyle=line, linewidth=1.5, errorbar=None)
        median_and_band(gradients, own, "row", "gradient_start", color=color, linestyle=line, linewidth=1.5)
        each = own.drop_duplicates("seed").test_error
        errors.plot(each, [place] * len(each), "o", color=color, mfc="none" if "small" in arm else color, alpha=0.8)
    losses.set(xlabel="step", ylabel="held-out loss", yscale="log")
    losses.yaxis.set_minor_locator(NullLocator())
    low, high = losses.get_ylim()
    ticks = [tick for tick in (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0) if low < tick < high]
    losses.set_yticks(ticks, [number(tick) for tick in ticks])
    gradients.set(xlabel="row", yscale="log")
    errors.set(xlabel="test error (%)", ylim=(len(ARMS) - 0.5, -0.5))
    errors.set_yticks(range(len(ARMS)), list(ARMS.values()), fontsize=8.5)
    for ax, title in ((losses, "learning"), (gradients, "gradient in h, start"), (errors, "after training")):
        ax.set_title(title, fontsize=9.5)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=1.6, columnspacing=1.2)
    error = side_by_side(runs, "arm", "test_error").median()
    ordered = {arm: rates[arm] for arm in ARMS}
    said = ", ".join(f"{error[arm]:.1f} % ({label})" for arm, label in ARMS.items())
    ends = [ARMS[arm] for arm in at_ends(table, ["arm"], ordered)]
    return Drawing(
        figure,
        caption=f"An LSTM reads images row by row, {BATCH} images per update and per statistic of batch norm, which keeps one for "
        "each row; Adam at a constant rate. Solid lines start with gains of 1, dashed ones with 0.1. Left: held-out loss, medians. "
        f"Middle: norm of the gradient in the hidden state, before training. Right: test error of each seed; medians: {said}. "
        f"Rates, by held-out loss: {rates_in_words(ordered, ARMS)}{ends_in_words(ends)}.",
        alt="Three panels for an LSTM without norm, with layer norm and with batch norm, gains 1 and 0.1: held-out loss over "
        "steps, gradient in the hidden state over rows before training, test errors.",
    )


def _losses(table, arm: str, other: str) -> str:
    """Say how the lowest held-out losses of two arms compare."""
    lowest = side_by_side(best(table)[0], "arm", "lowest")
    ratio = lowest[arm] / lowest[other]
    return f"lowest held-out loss: ratio {number(ratio.median())} ({number(ratio.min())} to {number(ratio.max())})"


@lstm.claim(
    "batch-wants-small-gains",
    "Recurrent batch norm wants gains that start small, at 0.1 and not at 1.",
    criterion="each at its tuned rate, the test error of the batch-normalized LSTM with gains of 1 less that with 0.1 is above 0",
)
def _(table):
    error = side_by_side(best(table)[0], "arm", "test_error")
    gap, said = error["batch"] - error["batch small"], _losses(table, "batch", "batch small")
    return judge_effect("points of error, gain 1 less 0.1", gap, claimed=(0, np.inf), null=0, note=said)


@lstm.claim(
    "layer-wants-large-gains",
    "Layer norm in an LSTM wants gains that start at 1, not at 0.1.",
    criterion="each at its tuned rate, the test error of the layer-normalized LSTM with gains of 0.1 less that with 1 is above 0",
    by="ba2016",
)
def _(table):
    error = side_by_side(best(table)[0], "arm", "test_error")
    gap, said = error["layer small"] - error["layer"], _losses(table, "layer small", "layer")
    return judge_effect("points of error, gain 0.1 less 1", gap, claimed=(0, np.inf), null=0, note=said)


@lstm.claim(
    "batch-faster",
    "Batch norm makes an LSTM converge faster.",
    criterion="gains of 0.1, each at its tuned rate: the step at which batch norm reaches the lowest held-out loss of the plain "
    "LSTM, over the step at which that does, is below 1",
)
def _(table):
    shares = share_of_steps(best(table)[0], "batch small", "none", "arm")
    return judge_effect("steps with batch norm / without", list(shares.values()), claimed=(0, 1), null=1)


@lstm.claim(
    "layer-faster",
    "Layer norm makes an LSTM converge faster.",
    criterion="gains of 1, each at its tuned rate: the step at which layer norm reaches the lowest held-out loss of the plain "
    "LSTM, over the step at which that does, is below 1",
    by="ba2016",
)
def _(table):
    shares = share_of_steps(best(table)[0], "layer", "none", "arm")
    return judge_effect("steps with layer norm / without", list(shares.values()), claimed=(0, 1), null=1)


@lstm.claim(
    "batch-generalizes",
    "Batch norm makes an LSTM generalize better.",
    criterion="gains of 0.1, each at its tuned rate: the test error of the plain LSTM less that with batch norm is above 0",
)
def _(table):
    error = side_by_side(best(table)[0], "arm", "test_error")
    gap = error["none"] - error["batch small"]
    return judge_effect("points of error, none less batch norm", gap, claimed=(0, np.inf), null=0)
