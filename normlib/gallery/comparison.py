"""Faults of experiments: two arms that differ in more than the norm, or are not judged alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normlib.gallery.fault import SOUND, Effect, Fault, Implementation
from normlib.gallery.samples import average, every_sign, noise, spread
from normlib.layers.batch import BatchNorm
from normlib.layers.registry import make_norm

WIDTH, DEPTH = 16, 3
Arm = Callable[[float], float]  # learning rate to final loss


def sound_arm(norm: str, seed: int = 0) -> nn.Module:
    """Build an arm from the spec of its norm, see `normlib.networks.MLP`."""
    net: nn.Module = SOUND["mlp"]([WIDTH] * (DEPTH + 2), norm=norm, seed=seed)
    return net


def unit(norm: nn.Module, generator: torch.Generator) -> nn.Module:
    """Chain a linear layer, drawn from a generator, a norm and tanh."""
    layer = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, bias=False)
    nn.init.normal_(layer.weight, std=WIDTH**-0.5, generator=generator)
    return nn.Sequential(OrderedDict(layer=layer, norm=norm, activation=nn.Tanh()))


def one_norm_fewer(norm: str, seed: int = 0) -> nn.Module:
    """Write the arms out one by one, and forget a line in one of them."""
    if norm == "batch":
        norms: list[nn.Module] = [BatchNorm(WIDTH), BatchNorm(WIDTH), nn.Identity()]
    else:
        norms = [make_norm(norm, WIDTH) for _ in range(DEPTH)]
    generator = torch.Generator().manual_seed(seed)
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*[unit(norm, generator) for norm in norms])))


def check_one_norm_fewer(build: Implementation) -> float:
    """Two arms whose norms have as many parameters each have as many parameters in all."""
    batch, layer = (sum(parameter.numel() for parameter in build(norm).parameters()) for norm in ("batch", "layer"))
    return abs(batch - layer)


def spread_before_activation(build: Implementation, block: int) -> float:
    """Return the standard deviation of what enters the activation of a block of the arm with batch norm."""
    blocks = build("batch").get_submodule("blocks")
    h = noise(256, WIDTH).float()
    for earlier in list(blocks)[: block - 1]:
        h = earlier(h)
    return spread(list(blocks)[block - 1][:2](h))


ONE_NORM_FEWER = Fault(
    name="one_norm_fewer",
    family="comparison",
    title="One arm of the comparison has a norm layer fewer",
    seen="Arms that are written out one by one; reported in the issues of a study of batch against instance norm.",
    symptom="None. The arm is worse, or better, and the norm gets the credit.",
    wrong=one_norm_fewer,
    right=sound_arm,
    check=check_one_norm_fewer,
    bound=0,
    effect=Effect("standard deviation before the activation", "block", (1, 2, 3), spread_before_activation),
)


def shared_stream(norm: str, seed: int = 0) -> nn.Module:
    """Draw weights and gains in turn from one stream, as batch norm's gains were drawn from U(0, 1) before torch 1.2."""
    generator, blocks = torch.Generator().manual_seed(seed), nn.Sequential()
    for _ in range(DEPTH):
        blocks.append(unit(make_norm(norm, WIDTH), generator))
        for gain in blocks[-1].get_submodule("norm").parameters():
            nn.init.uniform_(gain, generator=generator)
    return nn.Sequential(OrderedDict(blocks=blocks))


def weights_in_common(build: Implementation, block: int) -> float:
    """Return the cosine between the weights of a block in two arms of the same seed, without a norm and with batch norm."""
    first, second = (list(build(norm).get_submodule("blocks"))[block - 1].layer.weight for norm in ("none", "batch"))
    return float((first * second).sum().detach() / (first.norm() * second.norm()).detach())


def check_shared_stream(build: Implementation) -> float:
    """At the same seed, the last blocks of two arms have the same weights."""
    return 1 - weights_in_common(build, DEPTH)


SHARED_STREAM = Fault(
    name="shared_stream",
    family="comparison",
    title="The norm takes its random numbers from the stream of the weights",
    seen="One global generator for weights, gains, dropout and the order of the data.",
    symptom="Arms of one seed share the first layer and nothing else: their difference is as noisy as that of two seeds.",
    wrong=shared_stream,
    right=sound_arm,
    check=check_shared_stream,
    bound=1e-6,
    effect=Effect("cosine between the weights of two arms", "block", (1, 2, 3), weights_in_common),
)


def descent(units: float) -> Arm:
    """Return the loss after 10 steps on ½(f − 1)², f = u·w from w = 0, as a function of the rate: an arm in units u."""
    return lambda rate: 0.5 * (1 - rate * units**2) ** 20


def at_one_rate(first: Arm, second: Arm) -> float:
    """Compare two arms at one learning rate."""
    return first(0.1) - second(0.1)


def at_own_rates(first: Arm, second: Arm) -> float:
    """Compare two arms, each at the best of a range of learning rates."""
    rates = [2.0**power for power in range(-8, 5)]
    return min(map(first, rates)) - min(map(second, rates))


def own_advantage(compare: Implementation, units: float) -> float:
    """Return by how much an arm is better than itself when its weight is counted in other units."""
    return compare(descent(1.0), descent(units))


def check_at_one_rate(compare: Implementation) -> float:
    """An arm is as good as itself with its weight counted in other units."""
    return abs(own_advantage(compare, 2.0))


AT_ONE_RATE = Fault(
    name="at_one_rate",
    family="comparison",
    title="All arms are trained at one learning rate",
    seen="A rate that was tuned for one arm, then kept fixed for a fair comparison.",
    symptom="What is compared is how well the rate fits each arm. Norms change the scale of the gradient, so they change the fit.",
    wrong=at_one_rate,
    right=at_own_rates,
    check=check_at_one_rate,
    bound=1e-9,
    effect=Effect(
        "advantage over itself in other units",
        "units",
        (0.25, 0.5, 1, 2, 4),
        own_advantage,
        lambda units: 0.5 * (0.9**20 - (1 - 0.1 * units**2) ** 20),
    ),
)


def best_of_curve(scores: Tensor) -> float:
    """Report the mean over seeds of the best score of each curve (seeds, looks)."""
    return average(scores.max(1).values)


def end_of_curve(scores: Tensor) -> float:
    """Report the mean over seeds of the last score of each curve (seeds, looks)."""
    return average(scores[:, -1])


def pure_chance(report: Implementation, looks: int) -> float:
    """Return what is reported over all curves of a given number of tosses, −1 or 1."""
    return report(every_sign(looks))


def check_best_of_curve(report: Implementation) -> float:
    """Reporting errors instead of accuracies tells the same story: the report of −s is minus the report of s."""
    scores = noise(8, 10)
    return abs(report(-scores) + report(scores))


BEST_OF_CURVE = Fault(
    name="best_of_curve",
    family="comparison",
    title="The best score of each test curve is reported",
    seen="max() over epochs of test accuracy; its relative is the mean of the best four of five runs.",
    symptom="Selection on test data: chance counts as progress, the more so the noisier the arm and the more looks it had.",
    wrong=best_of_curve,
    right=end_of_curve,
    check=check_best_of_curve,
    bound=1e-9,
    effect=Effect(
        "reported score of pure chance, in standard deviations",
        "looks at the test data",
        (1, 2, 4, 8),
        pure_chance,
        lambda looks: 1 - 2.0 ** (1 - looks),
    ),
)


def smaller_batches(x: Tensor, statistic_batch: int) -> list[Tensor]:
    """Make the batch of the statistics smaller by making the batch of the step smaller."""
    norm = BatchNorm(x.shape[1], dtype=x.dtype)
    return [norm(batch) for batch in x.split(statistic_batch)]


def ghost_batches(x: Tensor, statistic_batch: int) -> list[Tensor]:
    """Make the batch of the statistics smaller, and leave that of the step at 64."""
    norm = BatchNorm(x.shape[1], dtype=x.dtype, ghost=statistic_batch)
    return [norm(batch) for batch in x.split(64)]


def steps_in_epoch(epoch: Implementation, statistic_batch: int) -> float:
    """Return the number of steps of an epoch of 256 samples."""
    return len(epoch(noise(256, 1), statistic_batch))


def check_smaller_batches(epoch: Implementation) -> float:
    """The number of steps in an epoch does not depend on the batch of the statistics."""
    return abs(steps_in_epoch(epoch, 4) - steps_in_epoch(epoch, 64))


SMALLER_BATCHES = Fault(
    name="smaller_batches",
    family="comparison",
    title="The batch of the statistics is made smaller together with the batch of the step",
    seen="Batch sizes swept on one device; `wu2018` keep the two apart by the number of devices.",
    symptom="The noise of the statistics, that of the gradient, the number of steps and the rate that fits change at once.",
    wrong=smaller_batches,
    right=ghost_batches,
    check=check_smaller_batches,
    bound=0,
    effect=Effect("steps in an epoch", "batch of the statistics", (4, 8, 16, 32, 64), steps_in_epoch, lambda size: 256 / size),
)
