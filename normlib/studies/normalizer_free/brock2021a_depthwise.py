"""Brock, De & Smith (2021), their last experiments: normalizer-free networks with grouped and depthwise convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlib.data import Dataset
from normlib.lab import Config, Diverged, Drawing, Study, judge_effect, number
from normlib.networks import ResNet
from normlib.probes import channel_power, reduce_activations
from normlib.studies.common.arms import images_for, population_accuracy, side_by_side
from normlib.studies.common.looks import GRAY, INK, median_and_band, norm_color, note, subplots
from normlib.studies.common.tuning import at_ends, ends_in_words, rates_in_words, tuned
from normlib.studies.normalizer_free.tricks import FULL, LAPTOP, QUICK, RECIPE, fit, resnet

SIZES = {"depthwise": 1, "grouped": 8, "full": None}  # input channels of one 3×3 filter
ARMS = {"batch": "batch norm", "nf": "NF", "spared": "NF, 3×3 spared"}
LOOKS = {"batch": (norm_color("batch"), "-"), "nf": (norm_color("scaled_weight"), "-"), "spared": (GRAY, "--")}
IMAGES = 64  # that go through the untrained network

depthwise = Study(
    "brock2021a.depthwise",
    item="Table 3",
    title="Depthwise convolutions without normalizers: what standardizing nine weights takes away",
    kind="train",
    vary={"filters": list(SIZES), "arm": list(ARMS), "rate": [0.1, 0.3, 1.0, 3.0]},
    quick={**QUICK, "width": 4, "rate": [0.1, 0.3], "filters": ["depthwise", "full"], "steps": 6, "batch": 16},
    laptop={**LAPTOP, "stages": [1, 1], "width": 4, "test": 1_000, "steps": 70, "batch": 32},
    full={**FULL, "rate": [0.03, 0.1, 0.3, 1.0, 3.0], "steps": 8_000, "batch": 128},
)


def network(c: Config, images: Dataset, seed: int) -> ResNet:
    """Build a residual network of inverted units, whose 3×3 convolutions have filters as `c.filters` says.

    "spared" is the normalizer-free network but for these convolutions: they have He's weights, not standardized.
    """
    sized = Config({**c, "group_size": SIZES[c.filters]}, c.device)
    net = resnet(sized, images, "nf" if c.arm == "spared" else c.arm, seed, unit="inverted")
    for convolution in spatial(net).values() if c.arm == "spared" else []:
        parametrize.remove_parametrizations(convolution, "weight", leave_parametrized=False)
        with torch.no_grad():  # they were drawn with variance 1 / fan-in
            convolution.weight.mul_(2**0.5)
    return net


def spatial(net: ResNet) -> dict[str, nn.Conv2d]:
    """Return the 3×3 convolutions of the branches, by name."""
    found = {name: module for name, module in net.named_modules() if name.startswith("blocks.") and isinstance(module, nn.Conv2d)}
    return {name: module for name, module in found.items() if module.kernel_size == (3, 3)}


def kept(x: Tensor, convolution: nn.Conv2d) -> float:
    """Return the variance that a convolution puts out, over the squared length of a filter times the variance of its taps.

    It is 1, filter by filter, for inputs without correlation.
    """
    weight = convolution.weight.detach()
    out = F.conv2d(x, weight, None, convolution.stride, convolution.padding, 1, convolution.groups)
    taps = F.unfold(x, 3, padding=convolution.padding, stride=convolution.stride)  # type: ignore[arg-type]
    return channel_power(out).variance / (float(weight.square().flatten(1).sum(1).mean()) * channel_power(taps).variance)


def expected(x: Tensor, convolution: nn.Conv2d) -> float:
    r"""Return the expectation of `kept` over filters that are drawn normal and standardized.

    A standardized filter points in a random direction among those that sum to zero. With $\Sigma$ the covariance of its $N$ taps it
    keeps $(\operatorname{tr} \Sigma - 1^T \Sigma 1 / N) / (N - 1)$, and $1^T \Sigma 1$ is the variance of the sum of the taps.
    """
    taps = F.unfold(x, 3, padding=convolution.padding, stride=convolution.stride)  # type: ignore[arg-type]
    taps = taps.unflatten(1, (convolution.groups, -1))
    fan_in = taps.shape[2]
    total = channel_power(taps.sum(2)).variance  # the mean over groups
    trace = fan_in * channel_power(taps.flatten(1, 2)).variance
    return (trace - total / fan_in) / (fan_in - 1) / (trace / fan_in)


def uneven(x: Tensor, convolution: nn.Conv2d) -> float:
    """Return the standard deviation over channels of the variance that a convolution puts out, over its mean."""
    weight = convolution.weight.detach()
    variances = F.conv2d(x, weight, None, convolution.stride, convolution.padding, 1, convolution.groups).var((0, 2, 3))
    return float(variances.std(correction=0) / variances.mean())


def before_training(net: ResNet, images: Tensor, seed: int) -> dict[str, list]:
    """Measure each 3×3 convolution of an untrained network on images, and the first on the ReLU of noise without correlation."""
    layers = spatial(net)
    found = reduce_activations(net, images, lambda x: x.clone(), list(layers), sides=("input",), training=True)
    inputs = {call.partition("#")[0]: x for (call, _), x in found.items()}
    columns: dict[str, list] = {"block": list(range(len(layers)))}
    for name, measure in (("kept", kept), ("expected", expected), ("uneven", uneven)):
        columns[name] = [measure(inputs[layer], module) for layer, module in layers.items()]
    first = next(iter(layers.values()))
    generator = torch.Generator().manual_seed(1_000 + seed)
    noise = torch.randn(IMAGES, first.in_channels, *images.shape[2:], generator=generator).relu().to(images.device)
    return {**columns, "kept_noise": [kept(noise, first)] * len(layers)}


@depthwise.trial
def _(c, seed):
    images, tests = images_for(c, seed)
    net = network(c, images, seed)
    columns = before_training(net, images.x_train[:IMAGES], seed)
    run = fit(net, images, steps=c.steps, rate=c.rate, seed=seed, batch=c.batch)
    if run.diverged_at is not None:
        raise Diverged(f"the loss is not finite at step {run.diverged_at}", **columns)
    batches = list(images.x_train[:512].split(c.batch))
    return {
        **columns,
        "held_out": 100 * population_accuracy(net, batches, images.x_test, images.y_test),
        "accuracy": 100 * population_accuracy(net, batches, tests.x_test, tests.y_test),
    }


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return the test accuracy of each kind of filters and arm at its tuned rate, in percent: a row a seed."""
    return side_by_side(tuned(table, ["filters", "arm"], "held_out")[0], ["filters", "arm"], "accuracy")


def untrained(table: pd.DataFrame, column: str, arm: str = "nf") -> pd.DataFrame:
    """Return what was measured in an arm before training: a row a seed, a column a kind of filters and a block."""
    rows = table[table.arm == arm].drop_duplicates(["seed", "filters", "block"])
    return rows.pivot(index="seed", columns=["filters", "block"], values=column)


@depthwise.draw
def _(table):
    kinds = [kind for kind in SIZES if kind in set(table.filters)]
    figure, (left, right) = subplots(1, 2, height=2.9)
    at = {kind: place for place, kind in enumerate(kinds)}
    for kind in kinds:
        for column, face in (("kept", LOOKS["nf"][0]), ("kept_noise", "none")):
            values = untrained(table, column)[kind][0]
            left.plot([at[kind]] * len(values), values, "o", color=LOOKS["nf"][0], mfc=face, markersize=5)
        left.plot(at[kind], untrained(table, "expected")[kind][0].median(), "_", color=INK, markersize=22, zorder=1)
    note(left, "filled: images\nhollow: noise\nstrokes: expected, images", 0.97, 0.05, ha="right", fontsize=8.5)
    left.set(ylabel="variance kept by the first\n3 × 3 convolution, untrained", ylim=(0, 1.3))
    kept_runs, rates = tuned(table, ["filters", "arm"], "held_out")
    runs = kept_runs.drop_duplicates(["seed", "filters", "arm"]).assign(place=lambda rows: rows.filters.map(at))
    for arm, (color, dash) in LOOKS.items():
        line: dict[str, Any] = {"label": ARMS[arm], "linestyle": dash, "marker": "o", "markersize": 4}
        median_and_band(right, runs[runs.arm == arm], "place", "accuracy", color=color, **line)
    right.set(ylabel="test accuracy in %")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5, handlelength=3)
    for ax in (left, right):
        ax.set_xticks(range(len(kinds)), kinds)
        ax.set_xlim(-0.4, len(kinds) - 0.6)
    found, first = scores(table), untrained(table, "kept")
    gaps = {kind: number((found[kind].batch - found[kind].nf).median()) for kind in kinds}
    names = {(kind, arm): f"{kind} {ARMS[arm]}" for kind, arm in rates}
    ends = ends_in_words([names[arm] for arm in at_ends(table, ["filters", "arm"], rates)])
    said = ", ".join(f"{number(first[kind][0].median())} {kind}" for kind in kinds)
    one = table.iloc[0]
    return Drawing(
        figure,
        caption="Inverted residual units whose 3 × 3 filters see one channel (depthwise), eight (grouped), or all. **Left** Before "
        f"training, on a statistic batch of {IMAGES} images, the NF network keeps this share of the variance in its first 3 × 3 "
        f"convolution: {said}. **Right** Test accuracy after {one.steps} updates of an SGD batch of {one.batch} images, which is "
        "the statistic batch of batch norm while it trains. Batch norm is ahead of NF by these points, median of the differences "
        f"seed by seed: {', '.join(f'{gap} {kind}' for kind, gap in gaps.items())}. In the spared arm the 3 × 3 convolutions are "
        f"not standardized. {RECIPE}; rates from held-out images: {rates_in_words(rates, names)}{ends}. Networks with smaller "
        "filters have fewer parameters.",
        alt="Left: share of the variance that the first 3 × 3 convolution keeps, for depthwise, grouped and full filters, on "
        "images and on noise. Right: test accuracy for the same filters with batch norm, NF, and NF with these filters spared.",
    )


@depthwise.claim(
    "hurts",
    "With depthwise convolutions a normalizer-free network falls further behind batch norm than with full ones.",
    criterion="the test accuracy with batch norm less that of NF, each at its tuned rate, is with depthwise filters at least one "
    "point more than with full ones",
)
def _(table):
    gap = {kind: scores(table)[kind].batch - scores(table)[kind].nf for kind in ("depthwise", "full")}
    said = ", ".join(f"{number(values.median())} {kind}" for kind, values in gap.items())
    excess = gap["depthwise"] - gap["full"]
    return judge_effect("gap with depthwise less gap with full filters, in points", excess, claimed=(1, np.inf), null=0, note=said)


@depthwise.claim(
    "nine-weights",
    "Filters with so few weights should not be standardized: to spare them raises the accuracy by a point or more.",
    criterion="with depthwise filters, leaving these alone unstandardized raises the test accuracy of NF by at least one point, "
    "each at its tuned rate",
)
def _(table):
    found = scores(table)["depthwise"]
    return judge_effect("spared less NF, depthwise, in points", found.spared - found.nf, claimed=(1, np.inf), null=0)


@depthwise.claim(
    "expectation",
    "What a standardized filter keeps of the variance follows, in expectation, from the variances of its taps and of their sum.",
    criterion="NF before training, on images: the variance kept over its closed form, mean over blocks and kinds of filters, lies "
    "in 0.8 to 1.25",
    by="notes",
)
def _(table):
    ratio = (untrained(table, "kept") / untrained(table, "expected")).mean(axis=1, skipna=False)
    return judge_effect("variance kept / closed form", ratio, claimed=(0.8, 1.25), null=np.nan)


@depthwise.claim(
    "smooth",
    "Of images a standardized depthwise filter keeps at most half of the variance that a full one keeps.",
    criterion="NF before training, first 3 × 3 convolution: the share kept with depthwise over that with full filters is at most "
    "0.5",
    by="notes",
)
def _(table):
    first = untrained(table, "kept")
    ratio = first["depthwise"][0] / first["full"][0]
    return judge_effect("variance kept, depthwise / full", ratio, claimed=(0, 0.5), null=1)


@depthwise.claim(
    "not-the-count",
    "Nine weights are enough for noise without correlation: a standardized depthwise filter keeps of it what a full one does.",
    criterion="the same ratio, for the ReLU of noise that is independent from position to position, lies in 0.9 to 1.1",
    by="notes",
)
def _(table):
    first = untrained(table, "kept_noise")
    ratio = first["depthwise"][0] / first["full"][0]
    return judge_effect("variance kept of noise, depthwise / full", ratio, claimed=(0.9, 1.1), null=np.nan)


@depthwise.claim(
    "uneven",
    "Standardized depthwise filters leave the channels with more unequal variances than full ones do.",
    criterion="NF before training, on images, first 3 × 3 convolution: the standard deviation of the channels' variances over "
    "their mean is with depthwise filters at least twice that with full ones",
    by="notes",
)
def _(table):
    first = untrained(table, "uneven")
    ratio = first["depthwise"][0] / first["full"][0]
    return judge_effect("spread of variances, depthwise / full", ratio, claimed=(2, np.inf), null=1)
