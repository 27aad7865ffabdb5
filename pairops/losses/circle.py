"""Circle loss: a log-sum-exp that pulls and one that pushes, each pair weighted by how far off."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.functions import circle_pull, circle_push
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, lse

from .objective.keywords import Labelled, Value
from .objective.objective import labelled, similar_only
from .objective.registration import loss

__all__ = ["circle_loss"]


@loss()
def circle_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    margin: float | Tensor = 0.4,
    gamma: float | Tensor = 80.0,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = log(1 + Σ_p e^{−γ [1 + m − s_ip]₊ (s_ip − 1 + m)} · Σ_n e^{γ [s_in + m]₊ (s_in − m)}).

    The factors [·]₊ are weights: the gradient takes them as constants. An anchor without positives
    or without negatives contributes 0. `distance` must be "cosine" or "dot".

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        margin: a number or a 0-d tensor with gradient: m, the relaxation.
        gamma: a number above 0 or a 0-d tensor with gradient: γ, the sharpness.

    Source:
        Sun et al., Circle Loss, CVPR 2020, which has m = 0.25 and γ = 256 for faces. With
        reduction="mean_nonzero" the loss equals pytorch-metric-learning's CircleLoss.

    Differs from:
        A widespread reimplementation pools the pairs of all anchors into one logarithm.
    """
    margin, gamma = number("margin", margin), number("gamma", gamma, positive=True)
    objective = labelled(x, labels, common)
    similar_only("circle_loss", objective.pairs)
    objective.warn_without_positives()
    pos, neg = row_stats(
        objective.pairs,
        lse(POS, gamma, margin, function=circle_pull),
        lse(NEG, gamma, margin, function=circle_push),
    )
    # pos + neg would be NaN where one is −inf and the other +inf.
    neither = (pos == -torch.inf) | (neg == -torch.inf)
    both = torch.where(neither, -torch.inf, pos + neg)
    return objective.value(log1p_exp(both), positive=pos, negative=neg)
