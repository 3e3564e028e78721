"""The gallery of wrong implementations: every fault of batch normalization against the test that catches it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from normlib.gallery import FAULTS
from normlib.gallery.samples import noise
from normlib.lab import Drawing, Study, judge_identity, number
from normlib.studies.common.looks import BLUE, INK, SKY, VERMILION, WIDTH, Figure

FORMULA = [
    "per_position", "last_axis_affine", "last_axis_statistics", "affine_on_input", "one_pass_variance", "eps_on_std",
    "unbiased_forward",
]  # fmt: skip
GRADIENT = ["detached_statistics", "summed_gradient"]
WORKERS = ["worker_variances", "uncounted_workers"]
RUNNING = ["late_buffers", "graph_in_buffers", "biased_buffer", "reversed_momentum"]
MODES = ["never_updated", "updated_in_evaluation", "batch_in_evaluation", "mode_from_gradients"]
ONE_CLASS = ["per_position", "last_axis_affine", "late_buffers", "graph_in_buffers", "biased_buffer"]  # of the reading notes
USUAL_BOUND = 1e-3

batch = Study(
    "gallery.batch",
    item="19 mistakes",
    title="Nineteen wrong implementations of batch normalization, and a test that catches each",
    kind="exact",
    vary={"fault": [*FORMULA, *GRADIENT, *WORKERS, *RUNNING, *MODES]},
    quick={},
    laptop={},
    full=None,
    seeds={"quick": 1, "laptop": 1},  # the inputs are part of the tests
)


@batch.trial
def _(c, seed):
    fault = FAULTS[c.fault]
    wrong, right = fault.deviations()
    same_in_torch = IN_TORCH.get(fault.right.__name__)
    return {
        "wrong": wrong,
        "right": right,
        "bound": fault.bound,
        "torch": fault.check(same_in_torch) if same_in_torch else math.nan,
        "usual": usual_test(fault.wrong) if fault.right.__name__ in ("batch_norm", "BatchNorm") else math.nan,
    }


def torch_batch_norm(x, weight=None, bias=None, eps=1e-5):
    """Batch normalization in training by torch."""
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def torch_backward(x, gradient, eps=1e-5):
    """Go backward through torch's batch normalization."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(torch_batch_norm(x, eps=eps), x, gradient)[0]


IN_TORCH = {"batch_norm": torch_batch_norm, "BatchNorm": nn.BatchNorm1d, "differentiated": torch_backward}


def usual_test(implementation):
    """Run the test that comes to mind first: a batch of vectors, in training, comes out with mean 0 and deviation 1.

    Returns:
        The largest distance of a feature's mean from 0, or of its standard deviation from 1.
    """
    x = 3 + 2 * noise(64, 5)
    layer = implementation(5).double() if isinstance(implementation, type) else implementation
    y = layer(x).detach()
    return float(torch.maximum(y.mean(0).abs(), (y.std(0, correction=0) - 1).abs()).max())


SMALLEST = 1e-17  # where a deviation of exactly zero is drawn


@batch.draw
def _(table):
    table = table.set_index("fault").loc[batch.vary["fault"]]
    figure = Figure(figsize=(WIDTH, 0.95 + 0.27 * len(table)))
    axes = figure.subplots()
    for row, run in enumerate(table.itertuples()):
        axes.plot([max(run.bound, SMALLEST)] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.6, label="bound")
        axes.plot(max(run.right, SMALLEST), row, "o", color=BLUE, label="sound")
        axes.plot(max(run.torch, SMALLEST), row, "o", mfc="none", color=SKY, markersize=8, label="torch's own")
        axes.plot(max(run.wrong, SMALLEST), row, "D", color=VERMILION, label="faulty")
        said = "" if math.isnan(run.usual) else "passes" if run.usual <= USUAL_BOUND else "fails"
        at = ("axes fraction", "data")
        axes.annotate(said, (1.02, row), xycoords=at, va="center", fontsize=9, color=VERMILION if said == "passes" else BLUE)
    axes.annotate("usual test", (1.02, -1), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    star = {name: " *" if name in ONE_CLASS else "" for name in table.index}
    axes.set_yticks(range(len(table)), [name.replace("_", " ") + star[name] for name in table.index])
    axes.set(xscale="log", xlim=(SMALLEST / 3, 3e3), ylim=(len(table) - 0.4, -0.7), xlabel="deviation from the property tested")
    axes.set_xticks([SMALLEST, 1e-12, 1e-8, 1e-4, 1], ["0", "10⁻¹²", "10⁻⁸", "10⁻⁴", "1"])
    axes.xaxis.minorticks_off()
    axes.grid(False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend(first.values(), first.keys(), loc="outside upper center", ncols=4)
    tried = table.usual.dropna()
    return Drawing(
        figure,
        caption=f"Each fault against a test of its own. All {int(_caught(table).sum())} of {len(table)} faulty implementations lie "
        "beyond the bound of the test, and the sound ones within it; so do torch's own, where torch has a counterpart that is "
        "called alike. At the right, the test that comes to mind first: a training batch of vectors has mean 0 and deviation 1. "
        f"{int((tried <= USUAL_BOUND).sum())} of the {len(tried)} faults that it can be put to pass it. The five with a star stand "
        "in one class, that of the reading notes.",
        alt="One row for each of nineteen faults, on a log axis of the deviation: a diamond for the faulty implementation right of "
        "a tick for the bound, dots for the sound ones left of it.",
    )


def _caught(table):
    return (table.right <= table.bound) & ~(table.wrong <= table.bound)


@batch.claim(
    "caught",
    "Each test catches its fault and passes the sound implementation.",
    criterion="for every fault the deviation of the faulty implementation exceeds the bound of its test, and that of the sound "
    "one does not",
)
def _(table):
    closest = (table.wrong / table.bound.where(table.bound > 0)).min()
    note = f"of {len(table)} faults; the one nearest to its bound is {number(closest)} times beyond it"
    return judge_identity("faults that are not told apart", float((~_caught(table)).sum()), 0.0, note)


@batch.claim(
    "torch-passes",
    "The tests are no private convention: torch's own batch normalization passes those that it can be put to.",
    criterion="the deviation of torch's counterpart is within the bound of every test whose subject is called as in torch",
    by="notes",
)
def _(table):
    put = table[table.torch.notna()]
    note = f"{len(put)} of {len(table)} tests; for moments of several workers torch has no function that a CPU can run"
    return judge_identity("tests that torch fails", float((~(put.torch <= put.bound)).sum()), 0.0, note)


@batch.claim(
    "usual-test",
    "The test that comes to mind first, mean 0 and deviation 1 over a training batch of vectors, lets most of these faults pass.",
    criterion=f"at least three quarters of the faults that can be put to it deviate by at most {USUAL_BOUND:g}; a batch of 64",
    by="notes",
)
def _(table):
    put = table.usual.dropna()
    caught = ", ".join(table[table.usual > USUAL_BOUND].fault.str.replace("_", " "))
    note = f"{int((put <= USUAL_BOUND).sum())} of {len(put)} pass; caught: {caught or 'none'}"
    return judge_identity("share of the faults that it catches", float((put > USUAL_BOUND).mean()), 0.25, note)


@batch.claim(
    "five-in-one-class",
    "The five faults of one class, that of the reading notes, all pass the test that comes to mind first.",
    criterion=f"each of the five deviates by at most {USUAL_BOUND:g} on a batch of 64 vectors",
    by="notes",
)
def _(table):
    five = table[table.fault.isin(ONE_CLASS)]
    return judge_identity("largest deviation of the five", float(five.usual.max(skipna=False)), USUAL_BOUND)
