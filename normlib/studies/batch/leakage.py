"""Leakage across the batch: what a single example does to the outputs of the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import batch_norm, make_norm
from normlib.networks import MLP
from normlib.probes import batch_jacobian
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import INK, median_and_band, norm_color, subplots
from normlib.studies.common.statements import gap, normal
from normlib.training import train

leakage = Study(
    "notes.leakage",
    item="one example in the batch of another",
    title="In training an example's output depends on the others in its batch, each by about √3/m",
    kind="exact",
    vary={"batch": [4, 8, 16, 32, 64, 128, 256]},
    quick={"data": "digits", "batch": [4, 16, 64, 256], "units": 64, "repeats": 40, "steps": 60},
    laptop={"data": "digits", "units": 256, "repeats": 200, "steps": 200},
    full=None,
    seeds={"quick": 1, "laptop": 3},
)
NORMS = ("batch", "layer")
FORMULA_UNITS = 3  # of the layer whose whole Jacobian is compared


@torch.no_grad()
def replaced(model: nn.Module, x: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Put `new` in the place of the first example; return the change of the other examples' outputs and their scale.

    Returns:
        The root mean square of the change, and the standard deviation of the outputs before.
    """
    before, after = model(x)[1:], model(torch.cat([new[None], x[1:]]))[1:]
    return (after - before).square().mean().sqrt(), before.std(correction=0)


def formula(x: Tensor) -> Tensor:
    """Return the derivative of each output of batch norm in each input, from the equation, shape (N·C, N·C); eps is zero."""
    count, channels = x.shape
    sigma = x.var(0, correction=0).sqrt()
    x_hat = (x - x.mean(0)) / sigma
    blocks = torch.eye(count, dtype=x.dtype)[:, :, None] - (1 + x_hat[:, None] * x_hat[None]) / count
    matrix = torch.zeros(count, channels, count, channels, dtype=x.dtype)
    for channel in range(channels):
        matrix[:, channel, :, channel] = blocks[:, :, channel] / sigma[channel]
    return matrix.flatten(2).flatten(0, 1)


@leakage.trial
def _(c, seed):
    layer = make_norm("batch", c.units).double()
    draws = [normal(1000 * seed + repeat, c.batch + 1, c.units) for repeat in range(c.repeats)]
    one_layer = torch.stack([replaced(layer, draw[1:], draw[0])[0] for draw in draws])

    images = load(c).standardized().flat()
    columns = {}
    for norm in NORMS:
        net = MLP([images.shape[0], 64, 64, 64, images.classes], activation="relu", norm=norm, init="he", seed=seed).double()
        train(net, images.x_train.double(), images.y_train, steps=c.steps, batch_size=64, rate=0.1, seed=seed)
        for mode in ("train", "eval"):
            net.train(mode == "train")
            columns[f"{norm}_{mode}"] = in_network(net, images.x_test.double(), c.batch, c.repeats, seed)

    small = normal(seed, min(c.batch, 32), FORMULA_UNITS)
    pair = batch_norm(normal(seed, 2, c.units) * torch.logspace(-3, 3, c.units, dtype=torch.float64), eps=0.0)
    return {
        "one_layer": float(one_layer.square().mean().sqrt()),
        **columns,
        "formula_gap": gap(batch_jacobian(lambda x: batch_norm(x, eps=0.0), small), formula(small)),
        "pair_gap": float((pair.abs() - 1).abs().max()),
    }


def in_network(net: nn.Module, x: Tensor, size: int, repeats: int, seed: int) -> float:
    """Replace an example by another, in batches drawn from `x`; return the others' change over the scale of the outputs."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(repeats):
        chosen = torch.randperm(len(x), generator=generator)[: size + 1]
        change, scale = replaced(net, x[chosen[1:]], x[chosen[0]])
        found.append(float(change / scale))
    return float(np.sqrt(np.mean(np.square(found))))


@leakage.draw
def _(table):
    figure, axes = subplots(height=3.1)
    median_and_band(axes, table, "batch", "batch_train", color=norm_color("batch"), marker="s", label="network with batch norm")
    median_and_band(
        axes, table, "batch", "one_layer", color=norm_color("batch"), marker="o", linestyle="none", label="one layer of batch norm"
    )
    batches = np.array(sorted(table.batch.unique()))
    axes.plot(batches, 3**0.5 / batches, color=INK, linewidth=1, label="√3/m")
    axes.set(xscale="log", yscale="log", xlabel="examples in the batch, m", ylabel="change of another's output")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.legend()
    middle = table.groupby("batch")[["one_layer", "batch_train", "batch_eval", "layer_train"]].median()
    low, high = middle.index.min(), middle.index.max()
    return Drawing(
        figure,
        caption="One example of a batch is exchanged for another, and the outputs of the others move (root mean square, relative "
        f"to their scale). One layer of batch norm on Gaussian inputs: {number(middle.one_layer[low])} at m = {low} and "
        f"{number(middle.one_layer[high])} at m = {high}; the line is √3/m. The logits of a trained network with three such "
        f"layers, on digits: {number(middle.batch_train[low])} and {number(middle.batch_train[high])}. With running averages, or "
        f"with layer norm, the largest change is {number(max(middle.batch_eval.max(), middle.layer_train.max()))}.",
        alt="Change of the other examples' outputs against batch size on log axes: points for one layer of batch norm on a falling "
        "line, a curve for a trained network above or near it.",
    )


@leakage.claim(
    "derivative",
    "The derivative of one example's output in another's input is −(1 + x̂ᵢ x̂ⱼ)/(m σ): it is zero only where x̂ᵢ x̂ⱼ = −1.",
    criterion="relative difference of the whole Jacobian of a batch at most 1e-10, for every batch size (at most 32)",
)
def _(table):
    return judge_identity("largest relative difference from the formula", table.formula_gap.max(), 1e-10)


@leakage.claim(
    "one-over-m",
    "Exchanging one of m examples moves each normalized value of the others by √3/m, root mean square.",
    criterion="one layer, Gaussian inputs, m = 16 and more: within 10 % of √3/m",
)
def _(table):
    runs = table[table.batch >= 16]
    return judge_identity("largest relative distance from √3/m", (runs.one_layer * runs.batch / 3**0.5 - 1).abs().max(), 0.1)


@leakage.claim(
    "network",
    "In a trained network of several such layers the logits move by more than in one layer, but still in proportion to 1/m.",
    criterion="slope of the change against m on log axes, from m = 16, between −1.2 and −0.8; at the largest m the change is above "
    "that of one layer in every seed",
)
def _(table):
    runs = table[table.batch >= 16]
    slopes = [np.polyfit(np.log(run.batch), np.log(run.batch_train), 1)[0] for _, run in runs.groupby("seed")]
    last = runs[runs.batch == runs.batch.max()]
    ratio = (last.batch_train / last.one_layer).min()
    above = slopes if ratio > 1 else [np.nan] * len(slopes)
    return judge_effect(
        "slope on log axes", above, claimed=(-1.2, -0.8), null=0, note=f"{number(ratio)} of one layer's, at the least"
    )


@leakage.claim(
    "evaluation",
    "With running averages, and with layer norm in either mode, no example has an effect on another.",
    criterion="relative change of the logits at most 1e-12 (float64)",
)
def _(table):
    worst = table[["batch_eval", "layer_train", "layer_eval"]].max().max()
    return judge_identity("largest relative change of another's logits", worst, 1e-12)


@leakage.claim(
    "pair",
    "In a batch of two, batch norm leaves a unit nothing but which of its two inputs is the larger: the outputs are +1 and −1.",
    criterion="distance of the absolute values from 1 at most 1e-8, for inputs of scales from 1e-3 to 1e3",
)
def _(table):
    return judge_identity("largest distance from ±1", table.pair_gap.max(), 1e-8)
