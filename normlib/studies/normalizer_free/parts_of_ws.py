"""Scaled weight standardization taken apart: rows centered, rows scaled, a learned gain. Which part does a network need?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import ResNet
from normlib.probes import channel_power, reduce_activations
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, OLIVE, SKY, VERMILION, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import BATCH, FULL, LAPTOP, QUICK, RECIPE, fit, resnet
from normlib.training import accuracy
from normlib.weights import activation_gain

WHOLE = "center + scale + gain"
NAMES = {
    WHOLE: "all three",
    "scale + gain": "not centered",
    "center + gain": "not scaled",
    "center + scale": "no gain",
    "none": "none of them",
}
COLORS = dict(zip(NAMES, (OLIVE, VERMILION, SKY, GRAY, GRAY), strict=True))

parts = Study(
    "notes.parts_of_ws",
    item="Insights; question 5 of the draft",
    title="Which part of scaled weight standardization a normalizer-free network needs",
    kind="train",
    vary={"parts": list(NAMES), "rate": [0.03, 0.1, 0.3, 1.0]},
    quick={**QUICK, "steps": 12, "rate": [0.1]},
    laptop={**LAPTOP, "steps": 60},
    full={**FULL, "steps": 20_000},
)


class Parts(nn.Module):
    """A parametrization with some of the parts of scaled weight standardization; with all of them it is that one.

    Args:
        weight: the weight to act on, drawn with variance 1 / fan-in.
        chosen: names of parts: "center" subtracts from each row its mean, "scale" divides it by its norm, "gain" multiplies it
            by a learned number.
        gamma: constant factor of every row, with any parts.
    """

    def __init__(self, weight: Tensor, chosen: list[str], gamma: float) -> None:
        super().__init__()
        self.chosen, self.gamma = chosen, gamma
        self.gain = nn.Parameter(torch.ones(len(weight), 1, 1, 1, device=weight.device)) if "gain" in chosen else None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that is applied."""
        rows = (1, 2, 3)
        if "center" in self.chosen:
            weight = weight - weight.mean(rows, keepdim=True)
        if "scale" in self.chosen:
            weight = weight * weight.square().sum(rows, keepdim=True).clamp(min=1e-4).rsqrt()
        weight = self.gamma * weight
        return weight if self.gain is None else weight * self.gain


def network(c: Config, images: Dataset, chosen: str, seed: int) -> ResNet:
    """Build the network of `brock2021a` with some parts; before training, parts left out change little but the means."""
    net = resnet(c, images, "nf_he", seed)  # no weight norm, He's weights
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                module.weight /= math.sqrt(2)  # variance 1 / fan-in
        if isinstance(module, nn.Conv2d):
            gamma = 1.0 if name == "stem" else activation_gain("relu")  # the stem is given no activation
            parametrize.register_parametrization(module, "weight", Parts(module.weight, chosen.split(" + "), gamma))
    return net


def moments(net: ResNet, x: Tensor) -> dict[str, float]:
    """Return of the outputs of branches, which the books hold to mean 0 and variance 1, the averages over blocks.

    `means` is the share of the power that lies in the means of channels, `variance` the variance of a channel.
    """
    names = [f"blocks.{index}.branch" for index in range(len(net.blocks))]
    found = reduce_activations(net, x, channel_power, names, training=True).values()
    return {
        "means": float(np.mean([p.squared_mean / (p.squared_mean + p.variance) for p in found])),
        "variance": float(np.mean([p.variance for p in found])),
    }


@parts.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    net = network(c, images, c.parts, seed)
    start = moments(net, images.x_train[:256])
    run = fit(net, images, steps=c.steps, rate=c.rate, seed=seed)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **start)
    return {
        **start,
        **{f"{name}_end": value for name, value in moments(net, images.x_train[:256]).items()},
        "train_loss": float(run.loss[-c.steps // 6 :].mean()),
        "held_out": accuracy(net, images.x_test, images.y_test, statistics="eval"),
        "accuracy": accuracy(net, tests.x_test, tests.y_test, statistics="eval"),
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Return the runs of each arm at its rate, and the rates."""
    return tuned(table, ["parts"], "held_out")


def loss_of(table, left_out: str):
    """Return the points of test accuracy that an arm is behind the whole, each at its own rate, seed by seed."""
    scores = side_by_side(best(table)[0], "parts", "accuracy")
    return 100 * (scores[WHOLE] - scores[left_out])


@parts.draw
def _(table):
    runs, rates = best(table)
    runs = runs.drop_duplicates(["parts", "seed"])
    figure, (means, course, end) = subplots(1, 3, height=2.9, width_ratios=[1, 1.3, 1])
    for row, (arm, name) in enumerate(NAMES.items()):
        own, color = runs[runs.parts == arm], COLORS[arm]
        means.plot(100 * own.means, [row] * len(own), "o", color=color, mfc="none")
        means.plot(100 * own.means_end, [row] * len(own), "o", color=color)
        grid = table[table.parts == arm].groupby("rate").held_out.median()
        course.plot(grid.index, 100 * grid, "o-" if arm != "none" else "s--", color=color, label=name)
        end.plot(100 * own.accuracy, [row] * len(own), "o", color=color, mfc="none")
        end.plot(100 * own.accuracy.median(), row, "|", color=color, markersize=14, mew=2)
    means.set_yticks(range(len(NAMES)), list(NAMES.values()), fontsize=9)
    end.set_yticks(range(len(NAMES)), [])
    for ax in (means, end):
        ax.set_ylim(len(NAMES) - 0.5, -0.5)
    means.set(xlabel="% of the power", xlim=(-2, None))
    course.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy (%)")
    ticks = sorted(table.rate.unique())
    course.set_xticks(ticks, [number(rate) for rate in ticks])
    course.minorticks_off()
    end.set(xlabel="test accuracy (%)")
    figure.legend(*course.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5, columnspacing=1)
    for ax, title in ((means, "means of channels"), (course, "every rate"), (end, "at its own rate")):
        ax.set_title(title, fontsize=9.5)
    start = runs.groupby("parts").means.median()
    words = ", ".join(f"{number(loss_of(table, arm).median())} {name}" for arm, name in NAMES.items() if arm != WHOLE)
    return Drawing(
        figure,
        caption="A normalizer-free ResNet without parts of its scaled weight standardization. **Left** Share of the power of "
        "branch outputs that lies in the means of channels, before training (open) and after (filled), mean over blocks: at "
        f"the start {number(100 * start[WHOLE])} % with all three, {number(100 * start['scale + gain'])} % not centered. "
        "**Middle** Accuracy on held-out images, which chose the rates, median of the seeds; where a line ends, a run diverged. "
        f"**Right** Points of test accuracy behind all three: {words}. Rates: {rates_in_words(rates, NAMES)}"
        f"{ends_in_words([NAMES[arm] for arm in at_ends(table, ['parts'], rates)])}. No statistics of batches; SGD batch "
        f"{BATCH}, {table.steps.iloc[0]} steps; {RECIPE}.",
        alt="Left: share of power in the channel means before and after training, for five sets of parts. Middle: validation "
        "accuracy against the learning rate. Right: test accuracy at each one's rate.",
    )


@parts.claim(
    "centering-for-means",
    "The centering of weights stands in for the subtraction of means: it keeps the means of the channels small.",
    criterion="before training, share of the means in the outputs of branches, mean over blocks: with all three parts at most a "
    "fifth of that without centering (zero padding leaves some)",
    by="hoedt2022",
)
def _(table):
    start = side_by_side(best(table)[0], "parts", "means")
    return judge_effect("share, centered / not", start[WHOLE] / start["scale + gain"], claimed=(0, 0.2), null=1)


@parts.claim(
    "still-normalized",
    "What is given up is batch norm, not normalization as a whole: without its normalized weights the network loses.",
    criterion="test accuracy with all three parts less that with none, each at its own rate: at least one point",
    by="notes",
)
def _(table):
    return judge_effect("points of test accuracy", loss_of(table, "none"), claimed=(1, np.inf), null=0)


for _part, _others in (("centering", "scale + gain"), ("scaling", "center + gain")):

    @parts.claim(
        _part,
        f"Without the {_part} of rows the network loses a point or more.",
        criterion=f"test accuracy with all three parts less that without {_part}, each at its own rate: at least one point",
        by="notes",
    )
    def _(table, others=_others):
        return judge_effect("points of test accuracy", loss_of(table, others), claimed=(1, np.inf), null=0)


@parts.claim(
    "gain",
    "Without the learned gain the network loses less than a point.",
    criterion="test accuracy with all three parts less that without the gain, each at its own rate: less than one point",
    by="notes",
)
def _(table):
    return judge_effect("points of test accuracy", loss_of(table, "center + scale"), claimed=(-np.inf, 1), null=np.nan)
