"""The gallery of wrong implementations: what faults of running statistics and modes cost a network that was trained with them."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from normlib.gallery import FAULTS
from normlib.gallery.running import Textbook
from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.common.looks import BLUE, VERMILION, subplots
from normlib.studies.common.tuning import rates_in_words, tuned
from normlib.training import train

SOUND = "sound"
ARMS = [SOUND, "biased_buffer", "reversed_momentum", "never_updated", "updated_in_evaluation", "batch_in_evaluation"]
ORDERS = {"shuffled": ("shuffled test batches", BLUE, "o"), "by_class": ("test batches by class", VERMILION, "D")}

trained = Study(
    "gallery.batch_trained",
    item="faults of running statistics and modes",
    title="Five faults leave training as it is, to the last bit, and show in evaluation alone",
    kind="train",
    vary={"layer": ARMS, "batch": [4, 64], "rate": [0.005, 0.02, 0.1, 0.5]},
    quick={
        "data": "digits", "pool": 2, "train": 800, "test": 160, "validation": 160,
        "width": 16, "hidden": 2, "steps": 50, "rate": [0.1],
    },
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 6_000, "test": 2_000, "validation": 1_000,
        "width": 48, "hidden": 3, "steps": 800,
    },
    full={"data": "mnist", "pool": 1, "validation": 5_000, "width": 256, "hidden": 3, "steps": 8_000},
)  # fmt: skip
TEST_BATCH = 16


@trained.trial
def _(c, seed):
    tuning, images = images_for(c, seed)
    layer = Textbook if c.layer == SOUND else FAULTS[c.layer].wrong
    net = network(layer, images, c, seed).to(c.device)
    run = train(net, tuning.x_train, tuning.y_train, steps=c.steps, batch_size=c.batch, rate=c.rate, seed=seed)
    mixed = torch.randperm(len(images.y_test), generator=torch.Generator().manual_seed(seed)).to(c.device)
    ordered = images.y_test.argsort(stable=True)
    return {
        "train_loss": float(run.loss[-100:].mean()),
        "held_out": score(net, tuning.x_test, tuning.y_test) if run.diverged_at is None else math.nan,
        "shuffled": score(net, images.x_test[mixed], images.y_test[mixed]),
        "by_class": score(net, images.x_test[ordered], images.y_test[ordered]),
    }


def network(layer, images, c, seed):
    """Build a perceptron of ReLU layers with a given normalizer, without scale and shift, before each ReLU."""
    inputs = images.x_test[0].numel()
    net = MLP([inputs, *[c.width] * c.hidden, images.classes], "relu", init="he", seed=seed)
    for part in net.blocks:
        part.norm = layer(c.width).float()
    return net


@torch.no_grad()
def score(net: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int = TEST_BATCH) -> float:
    """Return the share of correct answers in evaluation mode, batch by batch in the order given; the network stays as it is.

    A layer that moves its buffers moves them from batch to batch here, as in anyone's loop.
    """
    net = copy.deepcopy(net).eval()
    right = [(net(some).argmax(1) == labels).sum() for some, labels in zip(x.split(batch), y.split(batch), strict=True)]
    return float(sum(right)) / len(y)


# All arms train alike, so they share the rate: that of the sound layer, for each size of the training batch.
def _at_one_rate(table):
    _, rates = tuned(table[table.layer == SOUND], ["batch"], "held_out")
    return table[table.rate == table.batch.map(rates)], rates


@trained.draw
def _(table):
    table, rates = _at_one_rate(table)
    sizes = sorted(table.batch.unique())
    figure, axes = subplots(1, len(sizes), height=2.9, sharex=True, sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        for order, (label, color, marker) in ORDERS.items():
            shift = -0.13 if order == "shuffled" else 0.13
            runs = side_by_side(table, "layer", order, batch=size)[ARMS] * 100
            for row, arm in enumerate(ARMS):
                ax.plot(runs[arm], [row + shift] * len(runs), color=color, linewidth=1)
                ax.plot(runs[arm].median(), row + shift, marker, color=color, markersize=5, label=label if row == 0 else None)
        ax.set_title(f"training batches of {size}")
        ax.set(xlim=(0, 100), xlabel="test accuracy in %")
        ax.set_yticks(range(len(ARMS)), [arm.replace("_", " ") for arm in ARMS])
        ax.grid(False, axis="y")
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    low = min(sizes)
    drop = {name: number(100 * _drop(table, name, low).median()) for name in ARMS[1:4]}
    return Drawing(
        figure,
        caption="The same weights under six layers: all arms train alike, only running statistics and modes differ. Test accuracy "
        f"in batches of {TEST_BATCH}, in random order and sorted by class (median over seeds; lines span the seeds). In random "
        f"order, at training batches of {low}, the biased variance takes {drop['biased_buffer']} points off, the reversed "
        f"momentum {drop['reversed_momentum']}, statistics never updated {drop['never_updated']}. The last two faults show where "
        "test batches are sorted by class. The rate is that of the sound layer, tuned on held-out training images: "
        f"{rates_in_words(rates, {size: f'batches of {size}' for size in sizes})}.",
        alt="Two panels, training batches of 4 and 64: test accuracy of a sound layer and of five faulty ones, a dot for shuffled "
        "test batches and a diamond for batches sorted by class.",
    )


def _drop(table, arm, batch, order="shuffled"):
    accuracy = side_by_side(table, "layer", order, batch=batch)
    return accuracy[SOUND] - accuracy[arm]


def _points(table, arm, batch, order="shuffled"):
    table, _ = _at_one_rate(table)
    return 100 * _drop(table, arm, batch, order)


@trained.claim(
    "training-is-blind",
    "The training loss shows none of the five faults.",
    criterion="per seed, batch and rate, the training loss of each faulty arm is that of the sound one, relative difference at "
    "most 1e-6",
    by="notes",
)
def _(table):
    losses = table.set_index(["batch", "rate", "seed", "layer"]).train_loss.unstack("layer")
    gap = (losses.div(losses[SOUND], axis=0) - 1).abs()
    return judge_identity("largest relative difference of the training loss", float(gap.max(skipna=False).max(skipna=False)), 1e-6)


@trained.claim(
    "never-updated",
    "A network whose running statistics stay where they began loses much of its accuracy in evaluation.",
    criterion="at least 10 points below the sound layer, training batches of 64",
    by="notes",
)
def _(table):
    return judge_effect("points lost", _points(table, "never_updated", 64), claimed=(10, 100), null=0)


@trained.claim(
    "biased-buffer",
    "The biased variance in the buffers costs accuracy where training batches are small.",
    criterion="at batches of 4 it costs at least half a point more than at 64",
    by="notes",
)
def _(table):
    small, large = (_points(table, "biased_buffer", size) for size in (4, 64))
    said = f"{number(small.median())} points at 4, {number(large.median())} at 64"
    return judge_effect("points lost at 4, less those at 64", small - large, claimed=(0.5, 100), null=0, note=said)


@trained.claim(
    "reversed-momentum",
    "With the momentum reversed, evaluation hangs on the last training batch, and is worse for it where batches are small.",
    criterion="at least 5 points below the sound layer, training batches of 4",
    by="notes",
)
def _(table):
    large = _points(table, "reversed_momentum", 64)
    said = f"{number(large.median())} points at batches of 64"
    return judge_effect("points lost", _points(table, "reversed_momentum", 4), claimed=(5, 100), null=0, note=said)


@trained.claim(
    "batch-in-evaluation",
    "A network that normalizes by the test batch fails once the batch is not mixed.",
    criterion="at least 30 points below the sound layer in test batches sorted by class, training batches of 64",
    by="notes",
)
def _(table):
    mixed = _points(table, "batch_in_evaluation", 64)
    said = f"{number(mixed.median())} points in shuffled test batches of {TEST_BATCH}"
    lost = _points(table, "batch_in_evaluation", 64, "by_class")
    return judge_effect("points lost in sorted batches", lost, claimed=(30, 100), null=0, note=said)


@trained.claim(
    "updated-in-evaluation",
    "Where evaluation moves the running statistics, the same network scores differently on the same images in another order.",
    criterion="sorted by class at least 10 points lower than shuffled, training batches of 64",
    by="notes",
)
def _(table):
    kept, _ = _at_one_rate(table)
    mixed, ordered = (side_by_side(kept, "layer", order, batch=64)["updated_in_evaluation"] for order in ORDERS)
    return judge_effect("points, shuffled less sorted", 100 * (mixed - ordered), claimed=(10, 100), null=0)
