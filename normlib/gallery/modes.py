"""Faults in how batch normalization tells training from evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normlib.gallery.fault import Effect, Fault, Implementation
from normlib.gallery.running import Textbook, trained
from normlib.gallery.samples import average, largest, noise, standard
from normlib.layers.batch import BatchNorm, batch_moments, batch_norm


class NeverUpdated(Textbook):
    """Computes the new running statistics and throws them away."""

    def track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Assign to names of this call where buffers are meant."""
        rate = self.rate()
        running_mean = (1 - rate) * self.running_mean + rate * mean  # noqa: F841
        running_var = (1 - rate) * self.running_var + rate * var * count / (count - 1)  # noqa: F841


def check_never_updated(layer: Implementation) -> float:
    """After a batch at momentum 1, evaluation on it has mean 0."""
    batch = 3 + noise(8, 1)
    return abs(average(trained(layer, batch, momentum=1.0).eval()(batch)))


def mean_in_evaluation(layer: Implementation, mean: float) -> float:
    """Return the mean output in evaluation after training on data of a given mean."""
    batch = mean + standard(8, 1)
    return average(trained(layer, batch, momentum=1.0).eval()(batch))


NEVER_UPDATED = Fault(
    name="never_updated",
    family="batch",
    title="The running statistics stay where they began",
    seen="A result that is assigned to a local name; a functional framework whose new state is not handed back.",
    symptom="Training looks well. In evaluation nothing is normalized: mean 0 and variance 1 are taken for the statistics.",
    wrong=NeverUpdated,
    right=BatchNorm,
    check=check_never_updated,
    bound=1e-6,
    effect=Effect(
        "mean output in evaluation", "mean of the data", (0, 1, 2, 4), mean_in_evaluation, lambda mean: mean / math.sqrt(1 + 1e-5)
    ),
)


class UpdatedInEvaluation(Textbook):
    """Goes on tracking in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """Track whatever comes, then normalize."""
        if not self.training:
            self.track(*batch_moments(x), len(x))
        return super().forward(x)


def check_updated_in_evaluation(layer: Implementation) -> float:
    """A batch in evaluation leaves the running mean as it was."""
    module = layer(1).double().eval()
    module(1 + noise(8, 1))
    return largest(module.running_mean)


def leaked_mean(layer: Implementation, batches: int) -> float:
    """Return the running mean after some test batches of mean 1; it was 0."""
    module = layer(1).double().eval()
    for _ in range(batches):
        module(1 + standard(8, 1))
    return float(module.running_mean)


UPDATED_IN_EVALUATION = Fault(
    name="updated_in_evaluation",
    family="batch",
    title="Evaluation moves the running statistics",
    seen="Tracking outside the branch for training; a layer that is frozen for the optimizer but not for its buffers.",
    symptom="Test data leak into the model, and its score depends on how often and in which order it was evaluated.",
    wrong=UpdatedInEvaluation,
    right=BatchNorm,
    check=check_updated_in_evaluation,
    bound=0,
    effect=Effect("running mean", "test batches seen", (0, 1, 4, 16), leaked_mean, lambda k: 1 - 0.9**k),
)


class BatchInEvaluation(Textbook):
    """Uses the statistics of the batch in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the batch, whatever the mode."""
        return batch_norm(x, eps=self.eps)


def check_batch_in_evaluation(layer: Implementation) -> float:
    """In evaluation the output for a sample does not depend on the samples beside it."""
    module, x = layer(1).double().eval(), noise(8, 1)
    return largest(module(x)[:2] - module(x[:2]))


def output_in_a_pair(layer: Implementation, value: float) -> float:
    """Return the output for a sample that is evaluated together with a sample of value 0."""
    return average(layer(1, eps=0.0).double().eval()(torch.tensor([[value], [0.0]], dtype=torch.float64))[0])


BATCH_IN_EVALUATION = Fault(
    name="batch_in_evaluation",
    family="batch",
    title="Evaluation uses the statistics of the test batch",
    seen="A model left in training mode, or a layer that does not ask for the mode.",
    symptom="Predictions depend on who else is in the batch; in a batch of two every output is 1 or −1.",
    wrong=BatchInEvaluation,
    right=BatchNorm,
    check=check_batch_in_evaluation,
    bound=1e-9,
    effect=Effect("output", "value of the sample", (0.5, 1, 2, 4), output_in_a_pair, lambda value: 1.0),
)


class ModeFromGradients(Textbook):
    """Takes enabled gradients for training."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the batch where gradients are on, by the running statistics where they are off."""
        was, self.training = self.training, torch.is_grad_enabled()
        y = super().forward(x)
        self.training = was
        return y


def check_mode_from_gradients(layer: Implementation) -> float:
    """In evaluation the output is the same with and without gradients."""
    module, x = layer(1).double().eval(), 3 + noise(8, 1)
    with torch.no_grad():
        without = module(x)
    return largest(module(x) - without)


def mean_with_gradients(layer: Implementation, mean: float) -> float:
    """Return the mean output in evaluation with gradients on, for test data of a given mean under statistics 0 and 1."""
    return average(layer(1, eps=0.0).double().eval()(mean + standard(8, 1)))


MODE_FROM_GRADIENTS = Fault(
    name="mode_from_gradients",
    family="batch",
    title="Enabled gradients are taken for training",
    seen="Layers written from scratch for a course, where evaluation always runs under no_grad.",
    symptom="Saliency maps, adversarial examples and fine-tuning behind frozen statistics see another network.",
    wrong=ModeFromGradients,
    right=BatchNorm,
    check=check_mode_from_gradients,
    bound=1e-9,
    effect=Effect("mean output in evaluation", "mean of the test data", (0, 1, 2, 4), mean_with_gradients, lambda mean: 0.0),
)
