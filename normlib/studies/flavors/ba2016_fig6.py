"""Ba, Kiros & Hinton (2016), Layer Normalization, figure 6: images as vectors, at 128 images per update and at 4."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Diverged, Drawing, Study, judge_effect, number
from normlib.layers import BatchNorm
from normlib.networks import MLP
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import PAPER, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.surgery import reestimate_statistics
from normlib.training import Update, accuracy, train

UNBIASED = "batch + logits, unbiased"
ARMS = {  # the norm of the hidden layers, and in words; the last two normalize the logits as well
    "none": ("none", "none", "-"),
    "layer": ("layer", "LN", "-"),
    "batch": ("batch", "BN, hidden layers", "-"),
    "batch + logits": ("batch", "BN, all layers", "--"),
    UNBIASED: ("batch", "BN, all, unbiased", ":"),
}
BASE = {128: 6e-4, 4: 2e-4}  # the lowest rate of each batch

figure6 = Study(
    "ba2016.fig6",
    item="Fig 6",
    title="Layer norm against batch norm on images as vectors: what the batch does, and what normalized logits do",
    kind="train",
    vary={"batch": list(BASE), "arm": list(ARMS), "times": [1, 3, 10, 30, 100]},
    quick={
        "data": "digits", "train": 240, "width": 32, "epochs": {"128": 10, "4": 2}, "population": 128, "times": [10, 30],
    },
    laptop={
        "data": "fashion-mnist", "train": 4_000, "validation": 1_000, "test": 4_000, "pool": 2, "width": 128,
        "epochs": {"128": 15, "4": 3}, "population": 2_000,
    },
    full={"data": "mnist", "train": 12_000, "width": 1_000, "epochs": {"128": 60, "4": 3}, "population": 4_000},
)  # fmt: skip


class UnbiasedBatchNorm(BatchNorm):
    r"""Batch norm that divides by the unbiased variance in training: its own output, times $\sqrt{(m-1)/m}$ around the shift."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (N, C)."""
        output = super().forward(input)
        return output if not self.training else self.bias + (1 - 1 / len(input)) ** 0.5 * (output - self.bias)


def make_network(arm: str, width: int, images: Dataset, seed: int) -> nn.Module:
    """Build two hidden layers of ReLU units and a linear head, the same weights for every arm, normalized as the arm says."""
    net = MLP([images.x_train[0].numel(), width, width, images.classes], "relu", ARMS[arm][0], "he", seed=seed)
    if arm == UNBIASED:
        for block in net.blocks:
            block.norm = UnbiasedBatchNorm(width)
    if "logits" not in arm:
        return net
    return nn.Sequential(net, (UnbiasedBatchNorm if arm == UNBIASED else BatchNorm)(images.classes))


@figure6.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = make_network(c.arm, c.width, tune, seed).to(c.device)
    epochs, per_epoch, rate = c.epochs[str(c.batch)], len(tune.x_train) // c.batch, BASE[c.batch] * c.times
    run = train(
        net, tune.x_train, tune.y_train, steps=epochs * per_epoch, batch_size=c.batch, rate=rate,
        update=Update(optimizer="adam"), seed=seed,
    )  # fmt: skip
    losses = np.full(epochs * per_epoch, np.nan)
    losses[: len(run.loss)] = run.loss
    columns = {"rate": rate, "epoch": list(range(1, epochs + 1)), "nll": losses.reshape(epochs, per_epoch).mean(1).tolist()}
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns, held_out=np.nan, test_error=np.nan)
    if any(isinstance(module, BatchNorm) for module in net.modules()):
        reestimate_statistics(net, tune.x_train[: c.population // c.batch * c.batch].split(c.batch))
    return {**columns, "held_out": error(net, tune), "test_error": error(net, images)}


def error(net: nn.Module, images: Dataset) -> float:
    """Return the error on the test images in percent, in eval mode."""
    return 100 * (1 - accuracy(net, images.x_test, images.y_test, statistics="eval"))


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Keep each arm at the rate that suits held-out images best; return it with the rates."""
    return tuned(table, ["batch", "arm"], "held_out", low=True)


def fastest(table):
    """Keep each arm at the rate at which its training curve lies lowest (geometric mean over epochs); return it with the rates."""
    runs = ["batch", "arm", "rate", "seed"]
    height = np.log(table.set_index(runs).nll).groupby(runs).mean().rename("height")  # one that diverged has none
    lost = table.set_index(runs).nll.isna().groupby(runs).any()
    return tuned(table.join(height.where(~lost), on=runs), ["batch", "arm"], "height", low=True)


def test_errors(table, batch):
    """Return the test error at the rate tuned on held-out images: one row a seed, one column an arm."""
    return side_by_side(best(table)[0], "arm", "test_error", batch=batch)


def above(table, batch, arm):
    """Return the geometric mean over epochs of the training NLL over that of layer norm, each at its fastest rate."""
    kept = fastest(table)[0]
    curves = kept[kept.batch == batch].set_index(["seed", "epoch", "arm"]).nll.unstack("arm")
    return np.exp(np.log(curves[arm] / curves["layer"]).groupby("seed").mean())


@figure6.draw
def _(table):
    (kept, fast), (_, rates) = fastest(table), best(table)
    figure, axes = subplots(2, 2, height=2.7, sharey="row")
    lowest = table.held_out.min()
    for (top, bottom), batch in zip(axes.T, BASE, strict=True):
        for arm, (norm, label, style) in ARMS.items():
            look = {"color": norm_color(norm), "linestyle": style}
            rows = table[(table.batch == batch) & (table.arm == arm)]
            median_and_band(top, rows[rows.rate == fast[batch, arm]], "epoch", "nll", label=label, **look)
            median_and_band(bottom, rows.drop_duplicates(["seed", "rate"]), "rate", "held_out", **look)
            chosen = rows[rows.rate == rates[batch, arm]].held_out.median()
            bottom.plot(rates[batch, arm], chosen, "o", color=look["color"], markerfacecolor=PAPER, markersize=5)
        top.set(yscale="log", xlabel="epoch", title=f"{batch} images per update")
        top.xaxis.set_major_locator(MaxNLocator(integer=True))
        ticks = sorted(table[table.batch == batch].rate.unique())
        bottom.set(xscale="log", xlabel="learning rate", ylim=(0.9 * lowest, 1.9 * lowest))
        bottom.set_xticks(ticks, [f"{rate:g}" for rate in ticks], fontsize=8)
        bottom.xaxis.set_minor_locator(NullLocator())
    for axis, marks in ((axes[0, 0].yaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)),):
        axis.set_ticks([mark for mark in marks if kept.nll.min() / 1.2 < mark < 1.2 * kept.nll.max()])
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    axes[0, 0].set_ylabel("training NLL")
    axes[1, 0].set_ylabel("held-out error (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    return Drawing(figure, caption=_caption(table), alt=_ALT)


_ALT = (
    "Four panels, for 128 and for 4 images per update. Top: training loss per epoch of five arms, on a log axis. Bottom: error on "
    "held-out images against the learning rate, the chosen rate of each arm ringed."
)


def _caption(table):
    lowest, held_out = (
        ends_in_words([f"{ARMS[arm][1]} at {batch}" for batch, arm in at_ends(table, ["batch", "arm"], chosen(table)[1])])
        for chosen in (fastest, best)
    )
    large, small = test_errors(table, 128).median(), test_errors(table, 4).median()
    listed = "; ".join(f"{label} {large[arm]:.1f} and {small[arm]:.1f}" for arm, (_, label, _) in ARMS.items())
    return (
        "Batch norm takes its statistics over the images of the update, so here both change together. **Top** Mean loss of the "
        f"batches of an epoch, in train mode, each arm at the rate at which its curve lies lowest{lowest}. At "
        f"128 BN on all layers lies at {number(above(table, 128, 'batch + logits').median())} times LN (geometric mean over "
        f"epochs), BN on the hidden layers at {number(above(table, 128, 'batch').median())} times. **Bottom** Error on held-out "
        f"images. Each arm is tested at its best rate there (rings){held_out}. Test error in percent at 128 "
        f"and at 4, each over its own number of epochs: {listed}."
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


@figure6.claim(
    "robust",
    "Layer norm is robust to the size of the batch.",
    criterion="per seed, test error at 4 images per update less that at 128, of layer norm less that of the network without a "
    "norm, which has the noise of small updates and the number of epochs in it: at most 1 point",
)
def _(table):
    rise = test_errors(table, 4) - test_errors(table, 128)
    more = rise.sub(rise["none"], axis=0)
    listed = ", ".join(f"{ARMS[arm][1]} {number(more[arm].median())}" for arm in ARMS if arm.startswith("batch"))
    said = f"without a norm the error rises by {number(rise['none'].median())}, with LN by {number(rise['layer'].median())}; "
    effect = "points that the error rises from 128 to 4, LN less none"
    return judge_effect(effect, more["layer"], claimed=(-np.inf, 1), null=0, note=f"{said}more than none: {listed}")


@figure6.claim(
    "faster",
    "At 128 images per update layer norm converges faster in training than batch norm that is applied to all layers.",
    criterion="per seed, geometric mean over epochs of the training NLL of batch norm on all layers over that of layer norm, each "
    "at the rate at which its curve lies lowest: above 1",
)
def _(table):
    return judge_effect("training NLL, BN on all layers / LN", above(table, 128, "batch + logits"), claimed=(1, np.inf), null=1)


@figure6.claim(
    "same-layers",
    "At 128 images per update batch norm on the hidden layers, where layer norm stands, trains at least as fast as layer norm.",
    criterion="per seed, geometric mean over epochs of the training NLL of batch norm on the hidden layers over that of layer "
    "norm, each at the rate at which its curve lies lowest: at most 1",
    by="notes",
)
def _(table):
    return judge_effect("training NLL, BN on hidden layers / LN", above(table, 128, "batch"), claimed=(-np.inf, 1), null=1)


@figure6.claim(
    "batch-of-four",
    "At 4 images per update layer norm is ahead of batch norm as the paper has it, on all layers with the unbiased variance.",
    criterion="per seed, test error of that batch norm less that of layer norm: above 0",
)
def _(table):
    errors = test_errors(table, 4)
    said = f"its training NLL lies at {number(above(table, 4, UNBIASED).median())} times that of layer norm"
    gap = errors[UNBIASED] - errors["layer"]
    return judge_effect("points of test error, BN less LN", gap, claimed=(0, np.inf), null=0, note=said)


@figure6.claim(
    "hidden-at-four",
    "At 4 images per update layer norm is ahead of batch norm on the hidden layers alone, too.",
    criterion="per seed, test error of batch norm on the hidden layers less that of layer norm: above 0",
    by="notes",
)
def _(table):
    errors = test_errors(table, 4)
    said = f"its training NLL lies at {number(above(table, 4, 'batch').median())} times that of layer norm"
    gap = errors["batch"] - errors["layer"]
    return judge_effect("points of test error, BN less LN", gap, claimed=(0, np.inf), null=0, note=said)


@figure6.claim(
    "unbiased",
    "At 4 images per update the unbiased variance does not help batch norm: in training it leaves units 3/4 of their variance, in "
    "a test all of it.",
    criterion="on all layers, per seed, test error with the unbiased variance less that with the biased one: at least 0",
    by="notes",
)
def _(table):
    errors = test_errors(table, 4)
    gap = errors[UNBIASED] - errors["batch + logits"]
    return judge_effect("points of test error, unbiased less biased", gap, claimed=(0, np.inf), null=0)
