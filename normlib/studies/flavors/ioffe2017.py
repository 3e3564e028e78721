"""Ioffe (2017), batch renormalization: statistics over few images, and over images of two classes."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlib.data import Dataset
from normlib.lab import Config, Drawing, Study, judge_effect, judge_identity, number
from normlib.layers import BatchRenorm, renorm_limits
from normlib.networks import PlainConvNet
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.grouped import in_groups
from normlib.studies.common.looks import median_and_band, norm_color, subplots
from normlib.studies.common.statements import gap
from normlib.studies.common.tuning import at_ends, rates_in_words, tuned
from normlib.studies.flavors.convnets import BATCH, RECIPE, convnet, errors
from normlib.studies.flavors.ghost_renorm import GhostRenorm
from normlib.training import History, train

MIXED = 0  # in place of a number of classes: as they come
SHARES = {"warmup": 0.04, "d_steps": 0.2, "r_steps": 0.3}  # of all steps: when the limits of renorm start and end to widen
ARMS = [
    *[f"{norm}, {size}, mixed" for size in (64, 16, 4) for norm in ("batch", "renorm")], "group, 16, mixed",
    *[f"{norm}, 16, two classes" for norm in ("batch", "renorm", "group")],
]  # fmt: skip
CLASSES = {"mixed": MIXED, "two classes": 2}

renorm = Study(
    "ioffe2017.renorm",
    item="small and dependent minibatches",
    title="Does batch renormalization withstand statistics over few images, and over images of two classes?",
    kind="train",
    vary={"arm": ARMS, "rate": [0.03, 0.1, 0.3]},
    quick={"data": "digits", "pool": 1, "train": 640, "depth": 5, "width": 8, "epochs": 2, "rate": [0.1]},
    laptop={"data": "fashion-mnist", "pool": 2, "train": 2_400, "test": 2_000, "depth": 5, "width": 16, "epochs": 8},
    full={"data": "cifar10", "pool": 1, "depth": 10, "width": 64, "epochs": 30},
)


class OfPositions(nn.Module):
    """Hand the images at given positions to a network as one batch: what is shuffled are then groups of positions."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network, self.images = network, images

    def forward(self, positions: Tensor) -> Tensor:
        """Map positions (groups, size) to the outputs of all their images, group after group."""
        output: Tensor = self.network(self.images[positions.flatten()])
        return output


def clustered(labels: Tensor, size: int, classes: int, seed: int) -> Tensor:
    """Return groups of images, positions (groups, size): of at most so many classes in equal parts, or mixed.

    Args:
        labels: shape (N,).
        size: images of a group; `classes` divides it.
        classes: per group; `MIXED` takes the images as they come.
        seed: of the draw. What does not fill a group is left out.
    """
    if classes == MIXED:
        return in_groups(labels, size, False, seed)
    parts = in_groups(labels, size // classes, True, seed)
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    return parts[order[: len(parts) // classes * classes]].view(-1, size)


def build(c: Config, images: Dataset, norm: str, size: int, seed: int) -> PlainConvNet:
    """Build the network of all arms with the norm of an arm; the statistics of a batch norm are over `size` images."""
    spec = {"batch": f"batch:ghost={size}", "renorm": "renorm", "group": "group:size=8"}[norm]
    network = convnet(c, images, spec, seed)
    if norm == "renorm":
        for block in network.blocks:
            block.norm = GhostRenorm(c.width).to(c.device)
            block.norm.images = size
    return network


def set_limits(network: nn.Module, r_max: float, d_max: float) -> None:
    """Set the limits of every renormalization."""
    for module in network.modules():
        if isinstance(module, BatchRenorm):
            module.r_max, module.d_max = r_max, d_max


def fit_groups(network: nn.Module, images: Dataset, c: Config, size: int, classes: int, seed: int) -> History:
    """Train in place by the recipe of all arms, on groups drawn anew every epoch; renorm's limits widen about as in the paper."""
    y = images.y_train
    groups = torch.cat([clustered(y, size, classes, 1000 * seed + epoch) for epoch in range(c.epochs)])
    steps = len(groups) // (BATCH // size)
    course = {name: math.ceil(share * steps) for name, share in SHARES.items()}

    def widen(step: int, model: nn.Module) -> dict[str, float]:
        set_limits(model, *renorm_limits(step, **course))
        return {}

    return train(
        OfPositions(network, images.x_train), groups, y[groups],
        steps=steps, batch_size=BATCH // size, rate=c.rate, schedule="linear", momentum=0.9, weight_decay=1e-4, seed=seed,
        loss=lambda output, target: F.cross_entropy(output, target.flatten()), probe=widen, probe_steps=range(steps),
    )  # fmt: skip


def unclipped(network: PlainConvNet, x: Tensor) -> float:
    """Return the relative distance of outputs in train mode without limits from those in eval mode, in double precision."""
    network, x = copy.deepcopy(network).double(), x.double()
    with torch.no_grad():
        expected = network.eval()(x)
        set_limits(network, math.inf, math.inf)
        return gap(network.train()(x), expected)


@renorm.trial
def _(c, seed):
    tune, images = images_for(c, seed)
    norm, size, mixture = c.arm.split(", ")
    size, classes = int(size), CLASSES[mixture]
    network = build(c, tune, norm, size, seed)
    run = fit_groups(network, tune, c, size, classes, seed)
    finite = run.diverged_at is None
    found = errors(network, tune, images) if finite else {}
    test_batch = tune.x_train[clustered(tune.y_train, size, classes, seed)[: BATCH // size].flatten()]
    return {
        **{key: found.get(key, np.nan) for key in ("train_error", "held_out_error", "test_error", "train_loss")},
        "unclipped": unclipped(network, test_batch) if norm == "renorm" and finite else np.nan,
        "steps": len(run.loss),
    }


LOOKS = {"batch": ("batch norm", "o", "-"), "renorm": ("renorm", "s", "--"), "group": ("group norm", "^", ":")}


def _best(table):
    return tuned(table, ["arm"], "held_out_error", low=True)


def _errors(table):
    """Return one row per seed, one column per arm: the test error at each arm's best rate, in percent."""
    return side_by_side(_best(table)[0], "arm", "test_error")


def _lost(table, norm):
    """Return, for each seed, how many points of test error a norm loses by groups of 16 images of two classes."""
    return _errors(table).eval(f"`{norm}, 16, two classes` - `{norm}, 16, mixed`")


@renorm.draw
def _(table):
    kept, rates = _best(table)
    runs = kept.drop_duplicates(["arm", "seed"])
    parts = runs.arm.str.split(", ", expand=True)
    place = parts[2].map({name: float(place) for place, name in enumerate(CLASSES)})
    runs = runs.assign(norm=parts[0], size=parts[1].astype(float), mixture=parts[2], place=place)
    figure, (sizes, classes) = subplots(1, 2, sharey=True)
    for norm, (label, marker, line) in LOOKS.items():
        style = {"color": norm_color(norm), "marker": marker, "linestyle": line}
        arm = runs[runs.norm == norm]
        if norm != "group":
            median_and_band(sizes, arm[arm.mixture == "mixed"], "size", "test_error", **style)
        median_and_band(classes, arm[arm["size"] == 16], "place", "test_error", label=label, **style)
    sizes.set(xscale="log", xlabel="images per statistic, mixed", ylabel="test error (%)", ylim=(0, 1.08 * runs.test_error.max()))
    sizes.set_xticks([4, 16, 64], ["4", "16", "64"])
    sizes.minorticks_off()
    classes.set(xlabel="16 images per statistic", xlim=(-0.3, 1.3))
    classes.set_xticks(range(len(CLASSES)), CLASSES)
    figure.legend(*classes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    error = runs.groupby("arm").test_error.median()
    sizes.axhline(error["group, 16, mixed"], color=norm_color("group"), linestyle=":")
    norms = [(label, *(number(error[f"{norm}, 16, {classes}"]) for classes in CLASSES)) for norm, (label, *_) in LOOKS.items()]
    listed = ", ".join(f"{label} {mixed} % and {two} %" for label, mixed, two in norms)
    return Drawing(
        figure,
        caption=f"Test error with running averages; {BATCH} images per update in every arm, statistics over fewer. Left: images "
        f"as they come; with 4 per statistic batch norm has {number(error['batch, 4, mixed'])} % and renorm "
        f"{number(error['renorm, 4, mixed'])} %, with 64 they have {number(error['batch, 64, mixed'])} % and "
        f"{number(error['renorm, 64, mixed'])} %; dotted: group norm. Right: groups of 16 images in training, mixed and of two "
        f"classes: {listed}. Medians over seeds, with intervals. Recipe: {RECIPE}; rate tuned per arm on held-out images: "
        f"{_chosen(table, rates)}. Renorm's limits start to widen after {100 * SHARES['warmup']:g} % of the steps and are wide "
        f"after {100 * SHARES['r_steps']:g} %.",
        alt="Left: test error of batch norm and renorm against images per statistic, with a line for group norm. Right: test error "
        "of batch norm, renorm and group norm after training on groups of mixed images and of two classes.",
    )


def _chosen(table, rates):
    """Say which rates were chosen: the one of most arms, what departs from it, and which stand at an edge of the grid."""
    usual = max(set(rates.values()), key=list(rates.values()).count)
    others = {arm.replace(", ", " "): rate for arm, rate in rates.items() if rate != usual}
    edges = len(at_ends(table, ["arm"], rates))
    text = number(usual) + (f", except {rates_in_words(others)}" if others else "")
    return f"{text} (an edge of the grid in {edges} of {len(rates)} arms)" if edges else text


@renorm.claim(
    "dependent",
    "Batches whose images depend on each other harm batch norm.",
    criterion="trained on statistics over 16 images of two classes, batch norm's test error (running averages) is at least 5 "
    "points above that with 16 mixed images per statistic, and 64 images per update in both",
)
def _(table):
    note = f"group norm, which takes no statistics over images, loses {number(_lost(table, 'group').median())} by the same groups"
    return judge_effect("points of error lost", _lost(table, "batch"), claimed=(5, np.inf), null=0, note=note)


@renorm.claim(
    "kept",
    "Batch renormalization withstands such batches.",
    criterion="it loses at most a fifth of the points that batch norm loses on the same batches",
)
def _(table):
    lost, note = _lost(table, "renorm"), f"it loses {number(_lost(table, 'renorm').median())} points"
    return judge_effect("ratio of points lost", lost / _lost(table, "batch"), claimed=(-np.inf, 0.2), null=1, note=note)


@renorm.claim(
    "small",
    "With few images per statistic, independent ones, renormalization has a lower error than batch norm.",
    criterion="at 4 mixed images per statistic batch norm's test error is above renorm's",
)
def _(table):
    gained = _errors(table).eval("`batch, 4, mixed` - `renorm, 4, mixed`")
    return judge_effect("points of error, batch norm less renorm", gained, claimed=(0, np.inf), null=0)


@renorm.claim(
    "large",
    "On large batches of independent images renormalization performs like batch norm.",
    criterion="at 64 mixed images per statistic the test errors differ by at most 1 point",
)
def _(table):
    apart = _errors(table).eval("`renorm, 64, mixed` - `batch, 64, mixed`")
    return judge_effect("points of error, renorm less batch norm", apart, claimed=(-1, 1), null=np.nan)


@renorm.claim(
    "training-is-evaluation",
    "Where r and d are not clipped, the network computes in training what it computes in evaluation, whatever the batch.",
    criterion="trained networks in double precision, on a batch of each kind: largest relative difference at most 1e-6",
)
def _(table):
    return judge_identity("largest relative difference", table.unclipped.max(), 1e-6)
