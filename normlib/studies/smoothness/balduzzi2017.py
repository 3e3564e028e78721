"""Balduzzi et al. (2017), The shattered gradients problem: are the gradients of a random network alike at neighboring inputs?"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from normlib.lab import Config, Drawing, Study, judge_effect, number
from normlib.networks.blocks import WeightLayers, preactivation
from normlib.networks.residual_blocks import ResidualBlock
from normlib.probes import autocorrelation, sample_jacobians
from normlib.residual import Join
from normlib.studies.common.arms import side_by_side
from normlib.studies.common.looks import BLUE, GRAY, INK, SKY, median_and_band, note, subplots
from normlib.studies.common.statements import normal
from normlib.surgery import reestimate_statistics

NETWORKS = {"plain": "-", "residual": "--", "residual, branch × 0.1": ":"}
LAGS = 30  # rows of a record: lags 0 ... 29, and as many neighboring inputs

shattered = Study(
    "balduzzi2017.shattered",
    item="§2",
    title="Shattered gradients: in one dimension plain networks have them with batch norm, not without",
    kind="init",
    vary={"network": list(NETWORKS), "norm": ["none", "batch"], "depth": [2, 5, 10, 24, 50]},
    quick={"points": 64, "width": 30, "depth": [2, 8]},
    laptop={"points": 256, "width": 200},
    full=None,
    seeds={"quick": 1, "laptop": 8},
)


def build(network: str, norm: str, depth: int, width: int, seed: int) -> nn.Sequential:
    """Build a network of one input and one output, `depth` hidden layers: stem, body, norm and ReLU, head. He's weights.

    The stem is linear and alone has biases, random ones, so that without norms its kinks lie all over the line. Each layer of the
    body is norm, ReLU, linear; a residual network adds what went in. So plain and residual ones differ in the shortcuts alone.
    """
    weights = WeightLayers("he", seed)
    stem = weights(nn.Linear, 1, width)
    stem.bias.data.copy_(2**0.5 * normal(seed, width))  # type: ignore[operator]  # as large as its weights
    body: list[nn.Module] = []
    for _ in range(depth - 1):
        layer, before = weights(nn.Linear, width, width, bias=False), preactivation(width, norm, "relu")
        body.append(nn.Sequential(before, layer) if network == "plain" else ResidualBlock(layer, None, before, nn.Identity()))
        if "×" in network:
            body[-1].join = Join(branch_scale=0.1)
    return nn.Sequential(stem, nn.Sequential(*body), preactivation(width, norm, "relu"), weights(nn.Linear, width, 1))


def on_the_line(network: nn.Sequential, x: Tensor) -> tuple[Tensor, float]:
    """Return the derivative of the output at each input, and the share of the last hidden units that switch between the inputs.

    Batch norm takes its statistics from all inputs once, and holds them: so every output has a gradient of its own.
    """
    network = network.to(x)
    if any(getattr(module, "track_running_stats", False) for module in network.modules()):
        reestimate_statistics(network, [x])
    network.eval()
    gradient = sample_jacobians(network, x, coupled=False).flatten()
    with torch.no_grad():
        active = network[:3](x) > 0
    return gradient, float((active.any(0) & ~active.all(0)).double().mean())


@shattered.trial
def _(c: Config, seed: int):
    x = torch.linspace(-2, 2, c.points, dtype=torch.float64, device=c.device)[:, None]
    gradient, switching = on_the_line(build(c.network, c.norm, c.depth, c.width, seed), x)
    noise = normal(seed + 1000, c.points)
    shown = slice(c.points // 2 - LAGS // 2, c.points // 2 + LAGS // 2)
    sequences = {"gradient": gradient, "white": noise, "brown": noise.cumsum(0)}
    return {
        "lag": list(range(LAGS)),
        "x": x[shown].flatten().tolist(),
        **{name: ((g - g.mean()) / g.std())[shown].tolist() for name, g in sequences.items()},
        **{f"{name}_correlation": autocorrelation(g, LAGS - 1) for name, g in sequences.items()},
        "switching": switching,
    }


# ---------------------------------------------------------------------------------------------------------------------------
# What is read from the table
# ---------------------------------------------------------------------------------------------------------------------------


def at_lag(table, lag: int, column: str = "gradient_correlation"):
    """Return a column of the deepest networks at one lag: a row a seed, a column a network and norm."""
    return side_by_side(table, ["network", "norm"], column, lag=lag, depth=table.depth.max())


@shattered.draw
def _(table):
    figure, (traces, lags, depths) = subplots(1, 3, height=3.5, gridspec_kw={"width_ratios": [1.1, 1, 1]})
    deepest = table.depth.max()
    deep = table[table.depth == deepest]
    arms = {("plain", "none"): GRAY, ("plain", "batch"): BLUE, ("residual", "batch"): SKY}
    names = ["plain", "plain, BN", "residual, BN", "white noise", "brown noise"]
    first = deep[deep.seed == deep.seed.min()]
    lines = [(first[(first.network == net) & (first.norm == norm)], "gradient", color) for (net, norm), color in arms.items()]
    lines += [(lines[0][0], noise, INK) for noise in ("white", "brown")]
    for row, (run, column, color) in enumerate(lines):
        spread = run[column].max() - run[column].min()
        traces.plot(run.x, -1.8 * row + (run[column] - run[column].mean()) / spread, color=color, linewidth=1.2)
        note(traces, names[row], 0.02, -1.8 * row + 0.62, transform=traces.get_yaxis_transform(), fontsize=8.5, color=color)
    traces.set(yticks=[], xlabel="input", ylim=(-1.8 * 4 - 0.7, 1.15))
    for network, style in NETWORKS.items():
        for norm, color in (("none", GRAY), ("batch", BLUE)):
            arm = table[(table.network == network) & (table.norm == norm)]
            label = f"{network}, {'BN' if norm == 'batch' else 'no BN'}"
            median_and_band(
                lags, arm[arm.depth == deepest], "lag", "gradient_correlation", color=color, linestyle=style, label=label
            )
            median_and_band(depths, arm[arm.lag == 1], "depth", "gradient_correlation", color=color, linestyle=style, marker="o")
    for noise in ("white", "brown"):
        line = deep.groupby("lag")[f"{noise}_correlation"].median()
        lags.plot(line.index, line, color=INK, linewidth=0.9)
        depths.axhline(line[1], color=INK, linewidth=0.9)
    lags.set(xlim=(0, 15), ylim=(-0.2, 1.05), xlabel="lag", title=f"{deepest} layers", ylabel="autocorrelation")
    depths.set(xscale="log", ylim=(-0.2, 1.05), xlabel="hidden layers", title="lag 1")
    depths.set_xticks(sorted(table.depth.unique()), [str(depth) for depth in sorted(table.depth.unique())])
    depths.xaxis.set_minor_locator(NullLocator())
    figure.legend(*lags.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    one = at_lag(table, 1).median()
    switching = at_lag(table, 1, "switching").median()
    return Drawing(
        figure,
        caption=f"Derivative of the output of random networks in their one input, at {table.points.iloc[0]} inputs from −2 to 2; "
        "batch norm takes its statistics from all of them and holds them in the derivative. Left: "
        f"{deepest} hidden layers, a piece of the line, each in its own units. Middle: autocorrelation; the thin lines are brown "
        f"and white noise. At lag 1 it is {number(one[('plain', 'none')])} in plain networks, {number(one[('plain', 'batch')])} "
        f"with BN, {number(one[('residual', 'batch')])} in residual ones with BN (medians over seeds). Right: lag 1 against "
        f"depth. The share of the last hidden units that switch on the line is {number(switching[('plain', 'none')])} in plain "
        f"networks and {number(switching[('plain', 'batch')])} with BN.",
        alt="Left: pieces of gradients of three networks, and of white and brown noise, along the input. Middle: autocorrelation "
        "against lag for six arms between two noises. Right: autocorrelation at lag 1 against depth.",
    )


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


@shattered.claim(
    "plain-with-bn",
    "In a deep plain network with batch norm the gradients at neighboring inputs are uncorrelated, as in white noise.",
    criterion="autocorrelation at lag 1 of the deepest plain networks with BN between −0.1 and 0.1",
)
def _(table):
    return judge_effect("autocorrelation at lag 1", at_lag(table, 1)["plain", "batch"], claimed=(-0.1, 0.1), null=1)


@shattered.claim(
    "plain-without-bn",
    "In a deep plain network without batch norm the gradients at neighboring inputs are uncorrelated as well.",
    criterion="autocorrelation at lag 1 of the deepest plain networks without BN between −0.1 and 0.1",
)
def _(table):
    said = "He's weights, biases in the first layer alone, inputs of one dimension"
    return judge_effect("autocorrelation at lag 1", at_lag(table, 1)["plain", "none"], claimed=(-0.1, 0.1), null=1, note=said)


@shattered.claim(
    "residual-resists",
    "Residual networks with batch norm resist: their gradients stay closer to brown noise than to white.",
    criterion="lag 1, deepest residual networks with BN: (theirs − white) / (brown − white), noise of the same seed, at least 0.5",
)
def _(table):
    white, brown = (at_lag(table, 1, f"{noise}_correlation")["residual", "batch"] for noise in ("white", "brown"))
    place = (at_lag(table, 1)["residual", "batch"] - white) / (brown - white)
    return judge_effect("place between white (0) and brown (1)", place, claimed=(0.5, np.inf), null=0)


@shattered.claim(
    "small-branches",
    "Branches scaled down by a constant, here 0.1, make residual networks with batch norm resist more.",
    criterion="autocorrelation at lag 5 of the deepest with factor 0.1 less that without: at least 0.1",
)
def _(table):
    found = at_lag(table, 5)
    gain = found["residual, branch × 0.1", "batch"] - found["residual", "batch"]
    return judge_effect("gain at lag 5", gain, claimed=(0.1, np.inf), null=0)


@shattered.claim(
    "switching",
    "Without batch norm at most half as many of the last hidden units switch on this line as with it.",
    criterion="deepest plain networks, share of units both on and off among the inputs, without BN over with it: at most 0.5",
    by="notes",
)
def _(table):
    share = at_lag(table, 1, "switching")
    ratio = share["plain", "none"] / share["plain", "batch"]
    said = f"shares {number(share['plain', 'none'].median())} and {number(share['plain', 'batch'].median())}"
    return judge_effect("ratio of the shares", ratio, claimed=(0, 0.5), null=1, note=said)
