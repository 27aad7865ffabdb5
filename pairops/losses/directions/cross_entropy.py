"""The cross entropy of a positive among its negatives, from their statistics."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.accumulators import log_add_exp


@dataclass(frozen=True)
class Negatives:
    """Statistics of every anchor over its negatives.

    Args:
        log_sum: (N,) log Σ e^z.
        sums: (N,) Σ z, if it was asked for.
        count: (N,) how many there are, if it was asked for.
        nominal: how many there would be if none were dropped.
        beside: (N,) each, the log-sum-exps at other scales.
    """

    log_sum: Tensor
    sums: Tensor | None
    count: Tensor | None
    nominal: int
    beside: tuple[Tensor, ...] = ()

    def __add__(self, other: "Negatives") -> "Negatives":
        def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else a + b

        return Negatives(
            log_add_exp(self.log_sum, other.log_sum),
            added(self.sums, other.sums),
            added(self.count, other.count),
            self.nominal + other.nominal,
            tuple(map(log_add_exp, self.beside, other.beside)),
        )


def loss_of(positive: Tensor, negatives: Negatives, smoothing: float) -> Tensor:
    """Return (N,) the cross entropy of the positive among its negatives.

    With label smoothing ε the target of each of the C nominal candidates is ε/C, and that of the
    positive 1 − ε more; what is dropped adds nothing.
    """
    losses = log1p_exp(
        torch.where(negatives.log_sum == -torch.inf, -torch.inf, negatives.log_sum - positive)
    )
    if not smoothing:
        return losses
    assert negatives.sums is not None, "label smoothing needs sums"
    assert negatives.count is not None, "label smoothing needs counts"
    every = negatives.count * (losses + positive) - negatives.sums + losses
    return (1 - smoothing) * losses + smoothing / (negatives.nominal + 1) * every
