"""Ioffe & Szegedy (2015), section 2: what becomes of a network whose gradient takes the statistics for constants.

The draft `seed003` has the paper's example of a single bias; here the same is done to all units of a network, and to the variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import batch_norm
from normlib.layers.batch import batch_moments
from normlib.layers.shapes import channel_affine, per_channel
from normlib.networks import MLP
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import GRAY, GREEN, INK, ORANGE, VERMILION, median_and_band, norm_color, subplots
from normlib.training import train

ARMS = {
    "": ("nothing: the true gradient", norm_color("batch")),
    "variance": ("variance", GREEN),
    "mean": ("mean", ORANGE),
    "mean + variance": ("mean and variance", VERMILION),
    "mean, unscaled": ("mean, centering only", GRAY),
    "unscaled": ("nothing, centering only", INK),
}  # what is held constant
DRAWN = list(ARMS)[:5]
ORDINARY, HIGH, POINTS = 0.1, 3.0, 40

bias_blowup = Study(
    "ioffe2015.bias_blowup",
    item="Section 2",
    title="A gradient that takes the statistics for constants spends its steps on what the normalization takes away",
    kind="train",
    vary={"constant": list(ARMS), "rate": [ORDINARY, HIGH]},
    quick={"data": "digits", "pool": 1, "width": 32, "steps": 100},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 20_000, "width": 100, "steps": 1_500},
    full={"data": "mnist", "pool": 1, "width": 100, "steps": 20_000},
    seeds={"quick": 1, "laptop": 3, "full": 5},
)


class HeldConstant(nn.Module):
    """Batch normalization in training, whose backward pass takes the chosen statistics for constants.

    Args:
        num_features: number of channels.
        constant: which, a key of `ARMS`; with "unscaled" the mean is subtracted, and nothing is divided by.
    """

    def __init__(self, num_features: int, constant: str) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.constant = constant

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C, *) by its own statistics."""
        mean, var = batch_moments(input)
        mean = mean.detach() if "mean" in self.constant else mean
        var = var.detach() if "variance" in self.constant else var
        if "unscaled" in self.constant:
            return channel_affine(input - per_channel(mean, input), self.weight, self.bias)
        return batch_norm(input, self.weight, self.bias, mean, var)


def network(sizes: list[int], constant: str, seed: int) -> MLP:
    """Build a network of logistic units with batch normalization in every hidden layer, and biases before it."""
    net = MLP(sizes, activation="logistic", norm="batch", init="lecun", bias=True, seed=seed)
    for block, width in zip(net.blocks, sizes[1:], strict=False):
        block.norm = HeldConstant(width, constant)
    return net


def sizes_of(net: Any) -> dict[str, float]:
    """Return the root mean square of the hidden biases, and the length of the hidden weights."""
    biases = torch.cat([block.layer.bias.detach() for block in net.blocks])
    weights = torch.cat([block.layer.weight.detach().flatten() for block in net.blocks])
    return {"bias": float(biases.square().mean().sqrt()), "weight": float(weights.norm())}


def effect_of_biases(net: Any, x: Tensor) -> float:
    """Set the hidden biases to zero; return by how much that changes the outputs, relatively."""
    with torch.no_grad():
        before = net(x)
        for block in net.blocks:
            block.layer.bias.zero_()
        return float((net(x) - before).norm() / before.norm())


@bias_blowup.trial
def _(c, seed):
    images = load(c, seed).pooled(c.pool).standardized().flat()
    net = network([images.x_train.shape[1], *[c.width] * 3, images.classes], c.constant, seed).to(c.device)
    start = sizes_of(net)["weight"]
    steps = sorted({0, *(round(step) for step in np.geomspace(1, c.steps, POINTS))})
    history = train(
        net, images.x_train, images.y_train, steps=c.steps, batch_size=100, rate=c.rate, seed=seed,
        probe=lambda step, model: sizes_of(model), probe_steps=steps,
    )  # fmt: skip
    found = history.probes
    losses = [float(part.mean()) for part in np.split(history.loss, found["step"][1:-1])] if len(found["step"]) > 1 else []
    rows = len(losses)
    return {
        "step": found["step"][1 : rows + 1],
        "bias": found["bias"][1 : rows + 1],
        "growth": [weight / start for weight in found["weight"][1 : rows + 1]],
        "loss": losses,
        "diverged_at": history.diverged_at,
        "unneeded": None if history.diverged_at is not None else effect_of_biases(net.double(), images.x_train[:500].double()),
    }


COLUMNS = {"bias": "size of the biases", "growth": "length of weights / start", "loss": "training loss"}
TICKS = [1e-3, 0.01, 0.1, 0.3, 1, 3, 10, 30, 100]


@bias_blowup.draw
def _(table):
    figure, axes = subplots(2, 3, height=2.3, sharex=True, sharey="col")
    for row, rate in zip(axes, (ORDINARY, HIGH), strict=True):
        for ax, (column, title) in zip(row, COLUMNS.items(), strict=True):
            for constant in DRAWN:
                label, color = ARMS[constant]
                style = "--" if "unscaled" in constant else "-"
                arm = table[(table.constant == constant) & (table.rate == rate)]
                median_and_band(ax, arm, "step", column, color=color, label=label, linestyle=style)
            ax.set(xscale="log", yscale="log")
            if rate == ORDINARY:
                ax.set_title(title, fontsize=9.5)
        row[0].set_ylabel(f"rate {number(rate)}")
    axes[0, 0].set_ylim(bottom=1e-3)
    for ax in axes[1]:
        low, high = ax.get_ylim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        ax.set_yticks(ticks, [number(tick) for tick in ticks])
        ax.set_xlabel("step")
    for ax in axes.flat:
        ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title="held constant")
    bias, growth, loss = (_ends(table, column, HIGH).median() for column in COLUMNS)
    true, _, mean, both = DRAWN[:4]
    return Drawing(
        figure,
        caption="Three logistic layers with biases before batch normalization, at an ordinary rate (above) and a high one (below). "
        f"At the high rate the biases (root mean square) end at {number(bias[mean])} with the mean held constant, and at "
        f"{number(bias[both])} with the variance too; the weights are {number(growth[mean])} and {number(growth[both])} times as "
        f"long as at the start, against {number(growth[true])}; the loss ends at {number(loss[mean])} and {number(loss[both])}, "
        f"against {number(loss[true])}. With the true gradient, or the variance alone constant, the biases stay below the axis.",
        alt="Six panels on log axes: size of biases, length of weights and training loss against the step, at two learning rates, "
        "for five choices of what is held constant. Biases grow wherever the mean is.",
    )


def _ends(table, column, rate):
    """Lay the arms side by side, one row a seed: the mean of a run's last three points, infinity if it diverged."""
    runs = table[table.rate == rate].groupby(["seed", "constant"])
    lost = runs.diverged_at.first().notna()
    return runs[column].apply(lambda run: run.tail(3).mean()).mask(lost, np.inf).unstack()


def _over_second_half(table, constant, rate):
    """Return for each seed the size of the biases at the end, over that at half of the steps."""
    run = table[(table.constant == constant) & (table.rate == rate)]
    half = run[run.step <= run.steps / 2].groupby("seed").bias.last()
    return run.groupby("seed").bias.last() / half


@bias_blowup.claim(
    "bias-grows",
    "If the step takes the mean for a constant, the biases grow without end.",
    criterion="at the ordinary rate, mean constant: at the end the biases are more than 1.1 times as large as at half of the steps",
)
def _(table):
    high = _over_second_half(table, "mean", HIGH).median()
    true = table[table.constant == ""].bias.max()
    note = f"at the high rate {number(high)} (1: no growth); the true gradient never makes them larger than {number(true)}"
    ratio = _over_second_half(table, "mean", ORDINARY)
    return judge_effect("biases at the end / at half-time", ratio, claimed=(1.1, np.inf), null=1, note=note)


@bias_blowup.claim(
    "to-no-effect",
    "Nothing comes of it: the normalization takes the biases away again.",
    criterion="at the end of every run that did not diverge, outputs with all hidden biases at zero differ by at most 1e-10, "
    "relatively, in float64",
)
def _(table):
    return judge_identity("largest relative change of the outputs", float(table.unneeded.astype(float).max()), 1e-10)


@bias_blowup.claim(
    "worse-with-scale",
    "It gets worse if the activations are not only centered but also divided by their deviation.",
    criterion="at the high rate the largest size of the biases with centering and scaling, both constant, is at least 1.1 times "
    "that with centering alone",
)
def _(table):
    most = table.groupby(["rate", "seed", "constant"]).bias.max().unstack()
    both, mean = (most[arm] / most["mean, unscaled"] for arm in ("mean + variance", "mean"))
    note = f"at the ordinary rate: {number(both[ORDINARY].median())}; high rate, mean alone constant: {number(mean[HIGH].median())}"
    return judge_effect("biases, scaled / centered only", both[HIGH], claimed=(1.1, np.inf), null=1, note=note)


@bias_blowup.claim(
    "blows-up",
    "A network whose steps take the statistics for constants blows up.",
    criterion="at the high rate, mean and variance constant: the training loss ends at 2 times that of the true gradient or more, "
    "or the run diverges",
)
def _(table):
    loss = _ends(table, "loss", HIGH)
    lost = table[table.constant == "mean + variance"].groupby(["rate", "seed"]).diverged_at.first().notna().sum()
    growth = number(_ends(table, "growth", HIGH)["mean + variance"].median())
    note = f"{lost or 'no'} run{'' if lost == 1 else 's'} diverged; the weights end at {growth} times their length"
    return judge_effect(
        "loss, both constant / true gradient", loss["mean + variance"] / loss[""], claimed=(2, np.inf), null=1, note=note
    )


@bias_blowup.claim(
    "ordinary-rate",
    "At an ordinary rate the loss does not give the fault away.",
    criterion="at the ordinary rate, mean and variance constant: the loss ends at 0.8 to 1.25 times that of the true gradient",
    by="notes",
)
def _(table):
    loss = _ends(table, "loss", ORDINARY)
    note = f"mean alone constant: {number((loss['mean'] / loss['']).median())}"
    ratio = loss["mean + variance"] / loss[""]
    return judge_effect("loss, both constant / true gradient", ratio, claimed=(0.8, 1.25), null=np.nan, note=note)


@bias_blowup.claim(
    "variance-alone",
    "At a high rate it is the mean that matters: the variance alone held constant does little harm there.",
    criterion="at the high rate the loss ends at no more than 1.5 times that of the true gradient",
    by="notes",
)
def _(table):
    loss, ordinary = (_ends(table, "loss", rate) for rate in (HIGH, ORDINARY))
    high, mean, variance = ((of[arm] / of[""]).median() for of, arm in ((loss, "mean"), (ordinary, "mean"), (ordinary, "variance")))
    note = f"mean alone: {number(high)}; at the ordinary rate variance {number(variance)}, mean {number(mean)}"
    return judge_effect(
        "loss, variance constant / true gradient", loss["variance"] / loss[""], claimed=(0, 1.5), null=np.nan, note=note
    )
