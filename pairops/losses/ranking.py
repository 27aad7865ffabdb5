"""Losses of ranks: how many references stand before an anchor's positives, counted softly."""

from typing import Any

import torch
from torch import Tensor, relu
from typing_extensions import Unpack

from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.positive_rows import PositiveRows
from pairops.ops.terms.checks import count, flag
from pairops.ops.terms.functions import Function, sigmoid
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, total

from .objective.keywords import Labelled, Value
from .objective.objective import labelled, similar_only
from .objective.registration import loss

__all__ = ["fast_ap_loss", "smooth_ap_loss"]

_MOST_BINS = 1000  # a term for each bin and side


@loss()
def smooth_ap_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    temperature: float | Tensor = 0.01,
    include_self: bool = False,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_a = 1 − 1/|P_a| Σ_i R⁺_ai/R_ai, with R_ai = 1 + Σ_{j≠i} σ((s_aj − s_ai)/τ).

    R_ai is the rank of the positive i among all references of the anchor a, and R⁺_ai, the same sum
    over j in P_a, its rank among the positives; σ is the logistic function. An anchor without
    positives contributes 0, and "mean" counts it. With a distance d, s is −d.

    Each positive pair is made a row, see `PositiveRows`: for K such pairs the loss takes O(N·D + K)
    memory and the time of K·N similarities and, on a GPU, waits for K.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        temperature: a number above 0 or a 0-d tensor with gradient: τ, a difference of similarities
            or distances.
        include_self: True makes each row a positive and a reference of itself, as the authors' code
            does; `ref_emb`, `positives` and `exclude_self` must then be left out.

    Source:
        Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, ECCV 2020.
        With include_self=True the loss equals the authors' code, but for the difference below, and
        pytorch-metric-learning's SmoothAPLoss.

    Differs from:
        The authors' code holds the exponent within ±50, so a pair has no gradient beyond 50 τ. Both
        codes need classes of equal size, side by side. pytorch-metric-learning takes the number of
        classes and that of their rows for one another, and has other numbers unless they are equal.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    flag("include_self", include_self)
    given: Any = _with_itself(common) if include_self else common
    objective = labelled(x, labels, given)
    objective.warn_without_positives()
    rows = PositiveRows.of(objective.pairs.widened())
    before = scale, rows.score
    others, among = row_stats(
        rows.pairs,
        total(NEG, *before, function=sigmoid),
        total(POS, *before, function=sigmoid),
    )
    # In `among` the positive itself counts σ(0) = 1/2. It adds 0 to the gradient, within a rounding
    # that is as small as the loss: `others`, which it is not among, is then small too.
    share = _share(others, among + 0.5)
    return objective.value(rows.per_anchor(share) / objective.pairs.positives().clamp(min=1))


def _share(others: Tensor, among: Tensor) -> Tensor:
    """Return others / (others + among), 0 where both are 0: 1 less the precision.

    Whichever is the larger one, neither the value nor a slope is a difference of nearly equal
    numbers.
    """
    every = others + among
    every = torch.where(every == 0, 1, every)
    return torch.where(others > among, 1 - among / every, others / every)


def _with_itself(common: Labelled) -> dict[str, Any]:
    """Return the keywords with which a row is a positive and a reference of itself."""
    for name in ("ref_emb", "positives", "exclude_self"):
        if common.get(name) is not None:
            hint = {
                "ref_emb": "write ref_emb=None: a row is itself in one set alone",
                "positives": "write include_self=False and exclude_self=False, and list the pairs "
                "(i, i) too",
                "exclude_self": "leave it out: every pair counts",
            }[name]
            raise ValueError(f"{name} is given and include_self is True; {hint}")
    return {**common, "exclude_self": False}


@loss()
def fast_ap_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    bins: int = 10,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1 − 1/|P_i| Σ_l h⁺_l H⁺_l/H_l, average precision read off histograms of distances.

    z_ij = (1 − s_ij) bins/2, between 0 and `bins`, counts in the two nearest of l = 0 … bins:
    h⁺_l = Σ_p [1 − |z_ip − l|]₊, and H⁺_l and H_l are the sums over all m ≤ l of h⁺_m and of the
    same for all references. 2 − 2 s_ij is the squared distance of unit vectors. A bin with H_l = 0
    adds 0. An anchor without positives contributes 0, and "mean" counts it. `distance` must be
    "cosine", or "dot" of unit vectors: a pair beyond −1 or 1 counts as one that is there.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        bins: an int from 1 to 1000, the number of intervals; time grows with it.

    Source:
        Cakir et al., Deep Metric Learning to Rank (FastAP), CVPR 2019. The loss of an anchor equals
        that of pytorch-metric-learning's FastAPLoss.

    Differs from:
        The authors' code and pytorch-metric-learning average over the anchors with positives.
        reduction="mean_nonzero" does so too, but for anchors of which no negative is as near as a
        positive: their loss is 0.
    """
    bins = count("bins", bins, 1, _MOST_BINS)
    objective = labelled(x, labels, common)
    pairs = objective.pairs
    similar_only("fast_ap_loss", pairs)
    objective.warn_without_positives()
    sums = row_stats(
        pairs,
        *[
            total(side, bins / 2, float(centre), function=_triangle)
            for side in (POS, NEG)
            for centre in range(bins + 1)
        ],
    )
    near, others = torch.stack(sums).split(bins + 1)
    # Σ h⁺ is |P|, and so 1 − Σ h⁺ H⁺/H / |P| is a sum of nothing below 0.
    behind = near * _share(others.cumsum(0), near.cumsum(0))
    return objective.value(behind.sum(0) / pairs.positives().clamp(min=1))


def _triangle_value(s, scale, centre):  # type: ignore[no-untyped-def]
    """[1 − |z − centre|]₊, z = scale · (1 − s) held between 0 and 2 scale"""
    z = scale * torch.clamp(1 - s, 0.0, 2.0)
    return relu(1 - torch.abs(z - centre)) + 0.0 * s  # an infinite s is NaN, and shows


def _triangle_slopes(s, scale, centre):  # type: ignore[no-untyped-def]
    held = torch.clamp(1 - s, 0.0, 2.0)
    z = scale * held - centre
    slope = -torch.sign(z) * ((torch.abs(z) < 1) + 0.0 * s)
    inside = torch.where(torch.abs(s) < 1, 1.0, 0.0 * s)
    return slope * -scale * inside, slope * held, -slope


_triangle = Function(_triangle_value, _triangle_slopes, "triangle", finite=True)
