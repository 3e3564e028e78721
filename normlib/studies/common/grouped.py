"""Batches made of groups: which examples share a statistic."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OfGroups(nn.Module):
    """Hand groups of images (groups, images, C, H, W) to a network as one batch, group after group."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> Tensor:
        """Map groups to the outputs of all their images, (groups · images, classes)."""
        output: Tensor = self.network(input.flatten(0, 1))
        return output


def in_groups(labels: Tensor, size: int, one_class: bool, seed: int) -> Tensor:
    """Shuffle items and put them into groups, each of one class if asked for; what is left over is left out.

    Returns:
        Positions in `labels`, shape (groups, size).
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    parts = [order[labels[order] == label] for label in labels.unique()] if one_class else [order]
    return torch.cat([part[: len(part) // size * size].view(-1, size) for part in parts])
