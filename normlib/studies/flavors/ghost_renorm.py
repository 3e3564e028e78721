"""Batch renormalization over groups of a batch, all in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.layers import BatchRenorm
from normlib.layers.statistics import fused_map


class GhostRenorm(BatchRenorm):
    """Batch renormalization in which every `images` samples in a row have statistics of their own, as "batch:ghost=…" has.

    All groups are corrected towards the same running statistics, which then move once, towards the mean over the groups.
    """

    images = 64  # of a group; an attribute, as the limits are

    def _renormalize(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        groups = len(x) // self.images
        apart = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # (images, groups · C, *)
        mean, unbiased = torch.zeros(2, apart.shape[1], dtype=x.dtype, device=x.device)
        standard = F.batch_norm(apart, mean, unbiased, None, None, True, 1.0, self.eps)  # at momentum 1: those of each group
        count = apart.numel() // apart.shape[1]
        sigma = (unbiased * ((count - 1) / count) + self.eps).sqrt().view(groups, -1)
        running = (running_var + self.eps).sqrt()
        r = (sigma / running).clamp(1 / self.r_max, self.r_max)
        d = ((mean.view(groups, -1) - running_mean) / running).clamp(-self.d_max, self.d_max)
        self._follow(running_mean=mean.view(groups, -1).mean(0), running_var=unbiased.view(groups, -1).mean(0))
        weight, bias = (parameter.repeat(groups) for parameter in (self.weight, self.bias))
        y = fused_map(standard, r.flatten(), d.flatten(), weight, bias)
        return y.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)
