"""The table of faults. A new exhibit is one entry in a file of its family and one line here; the tests then run over it.

A trial that measures one fault takes its name as a factor and reads `FAULTS[name]`: its record then goes stale with that
fault and its counterpart, and with no other.
"""

from __future__ import annotations

from typing import Any

from normlib.errors import unknown
from normlib.gallery.fault import Fault
from normlib.registry import Registry

FAULTS = Registry(
    "fault",
    {
        "per_position": "normlib.gallery.batch:PER_POSITION",
        "last_axis_affine": "normlib.gallery.batch:LAST_AXIS_AFFINE",
        "last_axis_statistics": "normlib.gallery.batch:LAST_AXIS_STATISTICS",
        "affine_on_input": "normlib.gallery.batch:AFFINE_ON_INPUT",
        "one_pass_variance": "normlib.gallery.batch:ONE_PASS_VARIANCE",
        "eps_on_std": "normlib.gallery.batch:EPS_ON_STD",
        "unbiased_forward": "normlib.gallery.batch:UNBIASED_FORWARD",
        "detached_statistics": "normlib.gallery.backward:DETACHED_STATISTICS",
        "summed_gradient": "normlib.gallery.backward:SUMMED_GRADIENT",
        "worker_variances": "normlib.gallery.backward:WORKER_VARIANCES",
        "uncounted_workers": "normlib.gallery.backward:UNCOUNTED_WORKERS",
        "late_buffers": "normlib.gallery.running:LATE_BUFFERS",
        "graph_in_buffers": "normlib.gallery.running:GRAPH_IN_BUFFERS",
        "biased_buffer": "normlib.gallery.running:BIASED_BUFFER",
        "reversed_momentum": "normlib.gallery.running:REVERSED_MOMENTUM",
        "never_updated": "normlib.gallery.modes:NEVER_UPDATED",
        "updated_in_evaluation": "normlib.gallery.modes:UPDATED_IN_EVALUATION",
        "batch_in_evaluation": "normlib.gallery.modes:BATCH_IN_EVALUATION",
        "mode_from_gradients": "normlib.gallery.modes:MODE_FROM_GRADIENTS",
        "unbiased_std": "normlib.gallery.layer:UNBIASED_STD",
        "eps_beside_std": "normlib.gallery.layer:EPS_BESIDE_STD",
        "over_the_batch": "normlib.gallery.layer:OVER_THE_BATCH",
        "averaged_layer_norm": "normlib.gallery.layer:AVERAGED_LAYER_NORM",
        "half_statistics": "normlib.gallery.layer:HALF_STATISTICS",
        "per_channel_layer": "normlib.gallery.maps:PER_CHANNEL_LAYER",
        "rms_over_positions": "normlib.gallery.maps:RMS_OVER_POSITIONS",
        "interleaved_groups": "normlib.gallery.maps:INTERLEAVED_GROUPS",
        "multiplied_by_std": "normlib.gallery.weights:MULTIPLIED_BY_STD",
        "without_fan_in": "normlib.gallery.weights:WITHOUT_FAN_IN",
        "unbiased_rows": "normlib.gallery.weights:UNBIASED_ROWS",
        "eps_on_raw_variance": "normlib.gallery.weights:EPS_ON_RAW_VARIANCE",
        "over_outputs": "normlib.gallery.weights:OVER_OUTPUTS",
        "detached_rows": "normlib.gallery.weights:DETACHED_ROWS",
        "whole_tensor": "normlib.gallery.weights:WHOLE_TENSOR",
        "copied_gain": "normlib.gallery.gains:COPIED_GAIN",
        "he_gain": "normlib.gallery.gains:HE_GAIN",
        "fixup_by_index": "normlib.gallery.residual:FIXUP_BY_INDEX",
        "without_reset": "normlib.gallery.residual:WITHOUT_RESET",
        "without_books": "normlib.gallery.residual:WITHOUT_BOOKS",
        "per_input": "normlib.gallery.clipping:PER_INPUT",
        "without_floor": "normlib.gallery.clipping:WITHOUT_FLOOR",
        "reversed_condition": "normlib.gallery.clipping:REVERSED_CONDITION",
        "clip_with_decay": "normlib.gallery.clipping:CLIP_WITH_DECAY",
        "by_module_name": "normlib.gallery.clipping:BY_MODULE_NAME",
        "over_channels": "normlib.gallery.propagation:OVER_CHANNELS",
        "count_from_batch": "normlib.gallery.propagation:COUNT_FROM_BATCH",
        "unbiased_moments": "normlib.gallery.propagation:UNBIASED_MOMENTS",
        "after_the_gain": "normlib.gallery.propagation:AFTER_THE_GAIN",
        "fresh_in_evaluation": "normlib.gallery.propagation:FRESH_IN_EVALUATION",
        "one_norm_fewer": "normlib.gallery.comparison:ONE_NORM_FEWER",
        "shared_stream": "normlib.gallery.comparison:SHARED_STREAM",
        "at_one_rate": "normlib.gallery.comparison:AT_ONE_RATE",
        "best_of_curve": "normlib.gallery.comparison:BEST_OF_CURVE",
        "smaller_batches": "normlib.gallery.comparison:SMALLER_BATCHES",
    },
)

FAMILIES = ("batch", "layer", "weights", "residual", "clipping", "propagation", "comparison")


def faults(family: str | None = None) -> list[Fault]:
    """List the faults of a family, or all, in the order of the table.

    Raises:
        UnknownNameError: if there is no such family; the message holds the nearest match.

    Example:
        >>> [fault.name for fault in faults("residual")]
        ['fixup_by_index', 'without_reset', 'without_books']
    """
    if family is not None and family not in FAMILIES:
        raise unknown("family of faults", family, FAMILIES)
    return [fault for fault in FAULTS.values() if family in (None, fault.family)]


def scoreboard(family: str | None = None) -> dict[str, list[Any]]:
    """Run the checks of a family, or of all, on both implementations of each fault.

    Returns:
        Columns with one entry a fault: `fault`, `family`, the deviations `wrong` and `right`, the `bound`, and whether the check
        tells them apart (`caught`).
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("fault", "family", "wrong", "right", "bound", "caught")}
    for fault in faults(family):
        wrong, right = fault.deviations()
        caught = right <= fault.bound and not wrong <= fault.bound
        for name, value in zip(columns, (fault.name, fault.family, wrong, right, fault.bound, caught), strict=True):
            columns[name].append(value)
    return columns
