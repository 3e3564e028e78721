"""He et al. (2016): deeper plain networks have the higher training error, and what a shortcut changes about that."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import ResNet
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import BLUE, GRAY, GREEN, VERMILION, median_and_band, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.studies.normalizer_free.tricks import RECIPE, fit

KINDS = {"plain": ("plain", VERMILION, "o", "--"), "v1": ("version 1", BLUE, "s", "-"), "v2": ("version 2", GREEN, "^", "-")}
CELL = ["kind", "layers"]
POINTS = 20  # of a curve of the loss
MEASURED = 256  # images for gradients, and for statistics after training

degradation = Study(
    "he2016.degradation",
    item="Figs 1, 4, 6",
    title="Deeper plain networks fit the training images worse, with batch norm and at a rate of their own",
    kind="train",
    vary={"kind": list(KINDS), "layers": [8, 14, 26], "rate": [0.01, 0.03, 0.1, 0.3]},
    quick={"data": "digits", "train": 512, "validation": 128, "test": 128, "width": 4, "batch": 32, "steps": 6, "layers": [8, 14],
           "rate": [0.1]},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 1_536, "validation": 512, "test": 500, "width": 8, "batch": 32,
            "steps": 70},
    full={"data": "cifar10", "validation": 5_000, "width": 16, "batch": 128, "steps": 20_000, "layers": [8, 20, 56]},
)  # fmt: skip


class BranchAlone(nn.Module):
    """A join that takes no notice of the shortcut."""

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Return the branch as it is."""
        return branch


def network(c: Config, images: Dataset, seed: int) -> ResNet:
    """Build three stages of (layers − 2) / 6 blocks of two convolutions each, with batch norm.

    The plain network is version 1 with its shortcuts cut: convolution, norm and ReLU, one after the other. So the 3×3
    convolutions of all three kinds start alike.
    """
    version = 2 if c.kind == "v2" else 1
    net = ResNet(
        [(c.layers - 2) // 6] * 3, c.width, version=version, in_channels=images.shape[0], classes=images.classes, seed=seed
    )
    if c.kind == "plain":
        for block in net.blocks:
            block.join, block.shortcut = BranchAlone(), None  # type: ignore[assignment]
    return net.to(c.device)


def first_over_last(net: ResNet, x: Tensor, y: Tensor) -> float:
    """Return length of weights times length of gradient, of the first convolution in a branch over the last.

    In front of a norm a gradient is as much smaller as the weights are larger, and the product does not depend on that.
    """
    layers = [module for block in net.blocks for module in block.branch.modules() if isinstance(module, nn.Conv2d)]  # type: ignore[union-attr]
    ends = [layers[0].weight, layers[-1].weight]
    gradients = torch.autograd.grad(cross_entropy(net.train()(x), y), ends)
    first, last = (float((w.norm() * g.norm()).detach()) for w, g in zip(ends, gradients, strict=True))
    return first / last


@degradation.trial
def _(c, seed):
    tune, _ = images_for(c, seed)
    net = network(c, tune, seed)
    start = {"gradient_ratio": first_over_last(net, tune.x_train[:MEASURED], tune.y_train[:MEASURED])}
    history = fit(net, tune, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch)
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}", **start)
    losses = np.array_split(history.loss, min(POINTS, c.steps))
    batches = tune.x_train[:MEASURED].split(c.batch)
    parts = {"training": (tune.x_train[:1_000], tune.y_train[:1_000]), "held_out": (tune.x_test, tune.y_test)}
    return {
        "updates": np.cumsum([len(part) for part in losses]).tolist(),
        "loss": [float(part.mean()) for part in losses],
        **start,
        **{f"{name}_error": 100 * (1 - population_accuracy(net, batches, *part)) for name, part in parts.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def depths(table) -> tuple[int, int]:
    """Return the largest number of layers, and the next one below it."""
    *_, below, most = sorted(table.layers.unique())
    return int(most), int(below)


def errors(table):
    """Return training errors in percent, each cell at its best rate: a row a seed, a column a kind and a depth."""
    return side_by_side(tuned(table, CELL, "held_out_error", low=True)[0], CELL, "training_error")


def more_with_depth(table, kind: str):
    """Return by how many points the training error of the deepest network exceeds that of the next, seed by seed."""
    most, below = depths(table)
    return errors(table)[kind][most] - errors(table)[kind][below]


def gradients(table):
    """Return the deepest networks' gradients at the first convolution over those at the last: a column a kind."""
    return side_by_side(table, "kind", "gradient_ratio", layers=depths(table)[0])


def _each(table, kind: str) -> str:
    return ", ".join(f"{number(value)} at {layers} layers" for layers, value in errors(table)[kind].median().items())


@degradation.draw
def _(table):
    kept, rates = tuned(table, CELL, "held_out_error", low=True)
    most, _ = depths(table)
    layers = sorted(table.layers.unique())
    figure, axes = subplots(1, 3, height=2.7)
    for kind, (label, color, marker, style) in KINDS.items():
        line = {"color": color, "linestyle": style, "label": label}
        runs = kept[kept.kind == kind].drop_duplicates(["seed", "layers"])
        median_and_band(axes[0], runs, "layers", "training_error", marker=marker, **line)
        deepest = kept[(kept.kind == kind) & (kept.layers == most)]
        if "updates" in deepest and deepest.updates.notna().any():
            median_and_band(axes[1], deepest, "updates", "loss", **line)
        median_and_band(axes[2], table[table.kind == kind].drop_duplicates(["seed", "layers"]), "layers", "gradient_ratio",
                        marker=marker, **line)  # fmt: skip
    axes[0].set(xlabel="layers", title="error on\ntraining images (%)", xticks=layers, xlim=(0, most + 4))
    axes[1].set(xlabel="updates", title=f"loss of a batch,\n{most} layers", ylim=(0, None))
    axes[2].set(xlabel="layers", title="gradient before training,\nfirst / last convolution", yscale="log", xticks=layers,
                xlim=(0, most + 4))  # fmt: skip
    axes[2].axhline(1, color=GRAY, lw=0.8)
    axes[2].set_yticks([0.3, 1, 3], ["0.3", "1", "3"])
    axes[2].yaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    middle = errors(table).median()
    said = "; ".join(f"{KINDS[kind][0]} {', '.join(map(number, middle[kind]))}" for kind in KINDS)
    names = {(kind, depth): f"{KINDS[kind][0]} of {depth}" for kind, depth in rates}
    ends = [names[cell] for cell in at_ends(table, CELL, rates)]
    best = "; ".join(f"{KINDS[kind][0]} {', '.join(number(rates[kind, depth]) for depth in layers)}" for kind in KINDS)
    found = gradients(table).median()
    return Drawing(
        figure,
        caption=f"Plain and residual networks with batch norm after {table.steps.iloc[0]} updates on {table.data.iloc[0]}; "
        f"{table.batch.iloc[0]} images an update and as many a statistic. **Left** Error on training images, in percent, "
        f"with {', '.join(map(str, layers))} layers: {said}. "
        f"**Middle** The loss of the deepest three as they are trained. **Right** Length of weights times length of gradient, of "
        f"the first convolution in a block over the last, untrained: with {most} layers "
        f"{', '.join(f'{KINDS[kind][0]} {number(found[kind])}' for kind in KINDS)}. Rates, by held-out error, "
        f"in that order: {best}{ends_in_words(ends)}. Recipe: {RECIPE}. Statistics re-estimated after training.",
        alt="Three panels for plain, version 1 and version 2 networks: training error against the number of layers, loss of the "
        "deepest networks against updates, and the gradient at the first convolution over that at the last, before training.",
    )


@degradation.claim(
    "degradation",
    "Without shortcuts, the deeper network has the higher training error.",
    criterion="plain, each depth at its best rate: training error of the deepest network less that of the next, at least 1 point",
)
def _(table):
    return judge_effect("points, deepest less next", more_with_depth(table, "plain"), claimed=(1, np.inf), null=0,
                        note=f"plain: {_each(table, 'plain')}")  # fmt: skip


@degradation.claim(
    "reversed",
    "With shortcuts, the deeper network has the lower training error.",
    criterion="version 1, each depth at its best rate: training error of the deepest network less that of the next, below 0",
)
def _(table):
    return judge_effect("points, deepest less next", more_with_depth(table, "v1"), claimed=(-np.inf, 0), null=0,
                        note=f"version 1: {_each(table, 'v1')}")  # fmt: skip


@degradation.claim(
    "shortcut",
    "In the deepest network, shortcuts lower the training error.",
    criterion="largest depth, each kind at its best rate: training error plain less version 1, at least 1 point",
)
def _(table):
    deepest = errors(table).xs(depths(table)[0], axis=1, level="layers")
    return judge_effect("points, plain less version 1", deepest["plain"] - deepest["v1"], claimed=(1, np.inf), null=0)


@degradation.claim(
    "pre-activation",
    "Pre-activation makes the deepest network easier to train.",
    criterion="largest depth, each kind at its best rate: training error version 2 less version 1, below 0",
    by="he2016identity",
)
def _(table):
    deepest = errors(table).xs(depths(table)[0], axis=1, level="layers")
    return judge_effect("points, version 2 less version 1", deepest["v2"] - deepest["v1"], claimed=(-np.inf, 0), null=0)


@degradation.claim(
    "no-vanishing",
    "With batch norm, the gradients of a deep plain network do not vanish on their way down.",
    criterion="deepest plain network before training: length of weights times length of gradient, first convolution in a block "
    "over last, at least 1",
)
def _(table):
    return judge_effect("gradient, first / last convolution", gradients(table)["plain"], claimed=(1, np.inf), null=1)


@degradation.claim(
    "explosion",
    "They explode: before training they grow on their way down by at least ten times what they grow by in the residual network.",
    criterion="largest depth, before training: that ratio of first to last convolution, plain over version 1, at least 10",
    by="notes",
)
def _(table):
    found = gradients(table)
    note = f"plain {number(found['plain'].median())}, version 1 {number(found['v1'].median())}"
    return judge_effect("gradient ratio, plain / version 1", found["plain"] / found["v1"], claimed=(10, np.inf), null=1, note=note)
