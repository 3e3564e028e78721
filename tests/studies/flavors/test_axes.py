"""The sets that the study finds, against the zeros of a Jacobian; and a layer whose sets are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normlib.studies.common.statements import normal
from normlib.studies.flavors.wu2018_axes import GROUPS, TOKENS, C, H, N, W, build, found_sets, said_sets


@pytest.mark.parametrize("spec", ["batch", "instance", f"group:groups={GROUPS}", TOKENS, "rms", "dyt"])
def test_a_set_is_where_the_jacobian_is_not_zero(spec: str) -> None:
    norm, x = build(spec), normal(3, N, C, H, W)
    jacobian = torch.autograd.functional.jacobian(norm, x).reshape(x.numel(), x.numel())
    assert torch.equal(found_sets(norm, [x]), jacobian.abs() > 1e-12)


def test_a_mean_over_pairs_of_samples_is_found() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.roll(1, 0)

    found = found_sets(Pairs(), [normal(0, N, C, H, W)])
    size = C * H * W
    assert found.sum() == 2 * N * size and bool(found[0, 0]) and bool(found[0, (N - 1) * size]) and not bool(found[0, size])


def test_the_paper_s_group_is_of_neighboring_channels() -> None:
    said = said_sets(f"group:groups={GROUPS}")
    assert said is not None
    first = said[0].view(N, C, H * W)
    assert first[0, : C // GROUPS].all() and not first[0, C // GROUPS :].any() and not first[1:].any()
    assert said_sets("frn") is None
