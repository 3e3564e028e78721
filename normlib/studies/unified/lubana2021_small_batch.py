"""Sixteen images a batch, and three rules for the learning rate that goes with them (Lubana, Dick and Tanaka, 2021)."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.studies.common.arms import images_for, side_by_side
from normlib.studies.unified.ten import BATCH, FULL, LAPTOP, QUICK, cnn
from normlib.studies.unified.training_drawing import curves_and_speeds, failures_in_words, name
from normlib.studies.unified.training_runs import FAILURE, run_of

RATE = 0.1  # the paper's, at batch 256
RULES = ["linear", "kept", "code"]
WORDS = {"linear": "× B/256", "kept": "kept", "code": "× 256/B"}
ARMS = ["batch", "layer", "instance", "group", "evonorm_s0", "scaled_weight"]

small_batch = Study(
    "lubana2021.small_batch",
    item="training at batch 16",
    title="At batch 16 the rule for the learning rate decides who trains",
    kind="train",
    vary={"rule": RULES, "norm": ARMS},
    quick={**QUICK, "train": 256, "layers": 5, "width": 4, "steps": 12, "batch": 16, "norm": ["batch", "layer", "instance"]},
    laptop={**LAPTOP, "width": 8, "validation": 256, "test": 1_000, "steps": 120, "batch": 16},
    full={**FULL, "steps": 28_000, "batch": 16},
)


def rate_at(rule: str, batch: int) -> float:
    """Return the rate for a batch: in proportion ("linear"), as it is ("kept"), or in inverse proportion ("code").

    The comment in the authors' code speaks of linear scaling; its formula is the inverse.

    Example:
        >>> rate_at("linear", 16), rate_at("code", 16)
        (0.00625, 1.6)
    """
    return RATE * {"linear": batch / BATCH, "kept": 1.0, "code": BATCH / batch}[rule]


@small_batch.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    return run_of(cnn(c, images, c.norm, seed), images, tests, c, rate_at(c.rule, c.batch), seed)


@small_batch.draw
def _(table):
    batch = int(table.batch.iloc[0])
    titles = {rule: f"{WORDS[rule]}: {number(rate_at(rule, batch))}" for rule in RULES}
    figure = curves_and_speeds(table, "rule", titles, ARMS, ARMS)
    runs = table.drop_duplicates(["rule", "norm", "seed"])
    lines = [f"{titles[rule]}: {failures_in_words(runs[runs.rule == rule])}" for rule in RULES]
    return Drawing(
        figure,
        caption=f"Normalizers with runs that fail in the plain network, {runs.seed.nunique()} seeds each, by the rate. "
        f"{'; '.join(lines)}. A run {FAILURE}. **Left** The linear rule. **Middle** The rate of the large batch. **Right** The "
        "rule that the authors' code computes. **Top** Training accuracy, in the colors of the rows below. **Bottom** Its mean "
        f"over the run; a mark is a seed, dark crosses failed. SGD batch and statistic batch {batch}; rates are not tuned.",
        alt="Top: training accuracy against the step at batch 16 under three rules for the rate, six normalizers. Bottom: its mean "
        "over the run for each normalizer and seed; failed runs are crosses.",
    )


def _failures(table):
    """Return how many normalizers fail: a row a seed, a column a rule."""
    return side_by_side(table, ["rule", "norm"], "failed").T.groupby("rule").sum().T


@small_batch.claim(
    "instance",
    "At the small batch instance norm is the least stable of the six in the network without shortcuts.",
    criterion="by the linear rule its largest setback (rise of the loss, mean over four steps, above the lowest before; infinite "
    "if it diverges) exceeds the largest of the five others",
)
def _(table):
    setbacks = side_by_side(table, "norm", "setback", rule="linear")
    others = setbacks.drop(columns="instance")
    worst = ", ".join(sorted({name(key) for key in others.idxmax(axis=1)}))
    said = f"instance norm {number(setbacks['instance'].median())}; largest of the others: {worst}"
    said += "; a run that has learned little has little to lose"
    gaps = setbacks["instance"] - others.max(axis=1)
    return judge_effect("setback, instance norm minus the largest other", gaps, claimed=(0, np.inf), null=0, note=said)


@small_batch.claim(
    "linear-trains",
    "By the linear rule, none of the six fails at the small batch.",
    criterion="no run with a loss that is not finite, or below 20 % training accuracy in the last quarter",
    by="notes",
)
def _(table):
    counts = _failures(table)["linear"]
    return judge_effect("normalizers that fail, of six", counts, claimed=(0, 0), null=np.nan)


@small_batch.claim(
    "rule-decides",
    "By the rule of the authors' code, more normalizers fail at the small batch than by the linear rule.",
    criterion="number of the six that fail by the rule of the code minus that by the linear rule, above 0",
    by="notes",
)
def _(table):
    counts = _failures(table)
    said = ", ".join(f"{number(counts[rule].median())} by {WORDS[rule]}" for rule in RULES)
    return judge_effect("more that fail, of six", counts["code"] - counts["linear"], claimed=(0, np.inf), null=0, note=said)
