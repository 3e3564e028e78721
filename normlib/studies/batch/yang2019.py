"""Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz (2019): what a wide layer with batch norm does to a gradient."""

from __future__ import annotations

import numpy as np

from normlib.lab import Drawing, Study, judge_effect, judge_identity, number
from normlib.networks import MLP
from normlib.probes import gradient_growth, growth_factor
from normlib.studies.batch.ioffe2015_jacobian import ACTIVATIONS, GAUSSIAN, law, noise
from normlib.studies.common.looks import INK, median_and_band, norm_color, note, subplots

growth = Study(
    "yang2019.growth",
    item="the factor √(π/(π − 1))",
    title="Batch norm makes the gradient grow on its way down, unless layers are linear and batches large",
    kind="init",
    vary={"activation": list(ACTIVATIONS), "norm": ["none", "batch"], "batch": [6, 8, 16, 64, 256]},
    quick={"batch": [6, 32, 128], "width": 128, "depth": 12},
    laptop={"width": 512, "depth": 24},
    full={"batch": [6, 8, 16, 64, 256, 1024], "width": 2048, "depth": 40},
    seeds={"quick": 1, "laptop": 3, "full": 5},
)
SKIPPED = 3  # layers at the bottom, where the inputs still look like the data
STYLES = {"identity": ":", "tanh": "--", "relu": "-"}


@growth.trial
def _(c, seed):
    init = GAUSSIAN[c.activation]
    net = MLP([c.width] * (c.depth + 2), activation=c.activation, norm=c.norm, init=init, bias=False, seed=seed).to(c.device)
    x, y = noise(2 * seed, c.batch, c.width).to(c.device), noise(2 * seed + 1, c.batch, c.width).to(c.device)
    layers = [f"blocks.{index}.layer" for index in range(c.depth)]
    squares = gradient_growth(net, lambda output, sent: (output * sent).sum(), x, y, layers, training=True)["squared_norm"]
    return {
        "layer": list(range(1, c.depth + 1)),
        "gradient": [(square / squares[-1]) ** 0.5 for square in squares],
        "factor": growth_factor(squares[SKIPPED:]).value ** 0.5,
        "law": law(c.activation),
    }


@growth.draw
def _(table):
    figure, (left, right) = subplots(1, 2, height=3.5)
    large = table[table.batch == table.batch.max()]
    top = large.layer.max()
    for activation, name in ACTIVATIONS.items():
        for norm in ("none", "batch"):
            runs = large[(large.activation == activation) & (large.norm == norm)]
            label = name + {"none": ", no norm", "batch": ", batch norm"}[norm]
            median_and_band(
                left, runs, "layer", "gradient", color=norm_color(norm), linestyle=STYLES[activation], marker="", label=label
            )
    layers = np.arange(1, top + 1)
    left.plot(layers, law("relu") ** (top - layers), ":", color=INK, linewidth=1.2)
    left.set(yscale="log", xlabel="layer", ylabel="norm of the gradient,\nrelative to the top layer")
    left.set_xticks(np.linspace(top / 4, top, 4).round().astype(int))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1.8)
    batches = np.geomspace(table.batch.min(), table.batch.max(), 60)
    first = table.drop_duplicates(["activation", "norm", "batch", "seed"])
    for activation, name in ACTIVATIONS.items():
        runs = first[(first.norm == "batch") & (first.activation == activation)]
        median_and_band(right, runs, "batch", "factor", color=norm_color("batch"), linestyle="none", marker="o")
        last = runs[runs.batch == runs.batch.max()].factor.median()
        right.annotate(name, (runs.batch.max(), last), (0, 6), textcoords="offset points", ha="right", fontsize=9)
        right.axhline(law(activation), color=INK, linewidth=0.8, linestyle=":")
    right.plot(batches, ((batches - 2) / (batches - 3)) ** 0.5, color=INK, linewidth=1)
    right.set(xscale="log", xlabel="examples in the batch", ylabel="growth per layer, batch norm")
    ticks = sorted(table.batch.unique())
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    note(right, "no dots: closed forms", 0.5, 0.93, fontsize=9)
    factor = large.groupby(["norm", "activation"]).factor.median()
    return Drawing(
        figure,
        caption="A random gradient sent down a stack before training. With batch norm its norm grows per layer by "
        f"{number(factor['batch', 'relu'])} (ReLU), {number(factor['batch', 'tanh'])} (tanh) and "
        f"{number(factor['batch', 'identity'])} (linear) in batches of {table.batch.max()}; the law for wide layers and large "
        f"batches, $\\sqrt{{E f'^2 / \\mathrm{{Var}} f}}$, gives {number(law('relu'))}, {number(law('tanh'))} and 1 (dotted on the "
        f"right). The same ReLU stack without a norm, at He's scale: {number(factor['none', 'relu'])}. Right: small batches add "
        "growth of their own; for linear layers it is $\\sqrt{(B-2)/(B-3)}$ (line).",
        alt="Left: norm of the gradient per layer, log scale, straight lines that rise toward the lower layers with batch norm. "
        "Right: growth per layer against batch size for linear, tanh and ReLU layers, with closed forms.",
    )


def _factor(table, activation, norm="batch"):
    runs = table[(table.batch == table.batch.max()) & (table.activation == activation) & (table.norm == norm)]
    return runs.groupby("seed").factor.first()


@growth.claim(
    "relu",
    "With batch norm and ReLU the gradient grows by √(π/(π − 1)) = 1.211 per layer at the start.",
    criterion="growth per layer within 2 % of 1.211 at the largest batch, interval over seeds",
)
def _(table):
    return judge_effect("growth per layer", _factor(table, "relu"), claimed=(1.187, 1.235), null=1)


@growth.claim(
    "near-linear",
    "Every nonlinearity makes gradients explode under batch norm; near-linear ones less.",
    criterion="growth per layer: ReLU above tanh, and tanh above linear, each by 0.02 or more (the smaller gap)",
)
def _(table):
    linear, tanh, relu = (_factor(table, activation) for activation in ACTIVATIONS)
    note = "of nonlinearities, tanh and ReLU are tried"
    return judge_effect("smaller gap", np.minimum(relu - tanh, tanh - linear), claimed=(0.02, np.inf), null=0, note=note)


@growth.claim(
    "preserved",
    "As the conjecture has it, a layer with batch normalization preserves the magnitude of the gradient on its way back.",
    criterion="growth per layer between 0.95 and 1.05 for tanh and for ReLU at the largest batch (the one further from 1)",
    by="ioffe2015",
)
def _(table):
    tanh, relu = _factor(table, "tanh"), _factor(table, "relu")
    worse = tanh.where((tanh - 1).abs() > (relu - 1).abs(), relu)
    return judge_effect("growth per layer", worse, claimed=(0.95, 1.05), null=np.nan)


@growth.claim(
    "law",
    "For linear, tanh and ReLU layers alike the growth is √(E f'² / Var f), in wide layers and large batches.",
    criterion="within 2 % for linear, tanh and ReLU at the largest batch, every seed",
    by="notes",
)
def _(table):
    runs = table[(table.batch == table.batch.max()) & (table.norm == "batch")]
    return judge_identity("largest relative distance from the law", (runs.factor / runs.law - 1).abs().max(), 0.02)


@growth.claim(
    "linear",
    "Linear layers are no exception in small batches: there the growth is √((B − 2)/(B − 3)).",
    criterion="within 3 % at every batch size, median over seeds",
    by="notes",
)
def _(table):
    runs = table[(table.activation == "identity") & (table.norm == "batch")]
    found = runs.groupby("batch").factor.median()
    expected = ((found.index - 2) / (found.index - 3)) ** 0.5
    return judge_identity("largest relative distance from √((B − 2)/(B − 3))", float((found / expected - 1).abs().max()), 0.03)


@growth.claim(
    "without",
    "The same ReLU stack without a norm, at He's scale, preserves the gradient.",
    criterion="growth per layer between 0.97 and 1.03 at the largest batch, interval over seeds",
    by="notes",
)
def _(table):
    return judge_effect("growth per layer", _factor(table, "relu", "none"), claimed=(0.97, 1.03), null=np.nan)
