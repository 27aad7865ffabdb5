"""Conditional transport: each row goes to its like in the other set, and pays for the way."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.functions import Function
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import ALL, POS, Earlier, highest, lse, total

from .objective.keywords import Paired, Value
from .objective.objective import check_one_for_each, paired
from .objective.registration import loss

__all__ = ["conditional_transport_loss"]


@loss()
def conditional_transport_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    scale: float | Tensor = 10.0,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = Σ_j softmax_j(β s_ij) (1 − s_ij) + Σ_j softmax_j(β s_ji) (1 − s_ji): there and back.

    x_i is shared out among all y by how near they are, and each share costs 1 − s; so is y_i among
    all x. The two sets are matched as a whole, and no pair is told that it belongs together: i
    names row i of both, for `weight` and for "none". With a distance d, s is −d and the cost is d.

    The gradient leads through the shares too. No matrix is held: the memory is O(N D), and
    the pairs are gone through three times forward and twice backward. The engines "blockwise",
    "dense", "triton" and "chunked" serve the loss.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings of one set.
        y: (N, D) of the dtype of x, those of the other.
        scale: a number above 0 or a 0-d tensor with gradient: β; the larger it is, the more of a
            row goes to its nearest.

    Source:
        Zheng & Zhou, Exploiting Chain Rule and Bayes' Theorem to Compare Probability Distributions,
        NeurIPS 2021, with equal weights for both ways; PatchCT (Li et al., 2023) matches patches
        and labels by it.
    """
    scale = number("scale", scale, positive=True)
    check_one_for_each(x, y)
    objective = paired(x, y, common)
    pairs = objective.pairs.widened()
    nearest = 1.0 if pairs.measure is None else 0.0
    rows, cols = _ways(scale, nearest), _ways(scale, nearest)
    _, _, there, off, _, _, back, off_back = row_stats(pairs, *rows, cols=cols)
    there, back = there.detach() + off, back.detach() + off_back
    return objective.value(there + back, xy=lse(ALL, scale, 0.0))


def _ways(scale: float | Tensor, nearest: float) -> tuple[Any, ...]:
    """Build terms of an anchor: c = s_ii, log Σ_j e^{scale (s_ij − c)}, the mean cost of its ways,
    and the mean of what these cost above that.

    The last is 0, but for rounding, and has the gradient of the cost. In it the mean is taken off
    pair by pair, where sums of large parts would nearly cancel.
    """
    near = highest(POS, grad=False)
    reach = lse(ALL, scale, near)
    cost = total(ALL, scale, near, reach, nearest, 0.0, function=_cost)
    off = total(ALL, scale, near, Earlier(reach, grad=True), nearest, cost, function=_cost)
    return near, reach, cost, off


def _cost_value(s, scale, base, reach, nearest, mean):  # type: ignore[no-untyped-def]
    return (nearest - s - mean) * torch.exp(scale * (s - base) - reach)


def _cost_slopes(s, scale, base, reach, nearest, mean):  # type: ignore[no-untyped-def]
    share = torch.exp(scale * (s - base) - reach)
    paid = (nearest - s - mean) * share
    return scale * paid - share, (s - base) * paid, -scale * paid, -paid, share, -share


# (nearest − s − mean) exp(scale (s − base) − reach): the share of a way times its cost above `mean`
_cost = Function(_cost_value, _cost_slopes, "transport_cost")
