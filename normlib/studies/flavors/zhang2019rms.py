"""Zhang & Sennrich (2019), Root Mean Square Layer Normalization: is the mean that layer norm subtracts worth subtracting?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import layer_norm, rms_norm
from normlib.networks import MLP, RecurrentClassifier
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import median_and_band, norm_color, note, subplots
from normlib.studies.common.statements import gap, normal
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.surgery import swap
from normlib.surgery.swap import kind_of
from normlib.training import Update, accuracy, train

NETWORKS = {"dense": "dense", "gru": "GRU"}
NAMES = {"layer": "LN", "rms": "RMS"}
CENTERS = {0.0: "-", 0.2: "--"}

mean = Study(
    "zhang2019rms.mean",
    item="§§3 and 4, weights around 0.2",
    title="Layer norm without its mean: as good where weights are drawn around zero",
    kind="train",
    vary={"network": list(NETWORKS), "norm": list(NAMES), "center": list(CENTERS), "rate": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]},
    quick={"data": "digits", "train": 360, "pool": 1, "width": 24, "epochs": 2, "rate": [1e-2]},
    laptop={"data": "fashion-mnist", "train": 4_000, "validation": 1_000, "test": 4_000, "pool": 2, "width": 64, "epochs": 5},
    full={"data": "mnist", "train": 20_000, "width": 256, "epochs": 10},
)  # fmt: skip


def make_network(kind: str, norm: str, center: float, width: int, images: Dataset, seed: int) -> nn.Module:
    """Build a network that is normalized behind its weights, with `center` added to every weight but those of the head.

    The dense one has three hidden layers. The other is a layer-normalized GRU that reads the rows of an image from top to
    bottom; in its place of layer norm comes RMS norm, with the same gains.
    """
    if kind == "dense":
        net: nn.Module = MLP([images.x_train[0].numel(), *[width] * 3, images.classes], "relu", norm, "he", seed=seed)
        weights: list[Tensor] = [parameter for name, parameter in net.named_parameters() if name.endswith("layer.weight")]
    else:
        gru = RecurrentClassifier(images.shape[-1], width, images.classes, "gru", "layer", seed=seed)
        weights = [gru.cell.weight_ih, gru.cell.weight_hh]
        net = nn.Sequential(nn.Flatten(1, 2), gru if norm == "layer" else swap(gru, {"layer": norm}))
    with torch.no_grad():
        for weight in weights:
            weight.add_(center)
    return net


@contextmanager
def shares_of_the_mean(net: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Collect what share of the mean square of each input of a norm is the square of its mean, for each sample."""

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        found.append(x.mean(1).square() / x.square().mean(1))

    norms = [module for module in net.modules() if kind_of(module) in NAMES]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_share(net: nn.Module, x: Tensor) -> float:
    """Return the median share of the mean over norms, samples and time steps; norms of nothing but zeros are left out."""
    found: list[Tensor] = []
    with shares_of_the_mean(net, found):
        net(x)
    return float(torch.cat(found).nanmedian())


def centered_weights(seed: int) -> float:
    """Return how far layer norm of `W x` is from RMS norm of `W x` with the mean row taken off `W`: 0 if they are one layer."""
    weight, x = normal(seed, 16, 8) + 0.2, normal(seed + 1, 32, 8)
    centered = weight - weight.mean(0)
    return gap(rms_norm(x @ centered.T, [16], eps=1e-5), layer_norm(x @ weight.T, [16], eps=1e-5))


@mean.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = make_network(c.network, c.norm, c.center, c.width, tune, seed).to(c.device)
    look = tune.x_train[:500]
    start = {"share_start": mean_share(net, look), "centered_weights": centered_weights(seed)}
    steps = c.epochs * (len(tune.x_train) // 64)
    run = train(
        net, tune.x_train, tune.y_train, steps=steps, batch_size=64, rate=c.rate, schedule="linear",
        update=Update(optimizer="adam"), seed=seed,
    )  # fmt: skip
    columns = {**start, **run.curve(25)}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns, held_out=np.nan, test_error=np.nan)
    return {
        **columns,
        "share_end": mean_share(net, look),
        "held_out": 100 * (1 - accuracy(net, tune.x_test, tune.y_test, statistics="eval", batch_size=1_000)),
        "test_error": 100 * (1 - accuracy(net, images.x_test, images.y_test, statistics="eval", batch_size=1_000)),
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Keep each arm at its rate; return it with the rates."""
    return tuned(table, ["network", "center", "norm"], "held_out", low=True)


def excess(table, center):
    """Return the points of test error that RMS norm has more than layer norm: one row a seed, one column a network."""
    errors = side_by_side(best(table)[0], ["network", "norm"], "test_error", center=center)
    return errors.xs("rms", axis=1, level="norm") - errors.xs("layer", axis=1, level="norm")


@mean.draw
def _(table):
    kept, rates = best(table)
    kept = kept.assign(step=kept.step + 1)  # a log axis has no 0
    figure, axes = subplots(2, 2, height=2.5, sharey="row")
    for (top, bottom), network in zip(axes.T, NETWORKS, strict=True):
        for at, (center, style) in enumerate(CENTERS.items()):
            for norm, label in NAMES.items():
                rows = kept[(kept.network == network) & (kept.norm == norm) & (kept.center == center)]
                look = {"color": norm_color(norm), "linestyle": style}
                median_and_band(top, rows, "step", "loss", label=f"{label}, weights around {center:g}", **look)
                x = at + (0.1 if norm == "rms" else -0.1)
                for column, face, shift in (("share_start", "none", -0.04), ("share_end", norm_color(norm), 0.04)):
                    median = rows.drop_duplicates("seed")[column].median()
                    bottom.plot(x + shift, median, "o", color=norm_color(norm), markerfacecolor=face)
        top.set(xscale="log", yscale="log", xlabel="step", title=NETWORKS[network])
        top.yaxis.set_minor_locator(NullLocator())
        top.xaxis.set_minor_locator(NullLocator())
        bottom.set(xlim=(-0.5, 1.5), ylim=(-0.05, 1.05))
        bottom.set_xticks([0, 1], [f"weights around {center:g}" for center in CENTERS])
    low, high = kept.loss.min(), kept.loss.max()
    axes[0, 0].set_yticks([t for t in (0.1, 0.2, 0.5, 1, 2, 5) if low / 1.2 < t < 1.2 * high])
    axes[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("share of the mean in\nthe mean square")
    note(axes[1, 1], "open: before training\nfilled: after", 0.03, 0.75, fontsize=8.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    said = "; ".join(
        f"{name} {_signed(excess(table, 0.0)[network])} around 0 and {_signed(excess(table, 0.2)[network])} around 0.2"
        for network, name in NETWORKS.items()
    )
    listed = "; ".join(
        f"{name} {', '.join(number(rates[network, center, norm]) for center in CENTERS for norm in NAMES)}"
        for network, name in NETWORKS.items()
    )
    ends = [f"{NAMES[n]} in {NETWORKS[k]} around {c:g}" for k, c, n in at_ends(table, ["network", "center", "norm"], rates)]
    return Drawing(
        figure,
        caption="Test error of RMS norm less that of layer norm, in points (median of the differences seed by seed, and their "
        f"range): {said}. **Top** Loss of the training batches. **Bottom** How much of the mean square of a norm's input is the "
        "square of its mean, median over norms and samples. Rates of Adam, falling linearly to zero, by error on held-out images, "
        f"of LN and RMS around 0, then around 0.2: {listed}{ends_in_words(ends)}.",
        alt="Top: training loss against the step for layer and RMS norm, with weights around 0 and around 0.2, in a dense network "
        "and a GRU. Bottom: share of the mean in the mean square, before and after training.",
    )


def _signed(differences) -> str:
    return f"{number(differences.median())} ({number(differences.min())} to {number(differences.max())})"


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


@mean.claim(
    "comparable",
    "RMS norm performs as well as layer norm.",
    criterion="weights around 0, per seed, each at its tuned rate: the test errors differ by less than one point in both networks: "
    "the larger difference counts",
)
def _(table):
    differences = excess(table, 0.0)
    said = ", ".join(f"{_signed(differences[network])} {name}" for network, name in NETWORKS.items())
    largest = differences.abs().max(axis=1, skipna=False)
    return judge_effect("larger difference of the two, in points", largest, claimed=(0, 1), null=1, note=f"RMS less LN: {said}")


@mean.claim(
    "off-center",
    "Weights that are drawn around 0.2 instead of 0 do not hurt RMS norm more than layer norm.",
    criterion="weights around 0.2, per seed, each at its tuned rate: the test error of RMS norm is at most one point above that of "
    "layer norm in both networks: the larger excess counts",
)
def _(table):
    differences = excess(table, 0.2)
    said = ", ".join(f"{_signed(differences[network])} {name}" for network, name in NETWORKS.items())
    largest = differences.max(axis=1, skipna=False)
    return judge_effect("larger excess of the two, in points", largest, claimed=(-np.inf, 1), null=np.nan, note=said)


@mean.claim(
    "little-mean",
    "Where weights are drawn around 0, there is little mean to subtract: RMS norm has inputs whose mean makes up less than a tenth "
    "of their mean square, before training and after.",
    criterion="weights around 0, RMS norm, per seed: the median share over norms, samples and steps is below 0.1 at both times in "
    "both networks: the largest of the four counts",
    by="notes",
)
def _(table):
    kept = best(table)[0]
    runs = kept[(kept.norm == "rms") & (kept.center == 0)].drop_duplicates(["seed", "network"])
    largest = runs.groupby("seed")[["share_start", "share_end"]].max().max(axis=1)
    return judge_effect("share of the mean, largest of four", largest, claimed=(0, 0.1), null=1)


@mean.claim(
    "centered-weights",
    "Layer norm behind a weight matrix is RMS norm behind the same matrix with its mean row taken off every row.",
    criterion="float64, the same eps, weights around 0.2: outputs are equal to 1e-12 of the largest",
    by="notes",
)
def _(table):
    return judge_identity("largest difference of outputs", float(table.centered_weights.max()), 1e-12)
