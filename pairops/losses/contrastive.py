"""Contrastive loss: pull positives above one margin, push negatives below another."""

from torch import Tensor
from typing_extensions import Unpack

from ..functions import hinge
from ..pairs import Pairing, Pairs
from ..stats import row_stats
from ..terms import NEG, POS, total
from .reduction import Reduction, check_reduction, number, reduce


def contrastive_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    pos_margin: float | Tensor = 1.0,
    neg_margin: float | Tensor = 0.5,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    **pairing: Unpack[Pairing],
) -> Tensor:
    """ℓ_i = Σ_p [pos_margin − s_ip]₊ + Σ_n [s_in − neg_margin]₊.

    pos_margin, neg_margin: similarities; numbers or 0-d tensors with gradient. Other arguments,
    errors and the returned dtype: as in `ms_loss`.

    Source: Hadsell et al., CVPR 2006, in the similarity form of the general-pair-weighting paper.
    The code released with cross-batch memory adds s_in, not s_in − neg_margin, and so jumps at the
    margin; pytorch-metric-learning averages each sum over its non-zero pairs, on L2 distances.
    """
    pos_margin, neg_margin = number("pos_margin", pos_margin), number("neg_margin", neg_margin)
    pairs = Pairs.of(x, labels, **pairing)
    check_reduction(reduction, weight, pairs)
    pos, neg = row_stats(
        pairs,
        total(POS, -1.0, pos_margin, function=hinge),
        total(NEG, 1.0, neg_margin, function=hinge),
    )
    return reduce(pos + neg, pairs, weight, reduction)
