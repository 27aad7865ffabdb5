"""Reductions: the losses of anchors are weighted and added up or averaged, over all ranks."""

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.distributed.group import Group
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.checks import one_of
from pairops.ops.terms.tensor_checks import check_factors

from .keywords import Reduction

_REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")


def reduce(
    losses: Tensor,
    pairs: Pairs,
    weight: Tensor | None,
    reduction: Reduction,
    group: Group | None = None,
) -> Tensor:
    """Weight and reduce losses.

    "mean" is Σ w_i ℓ_i / number of anchors that are not ignored; "mean_nonzero" the same over
    anchors with ℓ_i > 0 (a NaN counts, so it shows); "sum" Σ w_i ℓ_i; "none" w_i ℓ_i, 0 for an
    ignored anchor. `average` serves "mean_pairs".

    Args:
        losses: (N,) one number for each anchor.
        pairs: the anchors.
        weight: (N,) a factor for each anchor. None: 1.
        reduction: how the losses are reduced.
        group: the ranks whose sums and numbers are added up; "none" returns this rank's rows.
    """
    counted = None
    if reduction == "mean_nonzero":
        counted = pairs.relation.valid_x & ~(losses <= 0)
    elif not pairs.complete:
        counted = pairs.relation.valid_x
    if counted is not None:
        losses = torch.where(counted, losses, 0)
    if weight is not None:
        weight = weight.to(losses.dtype)
        losses = losses * (weight if counted is None else torch.where(counted, weight, 0))
    if reduction == "none":
        if group is not None:  # a rank that failed tells the others before they go on
            group.meet("the end")
        return losses
    if reduction == "sum":
        return over_ranks(losses.sum(), group)
    if group is None and counted is None:
        return losses.mean() if losses.shape[0] else losses.sum()  # the mean of nothing is 0
    count = losses.new_tensor(len(losses)) if counted is None else counted.sum()
    return _quotient(losses.sum(), count, group)


def average(
    sums: Tensor, counts: Tensor, pairs: Pairs, weight: Tensor | None, group: Group | None = None
) -> Tensor:
    """Average over pairs the losses that are sums over pairs: Σ w_i sums_i / Σ counts_i.

    Each loss decides which pairs count; the average is 0 where none does.
    """
    if weight is not None:
        weight = weight.to(sums.dtype)
        sums = sums * (weight if pairs.complete else torch.where(pairs.relation.valid_x, weight, 0))
    return _quotient(sums.sum(), counts.detach().sum(), group)  # counts have no slope


def _quotient(total: Tensor, count: Tensor, group: Group | None) -> Tensor:
    if group is None:
        return total / count.clamp(min=1)
    dtype = widest_float(total.device)
    sums = over_ranks(torch.stack([total.to(dtype), count.to(dtype)]), group)
    return (sums[0] / sums[1].clamp(min=1)).to(total.dtype)


def over_ranks(values: Tensor, group: Group | None) -> Tensor:
    return values if group is None else group.total(values)


def check_reduction(
    reduction: Reduction,
    weight: Tensor | None,
    anchors: tuple[str, Tensor],
    averages_pairs: bool = False,
) -> None:
    """Check the arguments of `reduce` before anything is computed. anchors: by their name."""
    names = _REDUCTIONS + ("mean_pairs",) * averages_pairs
    one_of("reduction", reduction, names)
    if weight is not None:
        check_factors("weight", weight, anchors)
