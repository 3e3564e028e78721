"""Salimans & Kingma (2016), Weight Normalization: the start from data, and the length of v."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.probes import record_activations
from normlib.studies.common.arms import images_for
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.studies.common.statements import gap
from normlib.weights import data_dependent_init

SMALL = 0.05  # standard deviation of v in the paper
PLAIN, STARTED, AT_ONCE, MEAN_ONLY = "weight, small", "weight, start", "weight, at once", "weight, start, mean only"


class MeanOnlyNorm(nn.Module):
    """Batch normalization that only centers: the mean of the batch in training, a running one in evaluation, and a bias."""

    running_mean: Tensor

    def __init__(self, units: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.bias, self.momentum = nn.Parameter(torch.zeros(units)), momentum
        self.register_buffer("running_mean", torch.zeros(units))

    def forward(self, input: Tensor) -> Tensor:
        """Center `input` (N, C)."""
        if not self.training:
            return input - self.running_mean + self.bias
        mean = input.mean(0)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        return input - mean + self.bias


def network_of(c: Config, images: Dataset, first: Tensor, seed: int) -> Any:
    """Build `c.depth` hidden ReLU layers of `c.width` units as an arm says; `first` is the batch that a start looks at.

    All arms have the same directions, those of He's weights. "small" draws v with the paper's deviation of 0.05 and starts
    at g = ‖v‖, as torch does; "start" then sets g and b from the data; "weight" alone starts at He's lengths.
    """
    spec, *how = c.arm.split(", ")
    inputs = images.x_train[0].numel()
    network: Any = MLP([inputs, *[c.width] * c.depth, images.classes], "relu", spec, "he", seed=seed).to(first)
    for block in network.blocks if how else []:
        lengths = block.layer.parametrizations.weight
        for tensor in (lengths.original0, lengths.original1):
            tensor.data *= SMALL / (2 / block.layer.in_features) ** 0.5
    if "start" in how:
        data_dependent_init(network, first)
    if "at once" in how:
        set_at_once(network, first)
    if "mean only" in how:
        for block in network.blocks:
            block.norm = MeanOnlyNorm(c.width).to(first)
    return network


@torch.no_grad()
def set_at_once(network: Any, first: Tensor) -> None:
    """Set g and b of all layers from one pass of the network as it stands: what a start must not do."""
    sums = preactivations(network, first)
    for block, t in zip(network.blocks, sums, strict=True):
        g = block.layer.parametrizations.weight.original0
        std, mean = torch.std_mean(t / g.flatten(), 0, correction=0)
        g.copy_((1 / std)[:, None])
        block.layer.bias.copy_(-mean / std)


def preactivations(network: Any, x: Tensor) -> list[Tensor]:
    """Return what each hidden layer adds up, shape (N, units), before a norm of activations."""
    return list(record_activations(network, x, [f"blocks.{i}.layer" for i in range(len(network.blocks))], training=True).values())


start = Study(
    "salimans2016.start",
    item="§2.1, §3",
    title="A start from data gives moments 0 and 1 in every layer to one batch, and not to other images",
    kind="init",
    vary={"arm": ["none", PLAIN, STARTED, AT_ONCE], "batch": [16, 64, 256]},
    quick={"data": "digits", "train": 800, "test": 100, "pool": 1, "depth": 20, "width": 32},
    laptop={"data": "fashion-mnist", "train": 6_000, "test": 100, "pool": 2, "depth": 20, "width": 64},
    full=None,
)


def descent(network: Any, x: Tensor, y: Tensor, rate: float = 0.01, **options: Any) -> tuple[float, float, float]:
    """Take 20 steps of full-batch gradient descent in place and watch the lengths of all v.

    Returns:
        The largest cosine between a v and its gradient; the largest relative distance of a squared length from Pythagoras,
        ‖v‖² + η²‖∇v‖²; the largest share of its squared length that a v loses in a step, 0 if none becomes shorter.
    """
    vs = [block.layer.parametrizations.weight.original1 for block in network.blocks]
    optimizer = torch.optim.SGD(network.parameters(), rate, **options)
    cosine = error = lost = 0.0
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        before, pulls = [v.detach().square().sum(1) for v in vs], [v.grad.square().sum(1) for v in vs]
        along = [(v.detach() * v.grad).sum(1).abs() for v in vs]
        optimizer.step()
        for v, old, pull, dot in zip(vs, before, pulls, along, strict=True):
            new = v.detach().square().sum(1)
            cosine = max(cosine, float((dot / (old * pull).sqrt().clamp_min(1e-300)).max()))
            error = max(error, float(((new - old - rate**2 * pull) / new).abs().max()))
            lost = max(lost, float(((old - new) / old).max()))
    return cosine, error, lost


def as_batch_norm(c: Config, images: Dataset, first: Tensor, outputs: Tensor, seed: int) -> float:
    """Return how far outputs on the first batch are from those of the same directions under batch norm, in train mode."""
    network = network_of(Config({**c, "arm": "batch"}, c.device), images, first, seed)
    for block in network.blocks:
        block.norm.eps = 1e-15
    return gap(network(first).detach(), outputs)


@start.trial
def _(c, seed):
    tune, _ = images_for(c, seed)
    x, fresh = tune.x_train[: c.batch].double(), tune.x_train[-500:].double()
    network = network_of(c, tune, x, seed)
    own, other = preactivations(network, x), preactivations(network, fresh)
    found = {"as_batch_norm": np.nan, "cosine": np.nan, "pythagoras": np.nan, "lost": np.nan}
    found |= {"lost_momentum": np.nan, "lost_decay": np.nan}
    if c.arm == STARTED:
        y = tune.y_train[: c.batch]
        found["as_batch_norm"] = as_batch_norm(c, tune, x, network(x).detach(), seed)
        found["cosine"], found["pythagoras"], found["lost"] = descent(network, x, y)
        for name, options in (("momentum", {"momentum": 0.9}), ("decay", {"weight_decay": 0.01})):
            found[f"lost_{name}"] = descent(network_of(c, tune, x, seed), x, y, **options)[2]
    return {
        "layer": list(range(1, c.depth + 1)),
        "off": [float(max(t.mean(0).abs().max(), (t.std(0, correction=0) - 1).abs().max())) for t in own],
        "scale": [float(t.square().mean().sqrt()) for t in own],
        "fresh_mean": [float(t.mean(0).square().mean().sqrt()) for t in other],
        "fresh_scale": [float(t.square().mean().sqrt()) for t in other],
        **found,
    }


def at(table, arm: str, column: str, batch: int, layer: int):
    """Return a column of one arm, start batch and layer, a number a seed."""
    runs = table[(table.arm == arm) & (table.batch == batch) & (table.layer == layer)]
    return runs.set_index("seed")[column]


@start.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=2.9)
    sky, width, last = norm_color("weight"), int(table.width.max()), int(table.layer.max())
    middle = table[table.batch == 64]
    looks = {"none": (norm_color("none"), "-"), PLAIN: (sky, ":"), STARTED: (sky, "-"), AT_ONCE: (INK, "--")}
    for arm, (color, line) in looks.items():
        median_and_band(left, middle[middle.arm == arm], "layer", "scale", color=color, linestyle=line)
    layers = np.arange(1, last + 1)
    first = at(table, PLAIN, "scale", 64, 1).median()
    left.plot(layers, first * (SMALL**2 * width / 2) ** ((layers - 1) / 2), "x", color=INK, markersize=3.5)
    left.set(
        yscale="log", ylim=(1e-4, 1e4), xlabel="layer", ylabel="root mean square of the sums", title="on the batch of the start"
    )
    note(left, "all layers at once", 0.27, 0.9)
    note(left, "He's weights, no norm", 0.97, 0.62, color=norm_color("none"), ha="right")
    note(left, "data-dependent start", 0.97, 0.4, color=sky, ha="right")
    note(left, "$g = ||v||$\n× closed form", 0.46, 0.04, color=sky)
    for batch, line in zip(sorted(table.batch.unique()), [":", "--", "-"], strict=True):
        runs = table[(table.arm == STARTED) & (table.batch == batch)]
        median_and_band(right, runs, "layer", "fresh_scale", color=sky, linestyle=line, label=f"start from {batch} images")
    right.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    right.set(yscale="log", xlabel="layer", title="on other images")
    right.legend(loc="upper left", fontsize=8.5)
    ends = {batch: at(table, STARTED, "fresh_scale", batch, last).median() for batch in sorted(table.batch.unique())}
    said = ", ".join(f"{number(scale)} from {batch} images" for batch, scale in ends.items())
    return Drawing(
        figure,
        caption=f"Sums $Wx + b$ of a dense ReLU network of {last} layers at its start. **Left** With $g = ||v||$ and v of "
        f"deviation {SMALL} they shrink by the closed form (crosses). After a data-dependent start from 64 images they have scale "
        "1 in every layer, on these images. Set from one pass, all layers at once, they leave the axis. **Right** On "
        f"500 other images the scale in layer {last} is {said}.",
        alt="Left: scale of the sums against the layer, for four starts: flat at one, flat near one, falling and rising. Right: "
        "scale on other images after a start from 16, 64 and 256 images, rising with depth.",
    )


@start.claim(
    "moments",
    "After the data-dependent start the pre-activations of the first batch have mean 0 and variance 1, in every layer.",
    criterion="every unit of 20 layers, float64, batches of 16, 64, 256: largest |mean| or |deviation - 1| at most 1e-10",
)
def _(table):
    return judge_identity("largest distance", table[table.arm == STARTED].off.max(), 1e-10)


@start.claim(
    "as-batch-norm",
    "On that batch the network then computes what batch normalization would compute with the same directions.",
    criterion="outputs against those of the same directions under batch norm in train mode, with eps 1e-15: largest relative "
    "difference at most 1e-8",
    by="notes",
)
def _(table):
    return judge_identity("largest relative difference", table[table.arm == STARTED].as_batch_norm.max(), 1e-8)


@start.claim(
    "grows",
    "Under plain gradient descent v never becomes shorter: its gradient is orthogonal to it, so a step adds its square.",
    criterion="20 steps of full-batch gradient descent in float64: largest cosine of v and its gradient, distance of the squared "
    "length from Pythagoras, and share lost in a step, each at most 1e-10; the largest counts",
)
def _(table):
    runs = table[table.arm == STARTED]
    momentum, decay = (runs[f"lost_{name}"].max() for name in ("momentum", "decay"))
    note = f"most that a squared length loses in a step: {number(momentum)} with momentum, {number(decay)} with weight decay"
    return judge_identity("largest of the three", runs[["cosine", "pythagoras", "lost"]].max().max(), 1e-10, note)


@start.claim(
    "other-images",
    "On other images the moments are off, and by more in the last layer than in the first.",
    criterion="start from 16 images: root mean square over units of the mean on 500 other images, last layer over first, at least "
    "1.5",
    by="notes",
)
def _(table):
    ratio = at(table, STARTED, "fresh_mean", 16, int(table.layer.max())) / at(table, STARTED, "fresh_mean", 16, 1)
    return judge_effect("ratio of last to first layer", ratio, claimed=(1.5, np.inf), null=1)


@start.claim(
    "in-order",
    "The layers have to be set one after the other: from one pass of the untouched network the start fails.",
    criterion="all layers set from one pass: the largest |mean| or |deviation - 1| of a unit in layer 2 is at least 0.1; 64 images",
    by="notes",
)
def _(table):
    return judge_effect("largest distance in layer 2", at(table, AT_ONCE, "off", 64, 2), claimed=(0.1, np.inf), null=0)
