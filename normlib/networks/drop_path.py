"""Stochastic depth: residual branches that are left out at random in training, sample by sample."""

from __future__ import annotations

from torch import Tensor, nn

from normlib.errors import NormlibError


class DropPath(nn.Module):
    r"""Leave a residual branch out for some samples of the batch.

    **Idea.** A network whose blocks are sometimes missing is an ensemble of shallower ones, and regularized as such: what
    batch normalization does by the noise of its batches, normalizer-free networks have to get from elsewhere.

    **Formula.** $y_n = \frac{b_n}{1 - p}\,x_n$ with $b_n = 0$ with probability $p$, else 1, drawn for each sample $n$; so
    $\mathbb{E}\,y = x$.

    **Train and eval.** In evaluation, and at a rate of 0, the identity. In training the draws come from torch's global
    generator, as those of dropout do.

    **Departures.** `huang2016` drops a block for the whole batch, and scales by $1 - p$ in evaluation. The released code
    of `brock2021a` drops by sample as here, but does not divide by $1 - p$.

    Args:
        rate: the probability $p$.

    Shape:
        Input (N, *), output the same.

    Raises:
        NormlibError: if the rate is not from 0 to below 1.

    Example:
        >>> import torch
        >>> layer, x = DropPath(0.5), torch.ones(1000, 2)
        >>> y = layer(x)
        >>> sorted(set(y.flatten().tolist())), bool((y[:, 0] == y[:, 1]).all()), torch.equal(layer.eval()(x), x)
        ([0.0, 2.0], True, True)

    Source: `huang2016`.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        _check(rate)
        self.rate = rate

    def forward(self, input: Tensor) -> Tensor:
        """Keep or drop each sample of `input` (N, *)."""
        if not self.training or self.rate == 0:
            return input
        keep = 1 - self.rate
        kept = input.new_full((len(input), *[1] * (input.ndim - 1)), keep).bernoulli()
        return input * (kept / keep)

    def extra_repr(self) -> str:
        """Return the rate as torch prints it."""
        return f"{self.rate:.4g}"


def drop_paths(rate: float, depth: int) -> list[nn.Module]:
    r"""Build one `DropPath` per block, of rates that grow linearly with depth: $p_l = p\,l / L$ for $l = 1 \dots L$.

    Args:
        rate: the rate $p$ of the last block; at 0 the modules are identities.
        depth: the number of blocks $L$.

    Raises:
        NormlibError: if the rate is not from 0 to below 1.

    Example:
        >>> [path.rate for path in drop_paths(0.2, 4)]
        [0.05, 0.1, 0.15..., 0.2]
        >>> drop_paths(0.0, 1)
        [Identity()]

    Source: `huang2016`.
    """
    _check(rate)
    return [DropPath(rate * block / depth) if rate else nn.Identity() for block in range(1, depth + 1)]


def _check(rate: float) -> None:
    if not 0 <= rate < 1:
        raise NormlibError(
            f"stochastic depth got the rate {rate!r}; expected the share of samples that a branch is dropped for, 0 to 1."
        )
