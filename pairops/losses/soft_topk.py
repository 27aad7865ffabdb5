"""Soft top-k loss: an anchor's positives are to be among its k nearest references."""

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.autograd.node import followed_by_autograd_alone
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.checks import count
from pairops.ops.terms.functions import Function, sigmoid, softplus_from
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import ALL, POS, highest, lowest, total

from .objective.keywords import Labelled, Value
from .objective.objective import labelled
from .objective.registration import loss

__all__ = ["soft_topk_loss"]

# At α/τ = 40 searches in even, clustered and tied similarities took up to 10 steps, at 1,000 up to
# 15, where float32 can tell similarities from the threshold at all.
_STEPS = 16


@loss()
def soft_topk_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    k: int = 5,
    alpha: float | Tensor = 2.0,
    temperature: float | Tensor = 0.05,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = −1/|P_i| Σ_p log σ(α(s_ip/τ + t_i)), where t_i solves Σ_j σ(α(s_ij/τ + t_i)) = k.

    t_i is a threshold that about k references are above, and the gradient passes through it. An
    anchor without positives contributes 0, and "mean" counts it; so does one with no more than k
    references, all of which are among the nearest k. With a distance d, s is −d. First and second
    derivatives are exact, further ones are not.

    In float32, where no reference is within 87 τ/α of the threshold, t_i lies somewhere between the
    k nearest and the rest, and has no gradient; in float64, within 700 τ/α.

    The search for t_i goes through all pairs up to 16 times without a gradient; on a CPU it ends
    when it has found t_i. On a CPU these passes are made by `blockwise`.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        k: an int of at least 1, how many references are to be above the threshold.
        alpha: a number above 0 or a 0-d tensor with gradient: α, the sharpness.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        Gupta et al., Dual-Encoders for Extreme Multi-Label Classification (DEXML), 2024.

    Differs from:
        The authors' code draws min(k, |P_i|) positives per query unless it is told not to, and puts
        the others at a similarity of −100; here all positives count. It looks for t_i by 32
        bisections between −max s/τ − 10/α and −min s/τ + 10/α, so that an anchor with at most k
        references has a loss of up to 5e-5.
    """
    wanted = count("k", k, 1)
    scale = number("alpha", alpha, positive=True) / number(
        "temperature", temperature, positive=True
    )
    objective = labelled(x, labels, common)
    objective.warn_without_positives()
    pairs = objective.pairs.widened()
    positives, negatives = pairs.counts()
    some_left = positives + negatives > wanted
    fixed = scale.detach() if isinstance(scale, Tensor) else scale
    with torch.no_grad():
        base, slope = _threshold(pairs, wanted, fixed, positives + negatives)
    # The base is −t τ/α, a similarity. As a function of the similarities the first of these steps
    # has its first derivatives, and the second one its second derivatives too. Neither moves it.
    for _ in range(2):
        (sums,) = row_stats(pairs, total(ALL, scale, base, function=sigmoid))
        base = base + (sums - sums.detach()) / slope
    (losses,) = row_stats(pairs, total(POS, -scale, base, 0.0, function=softplus_from))
    losses = losses / positives.clamp(min=1)
    return objective.value(torch.where(some_left, losses, 0))


def _threshold(
    pairs: Pairs, k: int, scale: float | Tensor, references: Tensor
) -> tuple[Tensor, Tensor]:
    """Return b (N,) with Σ_j σ(scale · (s_ij − b_i)) = k, and minus the slope of that sum by b_i.

    A row with no more than k references has b = 0 and an infinite slope, and so has one whose slope
    is 0 in its dtype: its k nearest references are so far from the next one that b may be anywhere
    in between.
    """
    low, high = row_stats(pairs, lowest(ALL), highest(ALL))
    some_left = references > k
    rest = torch.where(some_left, references - k, k).to(low.dtype)
    # If all similarities were as low as the lowest, b would be lower than it is, and so on.
    shift = torch.log(k / rest) / scale
    low, high = (torch.where(some_left, z - shift, 0) for z in (low, high))
    base = low + (high - low) * (rest / (k + rest))
    stops = pairs.shards is None and pairs.x.device.type == "cpu"
    stops = stops and followed_by_autograd_alone(pairs.x, pairs.y)
    enough = math.sqrt(torch.finfo(base.dtype).eps) / 16
    for _ in range(_STEPS):
        terms = [total(ALL, scale, base, function=f) for f in (_below, _above, _slope, _count)]
        below, above, slope, near = row_stats(pairs, *terms)
        # The sum of all less k, without its digits before the point: these are counted exactly.
        excess = below - above + (near - k)
        step = torch.where(
            near == k,
            # The k nearest are far from the rest: both sums are exponentials of b.
            (below.log() - above.log()) * (below + above) / (2 * slope),
            torch.where(
                excess < 0,
                torch.log1p(excess / k) * (k + excess) / slope,
                -torch.log1p(-excess / rest) * (rest - excess) / slope,
            ),
        )
        low = torch.where(excess > 0, base, low)
        high = torch.where(excess > 0, high, base)
        moved = base + step / scale
        found = ~(excess.abs() > enough * slope) | ~some_left  # a NaN will not be found
        inside = (moved >= low) & (moved <= high)
        base = torch.where(inside, moved, torch.where(excess == 0, base, (low + high) / 2))
        if stops and bool(found.all()):
            break
    (slope,) = row_stats(pairs, total(ALL, scale, base, function=_slope))
    slope = torch.where(some_left & (slope != 0), slope * scale, torch.inf)
    return base.detach(), slope.detach()


# Functions of z = scale · (s − base), which z = 0 divides; without gradient here.


def _by_all(slope: Any, s: Any, scale: Any, base: Any) -> tuple[Any, ...]:
    return slope * scale, slope * (s - base), slope * -scale


def _below_value(s, scale, base):  # type: ignore[no-untyped-def]
    """σ(z) where z ≤ 0, else 0"""
    z = scale * (s - base)
    return torch.where(z > 0, 0.0, torch.sigmoid(z))


def _below_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    z = scale * (s - base)
    slope = torch.where(z > 0, 0.0, torch.sigmoid(z) * torch.sigmoid(-z))
    return _by_all(slope, s, scale, base)


def _above_value(s, scale, base):  # type: ignore[no-untyped-def]
    """1 − σ(z) where z > 0, else 0"""
    z = scale * (s - base)
    return torch.where(z > 0, torch.sigmoid(-z), 0.0 * z)


def _above_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    z = scale * (s - base)
    slope = torch.where(z > 0, -torch.sigmoid(z) * torch.sigmoid(-z), 0.0 * z)
    return _by_all(slope, s, scale, base)


def _count_value(s, scale, base):  # type: ignore[no-untyped-def]
    """1 where z > 0, else 0"""
    z = scale * (s - base)
    return (z > 0) + 0.0 * z


def _count_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    return _by_all(0.0 * s, s, scale, base)


def _slope_value(s, scale, base):  # type: ignore[no-untyped-def]
    """σ(z) (1 − σ(z))"""
    z = scale * (s - base)
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _slope_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    z = scale * (s - base)
    slope = torch.sigmoid(z) * torch.sigmoid(-z) * (torch.sigmoid(-z) - torch.sigmoid(z))
    return _by_all(slope, s, scale, base)


_below = Function(_below_value, _below_slopes, "topk_below", finite=True)
_above = Function(_above_value, _above_slopes, "topk_above", finite=True)
_count = Function(_count_value, _count_slopes, "topk_count", finite=True)
_slope = Function(_slope_value, _slope_slopes, "topk_slope", finite=True)
