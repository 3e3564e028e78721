"""Liu et al. (2020), EvoNorm: norm and activation in one formula, beside the norms and activations that it is made of."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.looks import GRAY, INK, note, subplots
from normlib.studies.common.statements import at_most
from normlib.studies.flavors.convnets import BATCH, RECIPE
from normlib.studies.flavors.relatives import best, chosen_rates, coupling, error_rows, learned, quartile_bars, test_errors, trained

S0, SILU, GROUP, B0, B0_SMALL, LARGE, SMALL = ARMS = [
    "evonorm_s0:size=8", "group:size=8 + silu", "group:size=8", "evonorm_b0", "evonorm_b0 + per 2", "batch", "batch:ghost=2",
]  # fmt: skip
NAMES = {
    S0: "EvoNorm-S0", SILU: "group + SiLU", GROUP: "group + ReLU", B0: "EvoNorm-B0 64", LARGE: "batch 64 + ReLU",
    B0_SMALL: "EvoNorm-B0 2", SMALL: "batch 2 + ReLU",
}  # fmt: skip

evonorm = Study(
    "liu2020.evonorm",
    item="§5, small batches",
    title="EvoNorm-S0 and B0 beside group and batch norm at 64 and 2 images per statistic",
    kind="train",
    vary={"arm": ARMS, "rate": [0.02, 0.06, 0.2, 0.6]},
    quick={"data": "digits", "train": 640, "validation": 128, "test": 256, "depth": 4, "width": 8, "epochs": 5, "rate": [0.2]},
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 3_400, "validation": 800, "test": 2_000, "depth": 6, "width": 32, "epochs": 4,
    },
    full={"data": "cifar10", "pool": 1, "validation": 5_000, "depth": 12, "width": 64, "epochs": 30},
)  # fmt: skip


@evonorm.trial
def _(c, seed):
    network, tune, measured = trained(c, seed)
    return {**measured, **coupling(network, tune.x_train[:BATCH]), **learned(network, "v")}


@evonorm.draw
def _(table):
    kept, rates = best(table)
    figure, (rows, slopes) = subplots(1, 2, height=3.0, gridspec_kw={"width_ratios": [1.5, 1]})
    error_rows(rows, kept, NAMES)
    quartile_bars(slopes, kept[kept.arm == S0], color=INK, shift=-0.1, marker="o")
    quartile_bars(slopes, kept[kept.arm == B0], color=GRAY, shift=0.1, marker="s", linestyle="--")
    slopes.axhline(1, color=INK, linestyle=":", linewidth=1)
    slopes.set(ylabel="learned slope v")
    note(slopes, "● S0   ■ B0 64\ndotted: at the start", 0.03, 0.03, fontsize=8.5)
    error = test_errors(table).median()
    return Drawing(
        figure,
        caption="64 images per update; the number beside B0 and batch is how many of them share a statistic. **Left** Test error: "
        f"S0 {error[S0]:.1f} %, group norm with SiLU {error[SILU]:.1f} %, with ReLU {error[GROUP]:.1f} %; B0 {error[B0]:.1f} % at "
        f"64 images and {error[B0_SMALL]:.1f} % at 2, batch norm with ReLU {error[LARGE]:.1f} % and {error[SMALL]:.1f} %. "
        "**Right** The slopes inside S0's sigmoid and B0's bound after training, quartiles over channels: with v = 1, S0 gates as "
        f"SiLU does. Learning rates, by held-out images: {chosen_rates(table, rates, NAMES)}. Recipe: {RECIPE}.",
        alt="Left: test errors of each seed and median training errors for EvoNorm-S0, group norm with SiLU and ReLU, EvoNorm-B0 "
        "and batch norm over 64 and 2 images. Right: quartiles of the learned slopes of S0 and B0 by layer.",
    )


@evonorm.claim(
    "small-batch",
    "With few images per statistic EvoNorm-S0 has a lower error than batch norm with ReLU, by 7.8 points in a ResNet-50.",
    criterion="test error of batch norm with ReLU over 2 images less that of S0, at least 7.8 points",
)
def _(table):
    error = test_errors(table)
    note = f"over 64 images: {number((error[LARGE] - error[S0]).median())}; the paper's number is from ImageNet"
    return judge_effect("points of error, batch over 2 less S0", error[SMALL] - error[S0], claimed=(7.8, np.inf), null=0, note=note)


@evonorm.claim(
    "large-batch",
    "With many images per statistic EvoNorm-B0 has a lower error than batch norm with ReLU.",
    criterion="test error of batch norm with ReLU over 64 images less that of B0 over 64, above 0",
)
def _(table):
    error = test_errors(table)
    return judge_effect("points of error, batch less B0, over 64", error[LARGE] - error[B0], claimed=(0, np.inf), null=0)


@evonorm.claim(
    "as-silu",
    "EvoNorm-S0 does what group norm with SiLU does.",
    criterion="test errors of S0 and of group norm with SiLU differ by less than one point",
    by="notes",
)
def _(table):
    error = test_errors(table)
    signed = error[SILU] - error[S0]
    note = f"group with SiLU less S0: {number(signed.median())} ({number(signed.min())} to {number(signed.max())})"
    return judge_effect("difference in points", signed.abs(), claimed=(0, 1), null=1, note=note)


@evonorm.claim(
    "the-activation",
    "More of the way from group norm with ReLU to EvoNorm-S0 lies in the activation than in the rest of the formula.",
    criterion="test error: what SiLU instead of ReLU saves under group norm, less what S0 saves beyond that, above 0",
    by="notes",
)
def _(table):
    error = test_errors(table)
    by_activation, by_rest = error[GROUP] - error[SILU], error[SILU] - error[S0]
    note = f"the activation saves {number(by_activation.median())}, the rest {number(by_rest.median())}"
    return judge_effect("points saved, activation less rest", by_activation - by_rest, claimed=(0, np.inf), null=0, note=note)


@evonorm.claim(
    "a-variance-alone",
    "A batch variance without a batch mean suffers less from few images: from 64 to 2, B0 loses less than batch norm.",
    criterion="rise of the test error from 64 to 2 images per statistic, that of batch norm with ReLU less that of B0, above 0",
    by="notes",
)
def _(table):
    error = test_errors(table)
    batch, b0 = error[SMALL] - error[LARGE], error[B0_SMALL] - error[B0]
    note = f"batch norm rises by {number(batch.median())}, B0 by {number(b0.median())}"
    return judge_effect("points, rise of batch norm less rise of B0", batch - b0, claimed=(0, np.inf), null=0, note=note)


@evonorm.claim(
    "no-batch",
    "The outputs of EvoNorm-S0 depend neither on the other images of a batch nor on the mode.",
    criterion="in float64 the outputs of the trained network for 64 images together, two by two, and in evaluation agree to 1e-12 "
    "of the largest",
)
def _(table):
    runs = table[table.arm == S0].dropna(subset=["coupling"])
    note = f"B0 over 64: {number(table[table.arm == B0].coupling.median())} between batches"
    return at_most(1e-12, runs[["coupling", "modes"]].max(axis=1), "gap of outputs", note)
