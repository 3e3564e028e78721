"""Reading notes on three papers (the draft `seed001`): the gradient with batch norm before training, layer by layer."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, number
from normlib.layers import batch_norm
from normlib.studies.common.looks import median_and_band, norm_color, note, subplots
from normlib.studies.common.statements import through_network

gradient = Study(
    "seed001.gradient",
    item="Section 4",
    title="Before training, batch norm makes the gradient larger, the more so the lower the layer",
    kind="init",
    vary={"norm": ["none", "batch"]},
    quick={"depth": 20, "width": 64},
    laptop={"depth": 20, "width": 128},
    full=None,
    seeds={"quick": 3, "laptop": 5},
)


@gradient.trial
def _(c, seed):
    normalize = batch_norm if c.norm == "batch" else lambda summed: summed
    gradients = through_network(normalize, seed, c.depth, c.width).weight_gradients
    return {"layer": list(range(1, c.depth + 1)), "length": [float(each.norm()) for each in gradients]}


@gradient.draw
def _(table):
    figure, axes = subplots(height=2.9)
    for norm, label in (("none", "no norm"), ("batch", "batch norm")):
        arm = table[table.norm == norm]
        median_and_band(axes, arm, "layer", "length", color=norm_color(norm), label=label, marker="o")
    axes.set(
        yscale="log",
        xlabel="hidden layer, from the input up",
        xticks=range(2, table.layer.max() + 1, 2),
        ylabel="length of the gradient\nof the weights",
    )
    axes.legend(loc="upper right")
    note(axes, "at initialization", 0.02, 0.03)
    return Drawing(
        figure,
        caption="Two drafts say that batch norm makes the gradient smaller. In a ReLU network at He's initialization it makes it "
        f"{number(_ratio(table).median())} times as long, and more so in the lower layers. Training is another matter: chapter 4.",
        alt="Length of the weight gradient against the hidden layer, log scale, with and without batch norm, at initialization. "
        "With batch norm it rises steadily toward the input.",
    )


def _ratio(table):
    """Return for each seed the length of the whole gradient with batch norm over that without."""
    whole = table.assign(square=table.length**2).groupby(["seed", "norm"]).square.sum().unstack()
    return np.sqrt(whole["batch"] / whole["none"])


@gradient.claim(
    "smaller",
    "With batch normalization the magnitude of the gradients is smaller, here: before training.",
    criterion="at He's initialization, 20 hidden ReLU layers: the gradient of all weights is shorter than without, for every seed",
)
def _(table):
    text = "before training only; the draft has training in mind, which chapter 4 will measure"
    return judge_effect("length of the gradient, batch norm / none", _ratio(table), claimed=(0, 1), null=1, note=text)
