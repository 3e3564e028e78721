"""Singh & Krishnan (2020), filter response normalization: no other image, no other channel, no mean, and a learned threshold."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.looks import INK, note, subplots
from normlib.studies.common.statements import at_most
from normlib.studies.flavors.convnets import BATCH, RECIPE
from normlib.studies.flavors.relatives import best, chosen_rates, coupling, error_rows, learned, quartile_bars, test_errors, trained

FRN, RELU, WARM, GROUP, LARGE, SMALL = ARMS = [
    "frn", "frn:tlu=False", "frn + warm-up", "group:size=8", "batch", "batch:ghost=2",
]  # fmt: skip
NAMES = {
    FRN: "FRN + TLU", WARM: "FRN + TLU with warm-up", RELU: "FRN + ReLU", GROUP: "group + ReLU", LARGE: "batch 64 + ReLU",
    SMALL: "batch 2 + ReLU",
}  # fmt: skip

frn = Study(
    "singh2020.frn",
    item="§3, §4.2",
    title="Filter response normalization with learned thresholds, against group and batch norm",
    kind="train",
    vary={"arm": ARMS, "rate": [0.02, 0.06, 0.2, 0.6]},
    quick={"data": "digits", "train": 640, "validation": 128, "test": 256, "depth": 4, "width": 8, "epochs": 5, "rate": [0.2]},
    laptop={
        "data": "fashion-mnist", "pool": 2, "train": 4_000, "validation": 800, "test": 2_000, "depth": 6, "width": 32, "epochs": 4,
    },
    full={"data": "cifar10", "pool": 1, "validation": 5_000, "depth": 12, "width": 64, "epochs": 30},
)  # fmt: skip


@frn.trial
def _(c, seed):
    network, tune, measured = trained(c, seed)
    return {**measured, **coupling(network, tune.x_train[:BATCH]), **learned(network, "tau")}


@frn.draw
def _(table):
    kept, rates = best(table)
    figure, (rows, thresholds) = subplots(1, 2, height=2.8, gridspec_kw={"width_ratios": [1.5, 1]})
    error_rows(rows, kept, NAMES)
    quartile_bars(thresholds, kept[kept.arm == FRN], color=INK, marker="o")
    thresholds.axhline(0, color=INK, linestyle=":", linewidth=1)
    thresholds.set(ylabel="learned threshold τ")
    note(thresholds, "dotted: ReLU", 0.03, 0.03, fontsize=8.5)
    error = test_errors(table).median()
    coupled = kept.groupby("arm").coupling.max()
    return Drawing(
        figure,
        caption="64 images per update; batch norm takes its statistics over 64 of them or over 2, the others see one image at a "
        f"time. **Left** Test error: FRN with TLU {error[FRN]:.1f} %, with ReLU {error[RELU]:.1f} %, with TLU and a warm-up of the "
        f"rate {error[WARM]:.1f} %; group norm {error[GROUP]:.1f} %, batch norm {error[LARGE]:.1f} % and {error[SMALL]:.1f} %. "
        f"Take 64 images together or two by two, and FRN's outputs differ by {number(coupled[FRN])} of the largest, those of batch "
        f"norm by {number(coupled[LARGE])}. **Right** Thresholds after training, quartiles over channels. Learning rates, by "
        f"held-out images: {chosen_rates(table, rates, NAMES)}. Recipe: {RECIPE}.",
        alt="Left: test errors of each seed and median training errors for filter response norm with TLU, with warm-up and with "
        "ReLU, group norm, and batch norm over 64 and 2 images. Right: quartiles of the learned thresholds by layer.",
    )


@frn.claim(
    "better-than-group",
    "Where images per statistic are few, FRN with TLU has an error more than a point below that of group norm.",
    criterion="test error of group norm less that of FRN with TLU, each at its best rate, above 1 point; both do not depend on "
    "the statistic batch",
)
def _(table):
    error = test_errors(table)
    return judge_effect("points of error, group less FRN", error[GROUP] - error[FRN], claimed=(1, np.inf), null=0)


@frn.claim(
    "better-than-batch",
    "At a large statistic batch FRN with TLU has an error 0.7 points or more below that of batch norm.",
    criterion="test error of batch norm over 64 images less that of FRN with TLU, at least 0.7 points",
)
def _(table):
    error = test_errors(table)
    note = f"over 2 images: {number((error[SMALL] - error[FRN]).median())}"
    return judge_effect("points of error, batch less FRN", error[LARGE] - error[FRN], claimed=(0.7, np.inf), null=0, note=note)


@frn.claim(
    "threshold",
    "FRN does not center, so the threshold of its activation has to be learned: TLU has a lower error than ReLU.",
    criterion="test error of FRN with ReLU less that of FRN with TLU, at least half a point",
)
def _(table):
    error = test_errors(table)
    return judge_effect("points of error, ReLU less TLU", error[RELU] - error[FRN], claimed=(0.5, np.inf), null=0)


@frn.claim(
    "no-batch",
    "FRN's outputs depend neither on the other images of a batch nor on the mode.",
    criterion="in float64 the outputs of the trained network for 64 images together, two by two, and in evaluation agree to 1e-12 "
    "of the largest, in all arms with FRN",
)
def _(table):
    runs = table[table.arm.isin([FRN, RELU, WARM])].dropna(subset=["coupling"])
    apart = runs[["coupling", "modes"]].max(axis=1)
    seen = table[table.arm == LARGE]
    note = f"batch norm: {number(seen.coupling.median())} between batches, {number(seen.modes.median())} between modes"
    return at_most(1e-12, apart, "gap of outputs", note)


@frn.claim(
    "warm-up",
    "FRN with TLU needs a warm-up of the learning rate.",
    criterion="each at its best rate, test error without warm-up less that with one over the first tenth of the steps, at least "
    "half a point",
    by="notes",
)
def _(table):
    error = test_errors(table)
    at = table[table.rate == table.rate.max()].groupby("arm").held_out_error.median()
    note = f"held-out error at the largest rate: {at.get(FRN, np.nan):.1f} % without, {at.get(WARM, np.nan):.1f} % with"
    return judge_effect("points of error that warm-up saves", error[FRN] - error[WARM], claimed=(0.5, np.inf), null=0, note=note)
