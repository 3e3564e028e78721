"""The training curves of Lubana, Dick and Tanaka (2021): ten normalizers, networks without and with shortcuts, one rate."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.unified.ten import FULL, LAPTOP, QUICK, TEN, cnn, resnet
from normlib.studies.unified.training_drawing import NAMED, curves_and_speeds, failures_in_words, name
from normlib.studies.unified.training_runs import FAILURE, run_of

NETWORKS = ["plain", "residual", "residual, SkipInit"]
ARMS = ["none", *TEN]
ACTIVATIONS = [key for key, norm in TEN.items() if not norm.parametric]

training = Study(
    "lubana2021.training",
    item="Fig. 1",
    title="Ten normalizers in three networks: which train, and how fast",
    kind="train",
    vary={"network": NETWORKS, "norm": ARMS},
    quick={
        **QUICK,
        "train": 256,
        "layers": 5,
        "blocks": 1,
        "width": 4,
        "steps": 8,
        "batch": 32,
        "rate": 0.1,
        "norm": list(NAMED)[:4],
    },
    laptop={**LAPTOP, "width": 8, "blocks": 2, "validation": 256, "test": 1_000, "steps": 64, "batch": 64, "rate": 0.1},
    full={**FULL, "steps": 10_000, "batch": 256, "rate": 0.1},
)  # fmt: skip


@training.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    if c.network == "plain":
        network = cnn(c, images, c.norm, seed)
    else:
        network = resnet(c, images, c.norm, seed, version=2, residual="skipinit" if "SkipInit" in c.network else "sum")
    return run_of(network, images, tests, c, c.rate, seed)


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def speeds(table):
    """Return the mean training accuracy over the run, in percent: a row a seed, a column a network and a normalizer."""
    return 100 * side_by_side(table, ["network", "norm"], "speed")


def halves(table):
    """Return for each seed and normalizer whether it is among the slower, and the faster, half somewhere: a row a seed.

    Ranked are the normalizers, without "none", by mean training accuracy over the run, in each of the networks.
    """
    speed = speeds(table)
    ranks = [speed[network].drop(columns="none", errors="ignore").rank(axis=1, pct=True) for network in NETWORKS]
    slower = sum((rank <= 0.5).astype(int) for rank in ranks) > 0
    faster = sum((rank > 0.5).astype(int) for rank in ranks) > 0
    return slower & faster


@training.draw
def _(table):
    figure = curves_and_speeds(table, "network", dict(zip(NETWORKS, NETWORKS, strict=True)), ARMS, list(NAMED))
    runs = table.drop_duplicates(["network", "norm", "seed"])
    lines = [f"{network}: {failures_in_words(runs[runs.network == network])}" for network in NETWORKS]
    final = runs[(runs.failed == 0) & (runs.norm != "none")].groupby(["network", "norm"]).tested.median()
    ranges = ", ".join(f"{100 * final[n].min():.0f} to {100 * final[n].max():.0f} % ({n})" for n in NETWORKS if n in final)
    return Drawing(
        figure,
        caption=f"Normalizers with runs that fail, {runs.seed.nunique()} seeds each. {'; '.join(lines)}. A run {FAILURE}. "
        "**Top** Training accuracy; named in color, with the looks of the rows below, the others pale. **Bottom** Its mean over "
        "the run, which stands for speed; a mark is a seed. Test accuracy of the normalizers, where runs did not fail (medians): "
        f"{ranges}. SGD batch and statistic batch {runs.batch.iloc[0]:g}, rate {number(runs.rate.iloc[0])} for all, untuned, as "
        "in the paper (there at batch 256). Residual networks with the activation inside the branch.",
        alt="Top: training accuracy against the step in a plain network and residual networks without and with SkipInit. "
        "Bottom: its mean over the run for each normalizer; failed runs are crosses.",
    )


@training.claim(
    "each-its-own",
    "Every normalizer has its own successes and failures: each of the ten is among the slower half in one of the three networks, "
    "and among the faster half in another.",
    criterion="ranked by mean training accuracy over the run, all ten have both",
)
def _(table):
    both = halves(table)
    without = [name(key) for key in both if not both[key].all()]
    said = "one batch size and one depth; the paper has more"
    said += f"; without one of the two, at some seed: {', '.join(without)}" if without else ""
    return judge_effect("normalizers with both, of ten", both.sum(axis=1), claimed=(10, 10), null=np.nan, note=said)


@training.claim(
    "weight-norm",
    "Weight normalization does not train residual networks without SkipInit, and does with it.",
    criterion="without SkipInit every run fails (not finite, or below 20 % training accuracy in the last quarter), with it none",
)
def _(table):
    failed = side_by_side(table, ["network", "norm"], "failed").astype(float).xs("weight", axis=1, level="norm")
    gone = failed["residual"] - failed["residual, SkipInit"]
    note = "depends on depth, which is smaller here than in the paper" if gone.min() < 1 else ""
    return judge_effect("failures without SkipInit minus with it, per run", gone, claimed=(1, 1), null=0, note=note)


@training.claim(
    "instance",
    "Instance norm is the least stable normalizer of activations in the network without shortcuts.",
    criterion="its largest setback (rise of the loss, mean over four steps, above the lowest before; infinite if it diverges) "
    "exceeds the largest of the seven others",
)
def _(table):
    setbacks = side_by_side(table, "norm", "setback", network="plain")
    others = setbacks[[key for key in ACTIVATIONS if key != "instance" and key in setbacks]]
    gaps = setbacks["instance"] - others.max(axis=1)
    worst = ", ".join(sorted({name(key) for key in others.idxmax(axis=1)}))
    said = f"instance norm {number(setbacks['instance'].median())}; largest of the others: {worst}"
    return judge_effect("setback, instance norm minus the largest other", gaps, claimed=(0, np.inf), null=0, note=said)


@training.claim(
    "layer-slower",
    "Layer norm converges slower than batch norm.",
    criterion="mean training accuracy over the run below that of batch norm in the plain and in the residual network: the smaller "
    "lag counts",
)
def _(table):
    speed = speeds(table)
    lags = {network: speed[network, "batch"] - speed[network, "layer"] for network in NETWORKS}
    said = ", ".join(f"{number(lag.median())} {network}" for network, lag in lags.items())
    smaller = np.minimum(lags["plain"], lags["residual"])
    return judge_effect("points behind batch norm, smaller of two", smaller, claimed=(0, np.inf), null=0, note=said)


@training.claim(
    "skipinit-slows",
    "Normalizers of activations train without SkipInit, and with it they are slower at first.",
    criterion="median over the eight of mean training accuracy over the run, with SkipInit minus without, below 0; and none of "
    "the eight fails without it",
    by="notes",
)
def _(table):
    speed, failed = speeds(table), side_by_side(table, ["network", "norm"], "failed")
    keys = [key for key in ACTIVATIONS if key in set(table.norm)]
    change = (speed["residual, SkipInit"][keys] - speed["residual"][keys]).median(axis=1)
    failures = failed["residual"][keys].sum(axis=1)
    said = f"failures without SkipInit: {int(failures.sum())}"
    return judge_effect("points, with minus without", change.where(failures == 0), claimed=(-np.inf, 0), null=0, note=said)
