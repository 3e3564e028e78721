"""What a copy of the forward pass leaves out of the backward pass: batch norm's centering of gradients, measured and put back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import BatchNorm
from normlib.layers.shapes import per_channel
from normlib.networks import ResNet
from normlib.probes import channel_power, preserved
from normlib.probes.watching import gradients_at, watched
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GREEN, OLIVE, SKY, VERMILION, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit, resnet
from normlib.training import accuracy

ARMS = {  # name, color
    "batch": ("batch norm", norm_color("batch")),
    "none": ("no norm", norm_color("none")),
    "skipinit_root": ("SkipInit at 1/√L", SKY),
    "nf": ("NF", OLIVE),
    "nf + shift": ("NF, shifts", GREEN),
    "nf + shift + centering": ("NF, shifts, centered", VERMILION),
}
SLOWER = {"none": 0.1, "skipinit_root": 0.3}  # factor of these arms' rates: they diverge sooner
MEASURED = 256  # images in the batch whose gradients are looked at

centering = Study(
    "hoedt2022.gradient_centering",
    item="Insights",
    title="Do normalizer-free networks miss batch norm's centering of gradients?",
    kind="train",
    vary={"arm": list(ARMS), "rate": [0.03, 0.1, 0.3, 1.0]},
    quick={**QUICK, "steps": 12, "looks": 3, "rate": [0.3]},
    laptop={**LAPTOP, "steps": 60, "looks": 5},
    full={**FULL, "steps": 20_000, "looks": 20, "rate": [0.03, 0.1, 0.3, 1.0, 3.0]},
)


class _Centering(torch.autograd.Function):
    """The identity, whose gradient loses the mean that it has in each channel over the batch and all positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (g,) = gradients
        return g - g.mean((0, *range(2, g.ndim)), keepdim=True)


class Shift(nn.Module):
    """What stands where batch norm would: a learned shift of each channel, and before it the centering of gradients or nothing.

    Behind the centering a bias of the layer before gets no gradient, as before batch norm. So the shift has to stand here.
    """

    def __init__(self, channels: int, centers: bool) -> None:
        super().__init__()
        self.centers, self.bias = centers, nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Shift each channel of (N, C, H, W)."""
        output: Tensor = _Centering.apply(input) if self.centers else input
        return output + per_channel(self.bias, input)


def network(c: Any, images: Dataset, arm: str, seed: int) -> ResNet:
    """Build an arm; with "shift" in its name a `Shift` stands at every place where another arm has batch norm."""
    key, *parts = arm.split(" + ")
    net = resnet(c, images, key, seed)
    places = resnet(c, images, "batch", seed).named_modules() if parts else ()
    for name, norm in places:
        if isinstance(norm, BatchNorm):
            net.set_submodule(name, Shift(norm.num_features, "centering" in parts).to(c.device))
    return net


def removed_by_batch_norm(g: Tensor, x: Tensor) -> tuple[float, float]:
    """Return the shares of a gradient's power that lie in the two parts which batch norm takes out of it.

    They are, for each channel over batch and positions, the mean of g, and what of it is proportional to the standardized x.

    Both are NaN where there is no gradient at all.

    Args:
        g: gradient of the loss with respect to `x`.
        x: activations (N, C, H, W).
    """
    axes = (0, *range(2, x.ndim))
    g, x = g.double(), x.detach().double()
    z = x - x.mean(axes, keepdim=True)
    along = (g * z).mean(axes).square() / z.square().mean(axes).clamp(min=1e-30)
    power = channel_power(g)
    total = power.squared_mean + power.variance
    if total == 0:
        return math.nan, math.nan  # a network whose units are all dead has no gradient
    return power.squared_mean / total, float(along.mean()) / total


def shares(net: ResNet, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """Return `removed_by_batch_norm` at each block's first sum: what batch norm is given there, or what stands in for it."""
    names = [f"blocks.{index}.branch.0" for index in range(len(net.blocks))]
    with preserved(net, training=True), torch.enable_grad(), watched(net, names) as outputs:
        loss = cross_entropy(net(x), y)
        sums = [output for _, output in outputs.values()]
        found = [removed_by_batch_norm(g, s) for g, s in zip(gradients_at(loss, sums), sums, strict=True) if g is not None]
    means, scales = zip(*found, strict=True)
    return list(means), list(scales)


@centering.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    net = network(c, images, c.arm, seed)
    x, y = images.x_train[:MEASURED], images.y_train[:MEASURED]
    means, scales = shares(net, x, y)
    looks = np.unique(np.geomspace(2, c.steps, c.looks).astype(int)).tolist()

    def look(step: int, model: Any) -> dict[str, float]:
        return {"mean": float(np.mean(shares(model, x, y)[0]))}

    rate = c.rate * SLOWER.get(c.arm, 1.0)
    run = fit(net, images, steps=c.steps, rate=rate, seed=seed, probe=look, probe_steps=looks)
    start = {"start": float(np.mean(means)), "start_worst": max(means), "start_scale": float(np.mean(scales))}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **start)
    return {
        **start,
        "train_loss": float(run.loss[-c.steps // 6 :].mean()),
        "held_out": accuracy(net, images.x_test, images.y_test, statistics="eval"),
        "accuracy": accuracy(net, tests.x_test, tests.y_test, statistics="eval"),
        "step": [0, *looks],
        "mean": [start["start"], *run.probes["mean"]],
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------

PLAIN, SHIFT, CENTERED = "nf", "nf + shift", "nf + shift + centering"


def kept(table):
    """Return the runs of each arm at its rate, and the rates."""
    runs, rates = tuned(table, ["arm"], "held_out")
    return runs, {arm: rate * SLOWER.get(arm, 1.0) for arm, rate in rates.items()}


def last(table):
    """Return the share of the means at the last look, at the tuned rate: a row a seed, a column an arm."""
    runs = kept(table)[0]
    return side_by_side(runs[runs.step == runs.step.max()], "arm", "mean")


def gains(table):
    """Return by how many points of test accuracy the centering of gradients raises the normalizer-free network with shifts."""
    scores = side_by_side(kept(table)[0], "arm", "accuracy")
    return 100 * (scores[CENTERED] - scores[SHIFT])


@centering.draw
def _(table):
    runs, rates = kept(table)
    figure, (start, course, end) = subplots(1, 3, height=3.2, width_ratios=[1, 1.35, 1])
    scores = runs.drop_duplicates(["arm", "seed"])
    for row, (arm, (name, color)) in enumerate(ARMS.items()):
        own = scores[scores.arm == arm]
        if arm not in ("batch", SHIFT, CENTERED):
            start.plot(100 * own.start, [row] * len(own), "o", color=color, mfc="none")
        if arm not in ("batch", SHIFT):
            percent = runs.assign(mean=100 * runs["mean"])
            median_and_band(course, percent[percent.arm == arm], "step", "mean", color=color, marker="o", label=name)
        end.plot(100 * own.accuracy, [row] * len(own), "o", color=color, mfc="none")
        end.plot(100 * own.accuracy.median(), row, "|", color=color, markersize=14, mew=2)
    start.plot(
        100 * scores[scores.arm == "batch"].start, [0] * scores[scores.arm == "batch"].seed.nunique(), "o", color=ARMS["batch"][1]
    )
    start.set_yticks(range(len(ARMS)), [name.replace(", ", ",\n", 1) for name, _ in ARMS.values()], fontsize=8.5)
    start.set(xlabel="% of the power", ylim=(len(ARMS) - 0.5, -0.5), xlim=(-0.3, None))
    end.set(xlabel="test accuracy (%)", ylim=(len(ARMS) - 0.5, -0.5), yticks=range(len(ARMS)), yticklabels=[])
    course.set(xlabel="step", ylabel="% of the power", ylim=(0, None))
    for ax, title in ((start, "means, at the start"), (course, "means, in training"), (end, "after training")):
        ax.set_title(title, fontsize=9.5)
    names = {arm: name for arm, (name, _) in ARMS.items()}
    at_start, grown = scores.groupby("arm")[["start", "start_scale"]].median(), last(table).median()
    difference = gains(table)
    ends = ends_in_words([names[arm] for arm in at_ends(table, ["arm"], tuned(table, ["arm"], "held_out")[1])])
    return Drawing(
        figure,
        caption="**Left** Share of a gradient's power that lies in the means of its channels, which batch norm takes out: before "
        f"training {_percent(at_start.start['nf'])} with NF, {_percent(at_start.start['skipinit_root'])} with SkipInit, "
        f"{_percent(at_start.start['none'])} with no norm, rounding with batch norm; mean over the blocks' first sums, {MEASURED} "
        "images in one statistic batch. Of the other part that batch norm takes out, along the standardized activations, NF has "
        f"{_percent(at_start.start_scale['nf'])}. **Middle** In training; NF ends at {_percent(grown['nf'])}. **Right** Centering "
        f"put back changes the test accuracy of NF with shifts by {number(difference.median())} points "
        f"({number(difference.min())} to {number(difference.max())}). Statistic and SGD batch in training: {BATCH}; "
        f"{table.steps.iloc[0]} steps; {RECIPE}. Rates: {rates_in_words(rates, names)}{ends}.",
        alt="Left: share of gradient power in channel means at the start, by arm. Middle: the same in training. Right: test "
        "accuracy of batch norm, no norm, SkipInit, NF, NF with shifts, and NF with centered gradients.",
    )


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"


@centering.claim(
    "batch-centers",
    "The backward pass of batch norm centers the gradient of each channel.",
    criterion="share of the means in the gradient with batch norm, at every block before training, at most 10⁻⁶",
)
def _(table):
    largest = float(table[table.arm == "batch"].start_worst.max())
    return judge_identity("largest share of the means", largest, 1e-6)


@centering.claim(
    "nf-lacks-it",
    "A normalizer-free network does not center gradients: no part of it takes over from batch norm here.",
    criterion="share of the means with NF, at the last look at the tuned rate, at least 0.001 of the gradient's power",
)
def _(table):
    return judge_effect("share of the means", last(table)[PLAIN], claimed=(1e-3, np.inf), null=0)


@centering.claim(
    "small",
    "What it misses is small: the means hold less than a twentieth of the gradient's power, before and after training.",
    criterion="mean over blocks with NF, before training and at the last look: the larger of the two below 0.05",
    by="notes",
)
def _(table):
    runs = kept(table)[0]
    start = side_by_side(runs, "arm", "start")[PLAIN]
    return judge_effect("larger share", np.maximum(start, last(table)[PLAIN]), claimed=(0, 0.05), null=1)


@centering.claim(
    "put-back",
    "Gradients centered where batch norm would center them make a normalizer-free network better by half a point or more.",
    criterion="test accuracy, NF with shifts and centering less NF with shifts, each at its own rate: at least 0.5 points",
    by="notes",
)
def _(table):
    loss = side_by_side(kept(table)[0], "arm", "train_loss")
    note = f"training loss, centered / not: {number((loss[CENTERED] / loss[SHIFT]).median())}"
    return judge_effect("points of test accuracy", gains(table), claimed=(0.5, np.inf), null=0, note=note)


@centering.claim(
    "the-gap",
    "What separates the normalizer-free network from batch norm is its backward pass: centering closes half of the gap.",
    criterion="gain in test accuracy by centering over the gap from NF with shifts to batch norm, at least 0.5; no gap, no number",
    by="notes",
)
def _(table):
    scores = side_by_side(kept(table)[0], "arm", "accuracy")
    gap = 100 * (scores["batch"] - scores[SHIFT])
    note = f"gap {number(gap.median())} points ({number(gap.min())} to {number(gap.max())})"
    return judge_effect("share of the gap", gains(table) / gap.where(gap > 0), claimed=(0.5, np.inf), null=0, note=note)
