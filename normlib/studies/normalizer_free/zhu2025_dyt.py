"""Zhu et al. (2025): dynamic tanh in the place of layer norm, in a small vision transformer, with few and with many images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.layers import ChannelsLast, Derf, DynamicTanh
from normlib.layers.shapes import channel_affine
from normlib.networks import ViT
from normlib.probes import reduce_activations
from normlib.probes.propagation import saturation
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import GRAY, INK, OLIVE, median_and_band, norm_color, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, tuned
from normlib.training import Update, accuracy, train

SCALING = "scaling"  # dynamic tanh without the tanh
NAMES = {"layer": "LN", "rms": "RMSNorm", "dyt": "DyT", "derf": "Derf", SCALING: "no tanh"}
COLORS = {"layer": norm_color("layer"), "rms": norm_color("rms"), "dyt": INK, "derf": OLIVE, SCALING: GRAY}
LOOKS = 7  # how often the squashing layers are looked at, first and last included
BATCH = 64
CHANCE = 10.0  # percent

dyt = Study(
    "zhu2025.dyt",
    item="§5, §6",
    title="Is a tanh enough? LN, RMSNorm, DyT and Derf in a small vision transformer",
    kind="train",
    vary={"norm": list(NAMES), "train": [1_536, 9_216], "rate": [2e-3, 6e-3, 2e-2, 6e-2]},
    quick={
        "data": "digits", "train": [256, 896], "validation": 128, "test": 256, "patch": 4, "dim": 16, "depth": 2, "steps": 25,
        "rate": [6e-3],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "validation": 1_024, "test": 2_000, "patch": 7, "dim": 32, "depth": 3, "steps": 160,
    },
    full={
        "data": "cifar10", "train": [6_000, 50_000], "validation": 5_000, "patch": 4, "dim": 192, "depth": 6, "steps": 20_000,
        "rate": [2e-4, 6e-4, 2e-3, 6e-3],
    },
)  # fmt: skip


class PlainScaling(DynamicTanh):
    """Dynamic tanh without the tanh: `alpha x * weight + bias`."""

    def forward(self, input: Tensor) -> Tensor:
        """Scale and shift `input` (N, C, *)."""
        return channel_affine(self.alpha * input, self.weight, self.bias)


def transformer(c: Config, images: Dataset, seed: int) -> ViT:
    """Build the network of an arm, Pre-LN order, with the same weights for all arms."""
    channels, side, _ = images.shape
    spec = "dyt" if c.norm == SCALING else c.norm
    net = ViT(side, c.patch, c.dim, c.depth, 4, 2.0, channels, images.classes, norm=spec, seed=seed)
    if c.norm == SCALING:
        for module in net.modules():
            if isinstance(module, ChannelsLast):
                module.norm = PlainScaling(c.dim)
    return net.to(c.device)


def squashes(net: nn.Module, x: Tensor) -> dict[str, list[float]]:
    """Read each squashing layer: its slope, the deviation of its input, and the share of values that it saturates.

    A value is saturated if tanh or erf of it is at least 0.9 in size.
    """
    layers = {name: m for name, m in net.named_modules() if isinstance(m, DynamicTanh | Derf)}
    inputs = reduce_activations(net, x, lambda t: t, list(layers), sides=("input",), training=True)
    columns: dict[str, list[float]] = {"layer": [], "alpha": [], "std": [], "saturated": []}
    for place, (name, layer) in enumerate(layers.items()):
        values, alpha = inputs[name, "input"].double(), layer.alpha.detach().double()
        squashed = torch.erf(alpha * values + layer.shift.detach()) if isinstance(layer, Derf) else torch.tanh(alpha * values)
        row = (place, float(alpha), float(values.std(correction=0)), saturation(squashed, (-1, 1)))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


@dyt.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    net = transformer(c, tune, seed)
    watched = c.norm in ("dyt", "derf")
    history = train(
        net, tune.x_train, tune.y_train, steps=c.steps, batch_size=BATCH, rate=c.rate, schedule="cosine:warmup=0.1",
        weight_decay=0.05, update=Update(optimizer="adamw", decay="weights"), seed=seed,
        probe=(lambda step, model: squashes(model, tune.x_test[:128])) if watched else None,
        probe_steps=np.linspace(0, c.steps, LOOKS).round().astype(int).tolist() if watched else (),
    )  # fmt: skip
    if history.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {history.diverged_at}")
    return {
        **history.probes,
        "held_out": 100 * accuracy(net, tune.x_test, tune.y_test, statistics="eval"),
        "accuracy": 100 * accuracy(net, images.x_test, images.y_test, statistics="eval"),
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def best(table):
    """Return the runs at the rate that held-out images chose for each arm, and the rates."""
    return tuned(table, ["norm", "train"], "held_out")


def accuracies(table):
    """Return test accuracies in percent at the chosen rates: a row a seed, columns by norm and size; chance if diverged."""
    return side_by_side(best(table)[0], ["norm", "train"], "accuracy").fillna(CHANCE)


def sizes(table) -> tuple[int, int]:
    """Return the smaller and the larger number of training images, held-out ones included."""
    return int(table.train.min()), int(table.train.max())


def slope_follows(table):
    """Return for each seed the rank correlation, over layers, of DyT's trained slopes with one over their inputs' deviations."""
    kept = best(table)[0]
    runs = kept[(kept.norm == "dyt") & (kept.train == sizes(table)[1]) & (kept.step == kept.step.max())]
    return runs.groupby("seed")[["alpha", "std"]].apply(lambda run: run.alpha.rank().corr((1 / run["std"]).rank()))


@dyt.draw
def _(table):
    kept, rates = best(table)
    figure, axes = subplots(1, 3, height=2.7, gridspec_kw={"width_ratios": [1.25, 1, 1]})
    few, many = sizes(table)
    scores = accuracies(table)
    for place, (norm, color) in enumerate(COLORS.items()):
        for train_size, shift, face in ((few, -0.17, "none"), (many, 0.17, color)):
            column = scores[norm, train_size]
            axes[0].plot([place + shift] * len(column), column, "o", color=color, mfc=face, markersize=4.5)
            axes[0].plot([place + shift - 0.13, place + shift + 0.13], [column.median()] * 2, color=color)
    axes[0].set_xticks(range(len(NAMES)), list(NAMES.values()), rotation=30, fontsize=8.5)
    axes[0].set(ylabel="test accuracy (%)")
    watched = kept[kept.norm.isin(["dyt", "derf"])].assign(product=lambda rows: rows.alpha * rows["std"])
    through = watched.groupby(["norm", "train", "seed", "step"])[["product", "saturated"]].median().reset_index()
    for axis, column in ((axes[1], "product"), (axes[2], "saturated")):
        for norm in ("dyt", "derf"):
            for train_size, style in ((few, "--"), (many, "-")):
                runs = through[(through.norm == norm) & (through.train == train_size)]
                label = NAMES[norm] if train_size == many else None
                median_and_band(axis, runs, "step", column, color=COLORS[norm], linestyle=style, label=label)
        axis.set(xlabel="update")
    axes[1].set(ylabel="α × deviation of the input")
    axes[2].set(ylabel="share of saturated values")
    axes[1].legend(fontsize=8)
    held = int(table.validation.iloc[0])
    median, ends = scores.median(), {arm[0] for arm in at_ends(table, ["norm", "train"], rates)}
    said = "; ".join(f"{NAMES[n]} {median[n, few]:.1f} and {median[n, many]:.1f} %" for n in NAMES)
    chosen = ", ".join(f"{NAMES[n]} {number(rates[n, few])} and {number(rates[n, many])}" for n in NAMES)
    final = through[(through.step == through.step.max()) & (through.norm == "dyt")].groupby("train").saturated.median()
    return Drawing(
        figure,
        caption=f"{table.steps.iloc[0]} updates of AdamW, {BATCH} images each, on {few - held:,} images (open, dashed) and on "
        f"{many - held:,} (filled, solid). **Left** Median test accuracies, each arm at its rate: {said}. **Middle, right** The "
        f"layers' median of slope times input deviation, and of the share of values with |tanh| or |erf| from 0.9; at the end DyT "
        f"saturates {100 * final[few]:.2g} % with few images and {100 * final[many]:.2g} % with many. Rates, by held-out images: "
        f"{chosen}{ends_in_words([NAMES[norm] for norm in NAMES if norm in ends])}.",
        alt="Left: test accuracy of five kinds of layer in a vision transformer, with few and many training images. Middle: slope "
        "times input deviation through training for DyT and Derf. Right: their share of saturated values.",
    )


@dyt.claim(
    "matches",
    "Dynamic tanh does as well as layer norm in a Transformer.",
    criterion="each at its best rate, on the larger set of images: test accuracy of DyT less that of LN, at least -1 point",
)
def _(table):
    scores, many = accuracies(table), sizes(table)[1]
    rms = (scores["rms", many] - scores["layer", many]).median()
    gain = scores["dyt", many] - scores["layer", many]
    note = f"RMSNorm less LN: {number(rms)}"
    return judge_effect("points, DyT less LN", gain, claimed=(-1, np.inf), null=np.nan, note=note)


@dyt.claim(
    "needs-tanh",
    "Without the squashing function, by the slope and the scale alone, the network loses five points or more.",
    criterion="on the larger set of images, each at its best rate, test accuracy of DyT less that without tanh, at least 5 points; "
    "a diverged run counts as chance",
)
def _(table):
    scores, many = accuracies(table), sizes(table)[1]
    runs = table[(table.norm == SCALING) & (table.train == many)].drop_duplicates(["seed", "rate"])
    note = f"without tanh {int(runs.held_out.isna().sum()) if 'held_out' in runs else len(runs)} of {len(runs)} runs diverged"
    gain = scores["dyt", many] - scores[SCALING, many]
    return judge_effect("points, DyT less no tanh", gain, claimed=(5, np.inf), null=0, note=note)


@dyt.claim(
    "follows",
    "The learned slope follows one over the deviation of the layer's input.",
    criterion="after training on the larger set, rank correlation over the DyT layers of the slope with one over the deviation of "
    "the input, at least 0.5",
)
def _(table):
    return judge_effect("rank correlation over layers", slope_follows(table), claimed=(0.5, 1), null=0)


@dyt.claim(
    "erf-better",
    "The error function does better than tanh.",
    criterion="each at its best rate, on the larger set of images: test accuracy of Derf less that of DyT, above 0",
    by="chen2025derf",
)
def _(table):
    scores, many = accuracies(table), sizes(table)[1]
    return judge_effect("points, Derf less DyT", scores["derf", many] - scores["dyt", many], claimed=(0, np.inf), null=0)


@dyt.claim(
    "data-poor",
    "Dynamic tanh compares better with layer norm when images are few, as a regularizer would.",
    criterion="each at its best rate: test accuracy of DyT less that of LN on the smaller set, less that on the larger, above 0",
    by="verma2026",
)
def _(table):
    scores, (few, many) = accuracies(table), sizes(table)
    small, large = (scores["dyt", size] - scores["layer", size] for size in (few, many))
    note = f"{number(small.median())} on the smaller set, {number(large.median())} on the larger"
    return judge_effect("points, smaller less larger set", small - large, claimed=(0, np.inf), null=0, note=note)
