"""Bachlechner et al. (2021): deep fully connected residual networks whose branches begin with a factor of zero."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.lab import Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks.blocks import WeightLayers, block
from normlib.probes import model_map, sample_jacobians
from normlib.residual import make_residual
from normlib.studies.common.arms import first_at, images_for, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GRID, ORANGE, SKY, median_and_band, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.training import Update, evaluate, train

ARMS = {  # norm, residual; how it is called, color, marker
    "plain": ("none", None, "no shortcut", ORANGE, "v"),
    "sum": ("none", "sum", "shortcut alone", GRAY, "o"),
    "batch": ("batch", "sum", "batch norm", BLUE, "s"),
    "rezero": ("none", "rezero", "ReZero", SKY, "D"),
}
NAMES = {arm: look[2] for arm, look in ARMS.items()}
EVERY = 5  # steps in a point of the loss curve
SMALLEST = 1e-8  # where singular values of zero are drawn
SAMPLES = 8  # images whose Jacobians are taken, as one batch

rezero = Study(
    "bachlechner2021.rezero",
    item="fully connected networks",
    title="How many steps does a deep fully connected network need, with and without a gate of zero?",
    kind="train",
    vary={"arm": list(ARMS), "rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
    quick={
        "data": "digits", "train": 512, "validation": 128, "test": 128, "layers": 6, "width": 16, "batch": 64, "steps": 30,
        "target": 1.5, "rate": [3e-3, 1e-2],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 6_000, "validation": 1_000, "test": 2_000, "layers": 24, "width": 64,
        "batch": 128, "steps": 200, "target": 0.8,
    },
    full={"data": "cifar10", "validation": 5_000, "layers": 32, "width": 256, "batch": 128, "steps": 6_000, "target": 1.5},
)  # fmt: skip


class DeepNet(nn.Module):
    """A linear layer, then blocks of one linear layer and ReLU, each joined to its input, then a linear head."""

    def __init__(self, inputs: int, width: int, layers: int, classes: int, arm: str, seed: int) -> None:
        super().__init__()
        norm, residual, *_ = ARMS[arm]
        self.normalized = norm != "none"
        weights = WeightLayers("he", seed)
        self.entry = weights(nn.Linear, inputs, width)
        self.branches = nn.ModuleList(block(weights(nn.Linear, width, width), norm, "relu") for _ in range(layers))
        scheme = make_residual(residual, [layers]) if residual else None
        self.joins = nn.ModuleList(scheme.join(0, at) for at in range(layers)) if scheme else None
        self.head = weights(nn.Linear, width, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, *) to outputs (N, classes)."""
        x = self.entry(input.flatten(1))
        for at, branch in enumerate(self.branches):
            x = branch(x) if self.joins is None else self.joins[at](x, branch(x))
        output: Tensor = self.head(x)
        return output


def trunk_spectrum(net: DeepNet, x: Tensor) -> dict[str, float]:
    """Return smallest, median and largest singular value of the hidden layers' Jacobians of single images, medians over them."""
    last = f"{'branches' if net.joins is None else 'joins'}.{len(net.branches) - 1}"
    net = copy.deepcopy(net).double()
    function, point = model_map(net, x.double(), "entry", last, training=True)
    values = torch.linalg.svdvals(sample_jacobians(function, point, coupled=net.normalized))
    return {
        "smallest": float(values[:, -1].median()),
        "middle": float(values.median(dim=1).values.median()),
        "largest": float(values[:, 0].median()),
        "from_one": float((values - 1).abs().max()),
    }


@rezero.trial
def _(c, seed):
    tuning, tests = images_for(c, seed)
    net = DeepNet(tuning.x_train[0].numel(), c.width, c.layers, tuning.classes, c.arm, seed).to(c.device)
    columns: dict[str, Any] = {**trunk_spectrum(net, tuning.x_train[:SAMPLES])}
    how: dict[str, Any] = {
        "steps": c.steps,
        "batch_size": c.batch,
        "rate": c.rate,
        "update": Update(optimizer="adam"),
        "seed": seed,
    }
    run = train(net, tuning.x_train, tuning.y_train, **how)
    means = run.loss[: len(run.loss) // EVERY * EVERY].reshape(-1, EVERY).mean(1)
    every = max(1, -(-len(means) // 60))
    points = [EVERY * (at + 1) for at in range(len(means))]
    columns |= {
        "reached": first_at(points, [-mean for mean in means], -c.target),
        "step": points[::every],
        "loss": [float(mean) for mean in means[::every]],
    }
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns, held_out=np.inf, accuracy=np.nan)
    return {
        **columns,
        "held_out": evaluate(net, tuning.x_test, tuning.y_test, statistics="eval").loss,
        "accuracy": evaluate(net, tests.x_test, tests.y_test, statistics="eval").accuracy,
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Return the runs at each arm's rate, the one with the lowest loss on held-out images, and the rates."""
    return tuned(table, ["arm"], "held_out", low=True)


def steps_needed(table):
    """Return the first step at which the training loss is at the target: a row a seed, a column an arm; infinity for never."""
    return side_by_side(best(table)[0], "arm", "reached").astype(float)


def ratio(table, arm: str, other: str):
    """Return the steps that one arm needs over those of another; who never gets there counts with all steps of the run."""
    steps = steps_needed(table).clip(upper=float(table.steps.iloc[0]))
    return steps[arm] / steps[other]


@rezero.draw
def _(table):
    kept, rates = best(table)
    figure, (left, right) = subplots(1, 2, height=3.1, gridspec_kw={"width_ratios": [1.5, 1]})
    target = table.target.iloc[0]
    for row, (arm, (*_, label, color, marker)) in enumerate(ARMS.items()):
        runs = kept[kept.arm == arm]
        median_and_band(left, runs, "step", "loss", color=color, label=label, marker=marker, markevery=5)
        ends = runs.drop_duplicates("seed")[["smallest", "middle", "largest"]].median().clip(lower=SMALLEST)
        right.plot([ends.smallest, ends.largest], [row, row], color=color, linewidth=2)
        right.plot(ends.middle, row, marker, color=color)
    left.axhline(target, color=GRID, zorder=0)
    note(left, f"{number(target)}", 0.99, target, transform=left.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    left.set(xlabel="step", ylabel="training loss", ylim=(0, 3))
    left.legend(fontsize=8, loc="upper right")
    right.set(xscale="log", xlabel="singular values at the start", ylim=(len(ARMS) - 0.5, -0.5))
    right.set_yticks(range(len(ARMS)), ["no shortcut", "shortcut", "batch norm", "ReZero"], fontsize=8.5)
    right.xaxis.set_minor_locator(NullLocator())
    steps = steps_needed(table).median()
    said = ", ".join(f"{NAMES[arm]} {number(steps[arm]) if np.isfinite(steps[arm]) else 'not'}" for arm in ARMS)
    ends = ends_in_words([NAMES[arm] for arm in at_ends(table, ["arm"], rates)])
    return Drawing(
        figure,
        caption=f"{table.layers.iloc[0]} layers of {table.width.iloc[0]} units. **Left** Training loss, means of {EVERY} steps; "
        f"Adam, {table.batch.iloc[0]} images per update and per statistic of batch norm. Steps to a loss of {number(target)}, "
        f"of {table.steps.iloc[0]}: {said}. Rates by the loss on held-out images: {rates_in_words(rates, NAMES)}{ends}. **Right** "
        "Before training: smallest, median and largest singular value of what the hidden layers do to a small change of their "
        "input, an image at a time; those of 0 stand at the left edge. In ReZero all are 1.",
        alt="Left: training loss against the step for deep fully connected networks without shortcut, with one, with batch norm "
        "and with ReZero. Right: range of the singular values of each before training, log axis.",
    )


@rezero.claim(
    "isometry",
    "With ReZero a deep network begins as an isometry: every singular value of its Jacobian is 1.",
    criterion="hidden layers at initialization, all singular values of the Jacobians of single images: largest distance from 1, "
    "over images and seeds, at most 1e-9",
)
def _(table):
    distance = float(table[table.arm == "rezero"].from_one.max(skipna=False))
    return judge_identity("largest distance of a singular value from 1", distance, 1e-9)


@rezero.claim(
    "faster",
    "ReZero trains a deep fully connected residual network 15 times as fast, or at least half of that.",
    criterion="steps until the mean training loss of 5 steps is at the target, each arm at its tuned rate, shortcut alone over "
    "ReZero: at least 7.5, half of what is claimed",
)
def _(table):
    note = "a run that never gets there counts with all its steps"
    return judge_effect("steps, shortcut alone / ReZero", ratio(table, "sum", "rezero"), claimed=(7.5, np.inf), null=1, note=note)


@rezero.claim(
    "against-batch-norm",
    "ReZero needs no more steps than the same network with batch norm.",
    criterion="steps to the same training loss, each at its tuned rate, ReZero over batch norm: at most 1.25",
    by="notes",
)
def _(table):
    return judge_effect("steps, ReZero / batch norm", ratio(table, "rezero", "batch"), claimed=(0, 1.25), null=np.nan)


@rezero.claim(
    "shortcut-needed",
    "Without shortcuts a network of this depth needs at least twice as many steps as with ReZero.",
    criterion="steps to the same training loss, each at its tuned rate, no shortcut over ReZero: at least 2",
    by="notes",
)
def _(table):
    note = "a run that never gets there counts with all its steps"
    return judge_effect("steps, no shortcut / ReZero", ratio(table, "plain", "rezero"), claimed=(2, np.inf), null=1, note=note)
