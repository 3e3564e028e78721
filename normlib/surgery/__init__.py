"""What changes the norms of layers and models that exist: attach one, swap kinds, re-estimate statistics, fold for inference."""

from normlib.surgery.fold import fold_batch_norm
from normlib.surgery.normalize import normalize, normalized_parts, split_kinds
from normlib.surgery.population import reestimate_statistics
from normlib.surgery.swap import SwapError, swap

__all__ = ["SwapError", "fold_batch_norm", "normalize", "normalized_parts", "reestimate_statistics", "split_kinds", "swap"]
