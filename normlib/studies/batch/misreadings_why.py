"""What the drafts say of why batch normalization works, or in passing: each tried in a network of one or two layers.

The cause that is alleged is changed, and the effect is watched: gradients made unequal, a network made deeper, a sign turned round.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normlib.lab import Drawing, Study
from normlib.layers import batch_norm
from normlib.studies.common.statements import at_most, dots, gap, normal

STEPS, RATE = 100, 0.5  # of gradient descent, where moments are watched
UNEVEN = 10.0  # by how much weights are scaled against each other: gradients then differ by its square

why = Study(
    "notes.misreadings_why",
    item="the drafts on the reasons",
    title="What is easily misread in the reasons: what vanishes, what is fixed, what shifts, what the update is made of",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@why.trial
def _(c, seed):
    weights = normal(seed, 12)
    partials = torch.stack([torch.cat([weights[:i], weights[i + 1 :]]).prod() for i in range(12)])
    return {
        "either_sign_will_do": effect_of_the_sign(seed),
        "bias_below_learns_nothing": gradient_of_the_bias(seed),
        "vanishes_far_out": float(slope(8.0) / slope(0.0)),
        "slope_at_2": gap(slope(2.0), 0.105),
        "fixes_what_the_next_layer_receives": largest_move(seed),
        "unequal_gradients_are_shift": missing_shift(seed),
        "deeper_means_higher_order": float(gap(torch.func.grad(torch.prod)(weights), partials) <= 1e-10),
    }


def effect_of_the_sign(seed):
    """Descend with the mean held constant, then climb; return how far the biases are from mirror images, or the loss has moved."""
    u = normal(seed, 64)
    (down, losses), (up, others) = (follow(u, rate) for rate in (0.1, -0.1))
    return max(gap(down, -up), gap(losses, losses[0]), gap(others, losses[0]))


def follow(u, rate):
    """Move b by -rate times a gradient that takes the mean of u + b for a constant; return b and the loss before each step."""
    b, biases, losses = torch.zeros((), dtype=u.dtype), [], []
    for _ in range(STEPS):
        x_hat = u + b - (u + b).mean()
        biases.append(b)
        losses.append((x_hat - 1).square().mean())
        b = b - rate * 2 * (x_hat - 1).mean()
    return torch.stack(biases), torch.stack(losses)


def gradient_of_the_bias(seed):
    """Return the largest gradient of a bias below batch norm, relative to that of the weights."""
    x, weight, labels = normal(seed, 32, 6), normal(seed + 1, 6, 4), torch.arange(32) % 4

    def loss(weight, bias):
        return F.cross_entropy(batch_norm(x @ weight + bias), labels)

    of_weight, of_bias = torch.func.grad(loss, (0, 1))(weight, normal(seed + 2, 4))
    return float(of_bias.abs().max() / of_weight.abs().max())


def slope(x):
    """Return the slope of a sigmoid, by automatic differentiation."""
    return torch.func.grad(torch.sigmoid)(torch.tensor(x, dtype=torch.float64))


def largest_move(seed):
    """Train a layer with batch norm, scale and shift; return the largest move of a mean or a deviation of what it hands on."""
    x, teacher = normal(seed, 256, 16), normal(seed + 1, 16, 4)
    labels = (x @ teacher).argmax(1)
    ones = torch.ones(32, dtype=x.dtype)
    parameters = [normal(seed + 2, 16, 32) / 4, ones, 0 * ones, normal(seed + 3, 32, 4) / 32**0.5]

    def handed_on(weight, scale, shift, _):
        return batch_norm(x @ weight, scale, shift)

    def loss(parameters):
        return F.cross_entropy(handed_on(*parameters).relu() @ parameters[3], labels)

    before = handed_on(*parameters)
    for _ in range(STEPS):
        parameters = [p - RATE * g for p, g in zip(parameters, torch.func.grad(loss)(parameters), strict=True)]
    after = handed_on(*parameters)
    means, deviations = (after.mean(0) - before.mean(0)).abs(), (after.std(0) / before.std(0) - 1).abs()
    return float(torch.maximum(means, deviations).max())


def gradients_and_shift(seed, unevenness):
    """Take one small step in a ReLU network of two layers whose weights are scaled against each other, the function unchanged.

    Args:
        seed: of weights and data.
        unevenness: the weights below times this, those above divided by it; at 1 both gradients have one length.

    Returns:
        The gradient's length above over that below, and how far the means move that the upper layer receives, in deviations.
    """
    x, labels = normal(seed, 256, 16), torch.arange(256) % 4
    below, above = normal(seed + 1, 16, 32) / 8**0.5, normal(seed + 2, 32, 4) / 32**0.5

    def loss(below, above):
        return F.cross_entropy((x @ below).relu() @ above, labels)

    gradient = torch.func.grad(loss, (0, 1))
    lengths = [each.norm() for each in gradient(below, above)]
    scale = unevenness * (lengths[0] / lengths[1]).sqrt()
    below, above = scale * below, above / scale
    steps = gradient(below, above)
    before, after = (x @ below).relu(), (x @ (below - 1e-4 * steps[0])).relu()
    moved = (after.mean(0) - before.mean(0)) / before.std(0)
    return float(steps[1].norm() / steps[0].norm()), float(moved.square().mean().sqrt())


def missing_shift(seed):
    """Make gradients unequal in either direction; return what the lesser shift lacks of that with equal ones, as a share."""
    equal, larger_above, larger_below = (gradients_and_shift(seed, by)[1] for by in (1, UNEVEN, 1 / UNEVEN))
    return max(0.0, 1 - min(larger_above, larger_below) / equal)


@why.draw
def _(table):
    return Drawing(
        dots(why, table),
        caption="What is easily misread in the reasons. A dot is the distance between what is said and what is measured. Three "
        "rows are ours: either sign, the bias below, the slope at 2. The others are of two drafts, the short review and the notes "
        "on three layers. That a slope vanishes far out holds as a limit.",
        alt="A dot for each of seven statements on why batch norm works, on a log axis of the distance from what is said.",
    )


@why.claim(
    "either-sign-will-do",
    "The argument for a gradient through the mean holds with either sign of the step, which the review leaves open.",
    criterion="100 steps down and 100 steps up the gradient: biases mirror each other and the loss stays, relatively within 1e-10",
)
def _(table):
    return at_most(1e-10, table.either_sign_will_do, "largest relative difference")


@why.claim(
    "bias-below-learns-nothing",
    "The gradient of a bias below batch normalization is zero: the bias stays where it starts.",
    criterion="largest gradient of the bias at most 1e-10 of the largest of the weights",
)
def _(table):
    return at_most(1e-10, table.bias_below_learns_nothing, "gradient of the bias / of the weights")


@why.claim(
    "vanishes-far-out",
    "Except for small |x|, the gradient that flows down through a sigmoid vanishes.",
    criterion="taken as a limit, since no number is given: at |x| = 8 the slope is at most 1 % (our bound) of that at 0",
    by="seed003",
)
def _(table):
    return at_most(0.01, table.vanishes_far_out, "slope at 8 / slope at 0")


@why.claim(
    "slope-at-2",
    "At |x| = 2 the slope of a sigmoid is 0.105, more than two fifths of its largest.",
    criterion="relative difference at most 0.1 % from 0.105",
)
def _(table):
    return at_most(1e-3, table.slope_at_2, "relative difference from 0.105", "it shrinks there and has not vanished")


@why.claim(
    "fixes-what-the-next-layer-receives",
    "Batch normalization fixes the means and the variances of layer inputs.",
    criterion="after scale and shift, as the next layer receives it: in 100 steps of gradient descent no mean moves by more than "
    "0.1, and no standard deviation by more than 10 % (our bounds)",
    by="seed003",
)
def _(table):
    note = "before scale and shift they are fixed; with them, the mean is β and the deviation |γ|, and both are learned"
    return at_most(0.1, table.fixes_what_the_next_layer_receives, "largest move of a mean or a deviation", note)


@why.claim(
    "unequal-gradients-are-shift",
    "Gradients that are extremely large in some layers and not in others are covariate shift.",
    criterion="gradients of two layers made a hundred times as unequal, the function unchanged: what the upper layer receives "
    "moves no less in a step, whichever gradient is the larger",
    by="seed004",
)
def _(table):
    note = "a hundredth as far if the upper one is larger, a hundred times if the lower one is: the step below decides"
    return at_most(0.0, table.unequal_gradients_are_shift, "part of the shift that is gone", note)


@why.claim(
    "deeper-means-higher-order",
    "In a deeper network the update is computed from partial derivatives of higher order.",
    criterion="if so, the gradient of a product of 12 weights is not its first partial derivatives, the products of all the "
    "others, within 1e-10",
    by="seed004",
)
def _(table):
    note = "higher orders say what the update does, which the draft may mean, not what it is computed from"
    return at_most(0.0, table.deeper_means_higher_order, "1 if the gradient is those, else 0", note)
