"""Bjorck et al. (2018), Understanding Batch Normalization: which rates are usable, what one step does, how gradients look."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.probes import gradient_landscape
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots
from normlib.studies.smoothness.nets import FULL, LAPTOP, QUICK, vgg
from normlib.training import accuracy, train

BATCH = 32  # images per update and per statistic
LEARNS = 0.97  # times the loss of guessing: what a usable rate falls below
DEPTHS = [8, 14, 20]
NORMS = {"none": "no BN", "batch": "BN"}
GRIDS = {
    "rates": {"none": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "batch": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]},
    "lengths": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0],  # of one step at the start
    "long": {"none": [0.03], "batch": [0.03, 0.3]},  # rates at which the networks of depth `scored` train on, the small one first
}

rates = Study(
    "bjorck2018.rates",
    item="rates, first steps, gradients at the start",
    title="Is it the large learning rate? Largest usable rates with depth, and accuracy at the same small one",
    kind="train",
    vary={"depth": DEPTHS, "norm": list(NORMS)},
    quick={
        **QUICK, "train": 320, "depth": [4, 6], "init": "he", "steps": 10, "longer": 20, "scored": 4,
        "rates": {"none": [0.1, 1.0], "batch": [0.1, 1.0]}, "lengths": [0.1, 1.0],
        "long": {"none": [0.1], "batch": [0.1, 1.0]},
    },
    laptop={**LAPTOP, **GRIDS, "depth": DEPTHS, "width": 8, "init": "he", "steps": 100, "longer": 400, "scored": 8},
    full={**FULL, **GRIDS, "vgg": None, "width": 32, "init": "he", "steps": 2_000, "longer": 15_000, "scored": 8},
)  # fmt: skip


def run_at(c: Config, rate: float, tune: Dataset, whole: Dataset, seed: int) -> dict[str, float]:
    """Train at one rate; return the loss after `c.steps` (∞ if it diverged) and, where the run goes on, its test accuracy."""
    network = vgg(c, tune, c.norm, seed)
    long = c.depth == c.scored and rate in c.long[c.norm]
    steps = c.longer if long else c.steps
    run = train(network, tune.x_train, tune.y_train, steps=steps, batch_size=BATCH, rate=rate, seed=seed, check_every=20)
    early = run.loss[: c.steps]
    return {
        "loss": float(early[-c.steps // 5 :].mean()) if len(early) == c.steps else np.inf,
        "accuracy": accuracy(network, whole.x_test, whole.y_test, statistics="eval")
        if long and run.diverged_at is None
        else np.nan,
    }


def image_terms(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return, for each convolution but the first, what each image of a batch adds to the gradient of the weights, (N, weights).

    The gradient is a sum over images of the arriving gradient times the layer's input there. The sum of all terms is the gradient.
    """
    caught: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, inputs: Tensor, output: Tensor) -> None:
        output.retain_grad()
        caught[name] = inputs.detach(), output

    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: keep(name, inputs[0], output))
        for name, layer in list(layers.items())[1:]
    ]
    network.train()
    F.cross_entropy(network(x), y).backward()
    for hook in hooks:
        hook.remove()
    network.zero_grad()
    terms = {}
    for name, (inputs, output) in caught.items():
        patches = F.unfold(inputs, layers[name].kernel_size, padding=layers[name].padding)  # type: ignore[arg-type]
        assert output.grad is not None
        terms[name] = (output.grad.flatten(2) @ patches.transpose(1, 2)).flatten(1)
    return terms


def gradients_at_start(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return two measures of the gradients of the convolutions, medians over layers.

    `kurtosis`, of the entries of a layer's gradient, is 3 for a Gaussian. `common` is the squared length of the mean image's term
    over the mean squared length of an image's term: 1 if all images ask for the same change, about 1/N if each for its own.
    """
    kurtosis, common = [], []
    for terms in image_terms(network, x, y).values():
        entries = terms.sum(0).double()
        centered = entries - entries.mean()
        kurtosis.append(float(centered.pow(4).mean() / centered.square().mean().square()))
        common.append(float(terms.mean(0).square().sum() / terms.square().sum(1).mean()))
    return {"kurtosis": float(np.median(kurtosis)), "common": float(np.median(common))}


@rates.trial
def _(c: Config, seed: int):
    tune, whole = images_for(c, seed)
    x, y = tune.x_train[:128], tune.y_train[:128]
    start = gradient_landscape(vgg(c, tune, c.norm, seed), F.cross_entropy, x, y, c.lengths, training=True)
    runs = [run_at(c, rate, tune, whole, seed) for rate in c.rates[c.norm]]
    return {
        "rate": list(c.rates[c.norm]),
        "length": list(c.lengths),
        "relative_loss": [after / before for after, before in zip(start["loss"], start["start_loss"], strict=True)],
        "gradient_norm": start["gradient_norm"][0],
        "small": c.long["none"][0],
        "large": c.long["batch"][-1],
        **{name: [run[name] for run in runs] for name in runs[0]},
        **gradients_at_start(vgg(c, tune, c.norm, seed), x, y),
        "guessing": float(torch.tensor(float(tune.classes)).log()),
    }


def largest(table):
    """Return the largest rate at which each run learns, NaN if at none; columns depth, norm, seed, usable."""
    learns = table.rate.where(table.loss < LEARNS * table.guessing)
    return table.assign(usable=learns).groupby(["depth", "norm", "seed"]).usable.max().reset_index()


def at_last(table):
    """Return test accuracies in points, a row a seed: no BN at the small rate, BN at the same, BN at the large one."""
    runs = 100 * side_by_side(table[table.depth == table.scored], ["norm", "rate"], "accuracy")
    small, large = table.small.iloc[0], table.large.iloc[0]
    return runs[[("none", small), ("batch", small), ("batch", large)]].set_axis(["none", "same", "large"], axis=1)


@rates.draw
def _(table):
    figure, axes = subplots(2, 2, height=2.7)
    (usable, step), (tails, shared) = axes
    found, deepest = largest(table), table.depth.max()
    once = table.drop_duplicates(["depth", "norm", "seed"])
    for norm, name in NORMS.items():
        line = {"color": norm_color(norm), "marker": "o", "label": name}
        median_and_band(usable, found[found.norm == norm], "depth", "usable", **line)
        deep = table[(table.norm == norm) & (table.depth == deepest)]
        median_and_band(step, deep, "length", "relative_loss", **line)
        median_and_band(tails, once[once.norm == norm], "depth", "kurtosis", **line)
        median_and_band(shared, once[once.norm == norm], "depth", "common", **line)
    for axis in (usable, tails, shared):
        axis.set(xlabel="weight layers", xticks=sorted(table.depth.unique()))
    usable.set(yscale="log", ylabel="largest usable rate")
    step.axhline(1, color=INK, linewidth=0.8)
    step.set(xscale="log", yscale="log", xlabel="length s of one step", ylabel="L(θ − s g) / L(θ)", title=f"{deepest} layers")
    for ticks, values in ((usable.set_yticks, set(table.rate)), (step.set_xticks, set(table.length))):
        ticks(sorted(values), [f"{value:g}" for value in sorted(values)])
    for axis in (usable.yaxis, step.xaxis, step.yaxis):
        axis.set_minor_locator(NullLocator())
    tails.axhline(3, color=INK, linewidth=0.8)
    note(tails, "Gaussian", 0.02, 3.05, transform=tails.get_yaxis_transform(), fontsize=8, va="bottom")
    for axis, label in ((tails, "kurtosis of the gradient"), (shared, "part common to all images")):
        axis.set(ylabel=label, ylim=(0, None))
    usable.legend(fontsize=8.5)
    medians = found.groupby(["norm", "depth"]).usable.median()
    words = {arm: number(rate) if np.isfinite(rate) else "at no rate" for arm, rate in medians.items()}
    said = "; ".join(f"{words['none', d]} and {words['batch', d]} at {d} layers" for d in sorted(table.depth.unique()))
    left_out = f" (medians, without {none} that learned at no rate)" if (none := int(found.usable.isna().sum())) else ""
    middle = at_last(table).median()
    start = once.groupby(["norm", "depth"])[["kurtosis", "common"]].median().xs(deepest, level="depth")
    return Drawing(
        figure,
        caption=f"Plain convolutional networks, He's start; {BATCH} images per update and per statistic. Top left: the largest "
        f"usable rate, at which the loss falls below {LEARNS:g} times that of guessing within {table.steps.iloc[0]} steps. "
        f"Without and with BN: {said}{left_out}. Top right: the loss after one step down the gradient. Bottom: gradients of the "
        f"convolutions at the start. At {deepest} layers the kurtosis is {number(start['kurtosis']['none'])} without BN and "
        f"{number(start['kurtosis']['batch'])} with it, the part common to all images {number(start.common['none'])} and "
        f"{number(start.common['batch'])}. Test accuracy at {table.scored.iloc[0]} layers after {table.longer.iloc[0]} steps: "
        f"{number(middle.none)} % without BN and {number(middle.same)} % with it, both at the rate "
        f"{number(table.small.iloc[0])}; {number(middle.large)} % with BN at {number(table.large.iloc[0])}.",
        alt="Four plots, with and without batch norm: largest usable rate against depth; relative loss after one step against its "
        "length, log axes; kurtosis of the gradient against depth; common part of the gradient against depth.",
    )


@rates.claim(
    "larger-rates",
    "Batch norm makes larger learning rates usable, here at least ten times larger ones at every depth.",
    criterion="largest usable rate with BN over that without, the smallest of the three ratios, at least 10",
)
def _(table):
    usable = side_by_side(largest(table), ["norm", "depth"], "usable")
    ratios = usable["batch"] / usable["none"]
    said = ", ".join(f"{number(ratios[depth].median())} at {depth}" for depth in ratios)
    return judge_effect("smallest ratio of usable rates", ratios.min(axis=1, skipna=False), claimed=(10, np.inf), null=1, note=said)


@rates.claim(
    "depth",
    "Without batch norm depth limits the rate: the largest usable one falls with the number of layers.",
    criterion="largest usable rate without BN in the deepest networks over that in the shallowest, at most 0.5",
)
def _(table):
    usable = side_by_side(largest(table), ["norm", "depth"], "usable")
    ends = [usable[norm][table.depth.max()] / usable[norm][table.depth.min()] for norm in NORMS]
    return judge_effect("deepest over shallowest", ends[0], claimed=(0, 0.5), null=1, note=f"with BN {number(ends[1].median())}")


@rates.claim(
    "one-step",
    "Without batch norm one large step at the start multiplies the loss by ten times as much as with it, or more.",
    criterion="loss after one step of length 1 over the loss before, deepest networks, without BN over with BN: at least 10",
)
def _(table):
    after = side_by_side(table, "norm", "relative_loss", length=1.0, depth=table.depth.max())
    longest = side_by_side(table, "norm", "relative_loss", length=table.length.max(), depth=table.depth.max()).median()
    said = f"at length {table.length.max():g} the medians are {number(longest.none)} without BN and {number(longest.batch)} with it"
    return judge_effect("ratio of relative losses", after.none / after.batch, claimed=(10, np.inf), null=1, note=said)


@rates.claim(
    "heavy-tails",
    "Without batch norm the gradients at the start have heavier tails.",
    criterion="kurtosis of a layer's gradient, median over layers, deepest networks, without BN over with BN: at least 1.5",
)
def _(table):
    found = side_by_side(table, "norm", "kurtosis", depth=table.depth.max())
    said = f"{number(found.none.median())} and {number(found.batch.median())}"
    return judge_effect("ratio of kurtoses", found.none / found.batch, claimed=(1.5, np.inf), null=1, note=said)


@rates.claim(
    "input-independent",
    "Without batch norm a larger part of the gradient at the start does not depend on the image, at least twice as large a one.",
    criterion="squared mean term over mean squared term of an image, deepest networks, without BN over with BN: at least 2",
)
def _(table):
    found = side_by_side(table, "norm", "common", depth=table.depth.max())
    said = f"{number(found.none.median())} and {number(found.batch.median())}, of at most 1"
    return judge_effect("ratio of the common parts", found.none / found.batch, claimed=(2, np.inf), null=1, note=said)


@rates.claim(
    "same-rate",
    "At the same small rate batch norm changes the accuracy little: the test accuracies agree within two points.",
    criterion="test accuracy with BN less that without, both at the small rate, between −2 and 2 points",
)
def _(table):
    found = at_last(table)
    said = f"BN at the large rate: a further {number((found.large - found.same).median())}"
    return judge_effect("points of test accuracy", found.same - found.none, claimed=(-2, 2), null=np.nan, note=said)
