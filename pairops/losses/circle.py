"""Circle loss and MLCD: one log-sum-exp that pulls, one that pushes, no threshold between them."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.terms.functions import circle_pull, circle_push
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.term import NEG, POS, lse
from pairops.ops.distributed.agreement import collective
from .objective.objective import Labelled, Value, labelled, similar_only
from .objective.scalars import log1p_exp, number
from pairops.ops.row_stats.softplus_mean import reduce_log1p_exp


@collective()
def circle_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    margin: float | Tensor = 0.4,
    gamma: float | Tensor = 80.0,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = log(1 + Σ_p e^{−γ [1 + m − s_ip]₊ (s_ip − 1 + m)} · Σ_n e^{γ [s_in + m]₊ (s_in − m)}).

    The factors [·]₊ are weights: the gradient takes them as constants. 0 for an anchor without
    positives or without negatives.

    margin: m, the relaxation.  gamma: γ above 0, the sharpness.  Both are numbers or 0-d tensors
    with gradient.  distance: "cosine" or "dot". Other arguments, errors and the returned dtype: as
    in `ms_loss`.

    Source: Sun et al., Circle Loss, CVPR 2020, which has m = 0.25 and γ = 256 for faces. With
    reduction="mean_nonzero" equal to pytorch-metric-learning's CircleLoss; a widespread
    reimplementation pools the pairs of all anchors into one logarithm.
    """
    margin, gamma = number("margin", margin), number("gamma", gamma, positive=True)
    objective = labelled(x, labels, common)
    similar_only("circle_loss", objective.pairs)
    pos, neg = row_stats(
        objective.pairs,
        lse(POS, gamma, margin, function=circle_pull),
        lse(NEG, gamma, margin, function=circle_push),
    )
    # Not pos + neg where one is −inf and the other +inf.
    neither = (pos == -torch.inf) | (neg == -torch.inf)
    both = torch.where(neither, -torch.inf, pos + neg)
    return objective.value(log1p_exp(both), positive=pos, negative=neg)


@collective()
def mlcd_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    scale: float | Tensor = 64.0,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = log(1 + Σ_n e^{γ s_in}) + log(1 + Σ_p e^{−γ s_ip}); a side without pairs adds 0.

    scale: γ above 0; a number or a 0-d tensor with gradient. The references are class centres,
    `ref_emb` and `ref_labels`: centres with the same label are positives together. Of distances s
    is −d. Other arguments, errors and the returned dtype: as in `ms_loss`.

    Source: An et al., Multi-Label Cluster Discrimination, ECCV 2024, over all centres instead of a
    sample of them. Its training code is not public; a later one of the same team does something
    else.
    """
    scale = number("scale", scale, positive=True)
    objective = labelled(x, labels, common)
    pos, neg = row_stats(objective.pairs, lse(POS, -scale, 0.0), lse(NEG, scale, 0.0))
    return reduce_log1p_exp([(pos, 1.0), (neg, 1.0)], objective, positive=pos, negative=neg)
