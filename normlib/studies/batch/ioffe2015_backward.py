"""Ioffe & Szegedy (2015), Algorithm 1: the backward pass of batch normalization, line by line, in one line, and by machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.lab import Config, Drawing, Study, judge_identity, number
from normlib.layers import BatchNorm, batch_norm
from normlib.layers.batch import batch_moments
from normlib.layers.shapes import per_channel
from normlib.networks import MLP
from normlib.studies.common.inputs import load
from normlib.studies.common.looks import BLUE, GRAY, INK, SKY, note, subplots
from normlib.studies.common.statements import gap, normal
from normlib.training import train

SHAPES = {"vectors": (32, 5), "maps": (6, 5, 4, 3)}
TOLERANCE = 1e-10

backward = Study(
    "ioffe2015.backward",
    item="Algorithm 1 and the chain rule below it",
    title="Going backward, batch normalization passes on what a straight line in x̂ does not explain of the gradient",
    kind="exact",
    vary={"on": [*SHAPES, "network"]},
    quick={"data": "digits", "pool": 1, "train": 1_000, "width": 32, "batch": 64, "steps": 20},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 10_000, "width": 64, "batch": 128, "steps": 20},
    full=None,
)


def axes_of(x: Tensor) -> list[int]:
    """Return the axes that a channel's statistics pool over: the batch and all positions."""
    return [0, *range(2, x.ndim)]


def by_chain_rule(x: Tensor, gamma: Tensor, gradient: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Go backward by the paper's six lines; `gradient` is that of y. Returns the gradients of x, gamma and beta."""
    axes, m = axes_of(x), x.numel() // x.shape[1]
    mean, var = (per_channel(moment, x) for moment in batch_moments(x))
    x_hat = (x - mean) / (var + eps).sqrt()
    d_x_hat = gradient * per_channel(gamma, x)
    d_var = (d_x_hat * (x - mean) * (-0.5) * (var + eps) ** -1.5).sum(axes, keepdim=True)
    d_mean = (-d_x_hat / (var + eps).sqrt()).sum(axes, keepdim=True) + d_var * (-2 * (x - mean)).sum(axes, keepdim=True) / m
    d_x = d_x_hat / (var + eps).sqrt() + d_var * 2 * (x - mean) / m + d_mean / m
    d_gamma = (gradient * x_hat).sum(axes)
    d_beta = gradient.sum(axes)
    return d_x, d_gamma, d_beta


def compact(x: Tensor, gamma: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """Go backward in one line: less the mean of the gradient, less x̂ times the mean of their product, then scaled."""
    axes = axes_of(x)
    x_hat, scale = batch_norm(x, eps=eps), per_channel(gamma / (batch_moments(x)[1] + eps).sqrt(), x)
    return scale * (gradient - gradient.mean(axes, keepdim=True) - x_hat * (gradient * x_hat).mean(axes, keepdim=True))


def held_constant(x: Tensor, gamma: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """Go backward as if mean and variance were constants, by automatic differentiation."""
    x = x.detach().requires_grad_()
    mean, var = batch_moments(x.detach())
    y = batch_norm(x, gamma, None, mean, var, eps)
    return torch.autograd.grad(y, x, gradient)[0]


def identities(shape: tuple[int, ...], as_large_as_variance: bool, seed: int) -> dict[str, float]:
    """Compare the ways back on random numbers in float64, and look for what must be zero; eps is 1e-5 or the variance."""
    x, gradient, gamma = 1 + 2 * normal(seed, *shape), normal(seed + 1, *shape), 1 + 0.5 * normal(seed + 2, shape[1])
    gradient = gradient + 0.5 + 0.7 * x  # with a mean and a slope to remove
    eps = float(batch_moments(x)[1][0]) if as_large_as_variance else 1e-5
    axes = axes_of(x)
    x.requires_grad_()
    beta = torch.zeros_like(gamma, requires_grad=True)
    by_machine = torch.autograd.grad(batch_norm(x, gamma.requires_grad_(), beta, eps=eps), (x, gamma, beta), gradient)
    layer = BatchNorm(shape[1], eps=eps).double()
    layer.weight.data.copy_(gamma.detach())
    by_layer = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), gradient)
    x, gamma = x.detach(), gamma.detach()
    lines, short = by_chain_rule(x, gamma, gradient, eps), compact(x, gamma, gradient, eps)
    exact = compact(x, gamma, gradient, 0.0)
    x_hat, unit = batch_norm(x, eps=eps), batch_norm(x, eps=0.0)
    held, scale = held_constant(x, gamma, gradient, eps), per_channel(gamma / (batch_moments(x)[1] + eps).sqrt(), x)
    line = scale * (gradient.mean(axes, keepdim=True) + x_hat * (gradient * x_hat).mean(axes, keepdim=True))
    size = exact.abs().mean(axes)
    return {
        "eps": eps,
        "lines": max(gap(line, way) for ways in (by_machine, by_layer) for line, way in zip(lines, ways, strict=True)),
        "compact": max(gap(short, by_machine[0]), gap(short, by_layer[0])),
        "sum": float((by_machine[0].mean(axes).abs() / by_machine[0].abs().mean(axes)).max()),
        "slope": float(((exact * unit).mean(axes).abs() / size).max()),
        "held_less_line": gap(held - line, by_machine[0]),
    }


def in_a_network(c: Config, seed: int) -> dict[str, Any]:
    """Train a network for a while, then take one more batch and look at what arrives at the norms, and what leaves them."""
    images = load(c, seed).pooled(c.pool).standardized().flat()
    x, y = images.x_train.double(), images.y_train
    sizes = [x.shape[1], *[c.width] * 3, images.classes]
    net: Any = MLP(sizes, activation="relu", norm="batch", init="he", bias=True, seed=seed).to(c.device).double()
    train(net, x, y, steps=c.steps, batch_size=c.batch, rate=0.1, seed=seed)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: c.batch].to(c.device)
    arriving: list[Tensor] = []
    handles = [block.norm.register_forward_hook(lambda *a: arriving.extend([a[1][0], a[2]])) for block in net.blocks]
    net.train()
    loss = F.cross_entropy(net(x[chosen]), y[chosen])
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(loss, [*arriving, *(block.layer.bias for block in net.blocks)], retain_graph=True)
    weights = torch.autograd.grad(loss, [block.layer.weight for block in net.blocks])
    shares, panels = [], []
    for depth, block in enumerate(net.blocks):
        u, incoming, outgoing = arriving[2 * depth].detach(), gradients[2 * depth + 1], gradients[2 * depth]
        x_hat = batch_norm(u, eps=block.norm.eps)
        whole = incoming.square().mean(0)
        parts = torch.stack([incoming.mean(0).square(), (incoming * x_hat).mean(0).square()]) / whole
        shares.append((parts * whole).sum(1) / whole.sum())
        out = outgoing * (u.var(0, correction=0) + block.norm.eps).sqrt() / block.norm.weight.detach()
        panels += [(float(parts[:, unit].sum()), x_hat[:, unit], incoming[:, unit], out[:, unit]) for unit in range(c.width)]
    _, at, before, after = max(panels, key=lambda panel: panel[0])
    scale = before.abs().max()
    shown = slice(0, 60)
    biases, bias_sizes = gradients[6:], [weight.abs().max() for weight in weights]
    return {
        "at": at[shown].tolist(),
        "before": (before / scale)[shown].tolist(),
        "after": (after / scale)[shown].tolist(),
        "level": float(before.mean() / scale),
        "tilt": float((before * at).mean() / scale),
        **{f"mean_{depth + 1}": float(share[0]) for depth, share in enumerate(shares)},
        **{f"slope_{depth + 1}": float(share[1]) for depth, share in enumerate(shares)},
        "bias": max(float(bias.abs().max() / size) for bias, size in zip(biases, bias_sizes, strict=True)),
    }


@backward.trial
def _(c, seed):
    if c.on == "network":
        return in_a_network(c, seed)
    found = [identities(SHAPES[c.on], large, seed) for large in (False, True)]
    return {name: [one[name] for one in found] for name in found[0]}


@backward.draw
def _(table):
    figure, (left, middle, right) = subplots(1, 3, height=2.9)
    runs = table[table.on == "network"]
    unit = runs[runs.seed == runs.seed.min()]
    ends = np.array([unit["at"].min(), unit["at"].max()])
    left.plot(ends, unit.level.iloc[0] + unit.tilt.iloc[0] * ends, color=INK, label="mean and slope")
    middle.plot(ends, 0 * ends, color=INK)
    for ax, values, color in ((left, unit.before, GRAY), (middle, unit.after, BLUE)):
        ax.plot(unit["at"], values, "o", color=color, markersize=3.5)
        ax.set(xlabel="x̂ of the sample", ylim=(-1.1, 1.4))
    middle.sharey(left)
    left.set(title="gradient that arrives", ylabel="gradient of one sample")
    middle.set(title="that is passed on")
    note(left, "line: its mean\nand slope", 0.04, 0.86, fontsize=8.5)
    note(middle, "no mean, no slope", 0.04, 0.92, fontsize=8.5)
    layers = [1, 2, 3]
    mean, slope = (runs.groupby("seed")[[f"{part}_{n}" for n in layers]].first().median() * 100 for part in ("mean", "slope"))
    removed = [100 * (runs[f"mean_{n}"] + runs[f"slope_{n}"]).groupby(runs.seed).first().median() for n in layers]
    seeds = runs.seed.nunique()
    chance = 200 / table.batch.iloc[0]
    right.bar(layers, mean, color=SKY, label="mean")
    right.bar(layers, slope, bottom=mean, color=BLUE, label="slope")
    right.set(title="that is removed", ylabel="% of the squared gradient", xlabel="hidden layer", xticks=layers)
    right.set_ylim(0, 1.6 * max(chance, *removed))
    right.axhline(chance, color=INK, linewidth=0.9, linestyle="--", label="chance, 2/m")
    right.legend(loc="upper left", fontsize=8)
    right.grid(False)
    return Drawing(
        figure,
        caption=f"Batch normalization, backward, in a ReLU network after {table.steps.iloc[0]} steps. Left: the gradient that "
        "arrives at one unit, a dot for each sample (at most 60), against the sample's x̂. Middle: what is passed on, before the "
        "factor $\\gamma/\\sigma$: the line is gone, the rest is untouched. The unit is the one that loses most. Right, over all "
        f"units of a layer: {number(removed[0])} % of the squared gradient is removed in the lowest hidden layer, "
        f"{number(removed[-1])} % in the highest (median of {seeds} {'seeds' if seeds > 1 else 'seed'}); a line takes "
        f"{number(chance)} % of pure noise, two of m = {table.batch.iloc[0]} directions.",
        alt="Left: gradient per sample against the normalized input, dots around a sloped line. Middle: the same dots with the "
        "line taken away. Right: stacked bars, share removed by mean and slope in three hidden layers; a dashed line: chance.",
    )


def _identities(table):
    return table[table.on != "network"]


@backward.claim(
    "chain-rule",
    "The six lines of the chain rule in the paper are the gradient of batch normalization, for x, gamma and beta.",
    criterion="float64, vectors and maps, eps = 1e-5 and eps = the variance: relative difference from automatic differentiation of "
    "the formula and of normlib.BatchNorm at most 1e-10",
)
def _(table):
    return judge_identity("largest relative difference", _identities(table).lines.max(), TOLERANCE)


@backward.claim(
    "compact",
    "The six lines are one: γ/√(σ² + ε) times g less its mean, less x̂ times the mean of g x̂, whatever ε is.",
    criterion="in the same cases, relative difference from automatic differentiation at most 1e-10",
    by="notes",
)
def _(table):
    return judge_identity("largest relative difference", _identities(table).compact.max(), TOLERANCE)


@backward.claim(
    "no-mean-no-slope",
    "The gradient that is passed on sums to zero over the batch, and without ε it is uncorrelated with x̂.",
    criterion="mean over the batch, and without ε mean product with x̂, at most 1e-10 of the mean absolute gradient, per channel",
    by="notes",
)
def _(table):
    found = _identities(table)[["sum", "slope"]].max()
    return judge_identity(
        "larger of the two, relative to the gradient",
        found.max(),
        TOLERANCE,
        f"mean {number(found['sum'])}, product {number(found.slope)}",
    )


@backward.claim(
    "constants",
    "A gradient that holds mean and variance constant is off by exactly the line: its mean and its slope stay in.",
    criterion="in the same cases, constant less true gradient is γ/√(σ² + ε) (mean g + x̂ mean g x̂), relatively within 1e-10",
    by="notes",
)
def _(table):
    runs = table[table.on == "network"].groupby("seed").first()
    shares = [100 * (runs[f"mean_{n}"] + runs[f"slope_{n}"]).median() for n in (1, 2, 3)]
    note = f"in the network the line is {', '.join(number(share) for share in shares)} % of the squared gradient, layer by layer"
    return judge_identity("largest relative difference", _identities(table).held_less_line.max(), TOLERANCE, note)


@backward.claim(
    "bias",
    "A bias before batch normalization can be left out: the mean takes it away again.",
    criterion="in the network its gradient is at most 1e-10 of the largest gradient of the weights of its layer, in every layer",
)
def _(table):
    return judge_identity("gradient of the bias / of the weights", table.bias.max(), TOLERANCE)
