"""Faults in adaptive gradient clipping: which norm, which gradients, which parameters, and when."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from normlib.gallery.fault import SOUND, Effect, Fault, Implementation
from normlib.gallery.samples import noise

LIMIT = 0.01  # the paper's default


def sound_clip(gradient: Tensor, weight: Tensor, clipping: float = LIMIT, eps: float = 1e-3) -> Tensor:
    """Clip each unit of a gradient, see `normlib.training.adaptive_clip`."""
    clipped: Tensor = SOUND["adaptive_clip"](gradient, weight, clipping, eps)
    return clipped


def scaled_down(gradient: Tensor, norm: Tensor, limit: Tensor) -> Tensor:
    """Bring what is longer than a limit to the limit."""
    return torch.where(norm > limit, gradient * (limit / norm), gradient)


def per_input(gradient: Tensor, weight: Tensor, clipping: float = LIMIT, eps: float = 1e-3) -> Tensor:
    """Take the norms over axis 0: a unit is what leaves an input."""
    limit = clipping * weight.norm(dim=0, keepdim=True).clamp(min=eps)
    return scaled_down(gradient, gradient.norm(dim=0, keepdim=True), limit)


def one_unit(clip: Implementation, outputs: int) -> float:
    """Return how far the clipped gradient of one unit passes the limit; the other units have none, all weights are 1."""
    weight, gradient = torch.ones(outputs, 4, dtype=torch.float64), torch.zeros(outputs, 4, dtype=torch.float64)
    gradient[0] = 1.0
    return float(clip(gradient, weight)[0].norm() / (LIMIT * weight[0].norm()))


def check_per_input(clip: Implementation) -> float:
    """The gradient of each row is at most the limit times the row."""
    gradient, weight = noise(8, 4), noise(8, 4, seed=1)
    return max(0.0, float((clip(gradient, weight).norm(dim=1) / weight.norm(dim=1)).max() / LIMIT - 1))


PER_INPUT = Fault(
    name="per_input",
    family="clipping",
    title="A unit is taken for a column of the weight, not for a row",
    seen="Axis 0 is the fan-in in the authors' framework, which stores (inputs, outputs); here it is the outputs.",
    symptom="It clips, and trains. A unit whose neighbors are quiet passes the limit, up to the root of their number.",
    wrong=per_input,
    right=sound_clip,
    check=check_per_input,
    bound=1e-6,
    effect=Effect("gradient of the unit, relative to its limit", "units in the layer", (1, 4, 16, 64, 256), one_unit, math.sqrt),
)


def without_floor(gradient: Tensor, weight: Tensor, clipping: float = LIMIT, eps: float = 1e-3) -> Tensor:
    """Allow a unit the limit times its norm, however small that is."""
    limit = clipping * weight.norm(dim=1, keepdim=True)
    return scaled_down(gradient, gradient.norm(dim=1, keepdim=True), limit)


def check_without_floor(clip: Implementation) -> float:
    """A unit that starts at zero moves: its clipped gradient is the limit times eps."""
    clipped = clip(noise(1, 4), torch.zeros(1, 4, dtype=torch.float64), eps=0.5)
    return abs(float(clipped.norm()) / (LIMIT * 0.5) - 1)


def unit_from_zero(clip: Implementation, steps: int) -> float:
    """Return the norm of a unit after some steps from zero at rate 1, under a constant gradient."""
    weight = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(steps):
        weight = weight - clip(torch.ones_like(weight), weight)
    return float(weight.norm())


WITHOUT_FLOOR = Fault(
    name="without_floor",
    family="clipping",
    title="The norm of the weights has no floor",
    seen="eps read as a guard against division by zero, and left out where nothing is divided by the weights.",
    symptom="Layers that start at zero, such as the last of each branch, stay at zero for ever.",
    wrong=without_floor,
    right=sound_clip,
    check=check_without_floor,
    bound=1e-6,
    effect=Effect("norm of the unit", "steps", (0, 1, 10, 100), unit_from_zero, lambda steps: 0.0),
)


def reversed_condition(gradient: Tensor, weight: Tensor, clipping: float = LIMIT, eps: float = 1e-3) -> Tensor:
    """Rescale the gradients below the limit and leave those above it."""
    norm = gradient.norm(dim=1, keepdim=True)
    limit = clipping * weight.norm(dim=1, keepdim=True).clamp(min=eps)
    return torch.where(norm > limit, gradient, gradient * (limit / norm.clamp(min=1e-6)))


def relative_to_limit(clip: Implementation, ratio: float) -> float:
    """Return the norm of a clipped gradient, for a given norm before; both relative to the limit."""
    weight = torch.ones(1, 4, dtype=torch.float64)
    return float(clip(ratio * LIMIT * weight, weight).norm() / (LIMIT * weight.norm()))


def check_reversed_condition(clip: Implementation) -> float:
    """A gradient of half the limit passes as it is."""
    return abs(relative_to_limit(clip, 0.5) - 0.5)


REVERSED_CONDITION = Fault(
    name="reversed_condition",
    family="clipping",
    title="The condition is reversed: small gradients are scaled up, large ones pass",
    seen="A comparison the wrong way round: reported, and mended, in a public port.",
    symptom="Every unit moves by at least the limit, at the end of training too; the steps that it should tame it leaves.",
    wrong=reversed_condition,
    right=sound_clip,
    check=check_reversed_condition,
    bound=1e-6,
    effect=Effect(
        "gradient after clipping, relative to its limit",
        "gradient before, relative to its limit",
        (0.1, 0.5, 1, 2, 10),
        relative_to_limit,
        lambda ratio: max(ratio, 1.0),
    ),
)


def clip_with_decay(gradient: Tensor, weight: Tensor, decay: float) -> Tensor:
    """Clip the sum of gradient and weight decay."""
    return sound_clip(gradient + decay * weight, weight)


def clip_then_decay(gradient: Tensor, weight: Tensor, decay: float) -> Tensor:
    """Clip the gradient, then add the weight decay, as an optimizer does in its step."""
    return sound_clip(gradient, weight) + decay * weight


def decay_left(direction: Implementation, ratio: float, decay: float = 1e-3) -> float:
    """Return the share of the weight decay that is left, for a gradient orthogonal to the weights of a given relative norm."""
    weight, gradient = torch.tensor([[1.0, 0.0], [0.0, ratio]], dtype=torch.float64).split(1)
    return float(direction(gradient, weight, decay)[0, 0] / decay)


def check_clip_with_decay(direction: Implementation) -> float:
    """A large gradient takes nothing from the weight decay."""
    return abs(decay_left(direction, 1.0) - 1)


CLIP_WITH_DECAY = Fault(
    name="clip_with_decay",
    family="clipping",
    title="Weight decay is clipped with the gradient",
    seen="The order of two lines, in an optimizer that clips inside its step.",
    symptom="Weight decay fades where gradients are large, so both must be tuned anew together.",
    wrong=clip_with_decay,
    right=clip_then_decay,
    check=check_clip_with_decay,
    bound=1e-6,
    effect=Effect(
        "share of the weight decay that is left",
        "gradient, relative to the weights",
        (0.001, 0.01, 0.1, 1, 10),
        decay_left,
        lambda ratio: min(1.0, LIMIT / math.hypot(ratio, 1e-3)),
    ),
)


def by_module_name(model: nn.Module, exempt: str) -> list[nn.Parameter]:
    """Collect the parameters of every module whose name does not contain the exempt one, the root among them."""
    found = [parameter for name, module in model.named_modules() if exempt not in name for parameter in module.parameters()]
    return list(dict.fromkeys(found))


def sound_choice(model: nn.Module, exempt: str) -> list[nn.Parameter]:
    """Collect the parameters outside a module, see `normlib.training.parameters_except`."""
    chosen: list[nn.Parameter] = SOUND["parameters_except"](model, exempt)
    return chosen


def with_head() -> tuple[nn.Module, nn.Linear]:
    """Build a network whose classifier is named head, with weights 1; return both."""
    body, head = nn.utils.skip_init(nn.Linear, 4, 4), nn.utils.skip_init(nn.Linear, 4, 3, dtype=torch.float64)
    nn.init.ones_(head.weight)
    return nn.Sequential(OrderedDict(body=body, head=head)), head


def check_by_module_name(choose: Implementation) -> float:
    """No parameter of the classifier is among those to clip."""
    model, head = with_head()
    return len(set(head.parameters()) & set(choose(model, "head")))


def head_gradient(choose: Implementation, ratio: float) -> float:
    """Return the share of the classifier's gradient that is left, for a given norm relative to the weights."""
    model, head = with_head()
    head.weight.grad = torch.full_like(head.weight, ratio)
    SOUND["adaptive_clip_grad_"](choose(model, "head"), LIMIT)
    return float(head.weight.grad.norm() / torch.full_like(head.weight, ratio).norm())


BY_MODULE_NAME = Fault(
    name="by_module_name",
    family="clipping",
    title="The classifier is exempt by name, and comes back in through the root module",
    seen="A walk over named_modules(): the root has the empty name, which contains no other, and all parameters.",
    symptom="None: the option is accepted. The classifier is clipped, which the method warns of.",
    wrong=by_module_name,
    right=sound_choice,
    check=check_by_module_name,
    bound=0,
    effect=Effect(
        "share of the classifier's gradient that is left",
        "gradient, relative to the weights",
        (0.001, 0.01, 0.1, 1, 10),
        head_gradient,
        lambda ratio: min(1.0, LIMIT / ratio),
    ),
)
