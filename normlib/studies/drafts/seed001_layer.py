"""Reading notes on three papers (the draft `seed001`): what its section on layer normalization says."""

from __future__ import annotations

from normlib.lab import Drawing, Study
from normlib.layers import LayerNorm, batch_norm, layer_norm
from normlib.studies.common.statements import at_most, dots, gap, normal, verdict_counts

layer = Study(
    "seed001.layer",
    item="Section 3",
    title="The reading notes on layer norm: what they say of it holds",
    kind="exact",
    vary={},
    quick={},
    laptop={},
    full=None,
)


@layer.trial
def _(c, seed):
    z, gamma, beta = 1 + normal(seed, 16, 12), normal(seed + 1, 12), normal(seed + 2, 12)
    centered = z - z.mean(1, keepdim=True)
    rows = centered / centered.square().mean(1, keepdim=True).sqrt()
    return {
        "transpose_of_batch_norm": gap(layer_norm(z, [12], eps=0.0), batch_norm(z.T, eps=0.0).T),
        "scale_and_shift_per_neuron": gap(rows * gamma + beta, layer_norm(z, [12], gamma, beta, eps=0.0)),
        "no_running_averages": change_in_evaluation(z, seed),
        "scale_of_summed_inputs": gap(layer_norm(1_000 * z, [12], eps=0.0), layer_norm(z, [12], eps=0.0)),
    }


def change_in_evaluation(z, seed):
    """Count the buffers of a layer, and add how far its output in evaluation is from that in training, other inputs between."""
    norm = LayerNorm(12).double()
    in_training = norm(z).detach()
    norm(100 + normal(seed + 3, 4, 12))
    return len(list(norm.buffers())) + gap(norm.eval()(z).detach(), in_training)


@layer.draw
def _(table):
    return Drawing(
        dots(layer, table),
        caption="What the reading notes say of layer normalization. A dot is the distance between what is said and what is "
        f"measured, relative to the larger of the two. {verdict_counts(layer, table)} statements hold.",
        alt="A dot for each of four statements on layer norm, on a log axis of the distance from what is said; all lie at zero or "
        "at rounding.",
    )


@layer.claim(
    "transpose-of-batch-norm",
    "Before scale and shift, layer normalization is the transpose of batch normalization: rows in place of columns.",
    criterion="LN(Z) = BN(Zᵀ)ᵀ, relative difference at most 1e-10",
)
def _(table):
    return at_most(1e-10, table.transpose_of_batch_norm, "largest relative difference")


@layer.claim(
    "scale-and-shift-per-neuron",
    "Layer normalization standardizes rows, and gives each neuron a scale and a shift of its own, as batch normalization does.",
    criterion="(Z with each row standardized) ∘ γ + β = LN(Z), relative difference at most 1e-10",
)
def _(table):
    note = "the matrix equation is labeled BN(Z) in the draft"
    return at_most(1e-10, table.scale_and_shift_per_neuron, "largest relative difference", note)


@layer.claim(
    "no-running-averages",
    "Layer normalization needs no running averages: its statistics depend on the current step alone.",
    criterion="no buffers, and no difference at all between training and evaluation",
)
def _(table):
    return at_most(0.0, table.no_running_averages, "buffers, plus relative difference of the two modes")


@layer.claim(
    "scale-of-summed-inputs",
    "Layer normalization is invariant to re-scaling all summed inputs of a layer.",
    criterion="relative difference at most 1e-10 when they are multiplied by 1,000, without eps",
)
def _(table):
    return at_most(1e-10, table.scale_of_summed_inputs, "largest relative difference")
