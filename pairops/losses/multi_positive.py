"""Several positives in slots, each a softmax of its own against negatives that all rows share."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.tensor_checks import check_embeddings, check_real, number
from pairops.ops.terms.term import NEG, lse

from .info_nce import self_and_others
from .objective.keywords import Paired, Value
from .objective.objective import Objective, all_negatives, split
from .objective.registration import loss

__all__ = ["multi_positive_loss"]


@loss()
def multi_positive_loss(
    x: Tensor,  # (N, D)
    positives: Tensor,  # (N, P, D)
    *,
    negatives: Tensor | None = None,  # (K, D)
    temperature: float | Tensor = 0.02,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = 1/P Σ_o [log(Σ_j e^{⟨x_i, p_jo⟩/τ} + Σ_k e^{⟨x_i, n_k⟩/τ}) − ⟨x_i, p_io⟩/τ].

    Each slot o of positives is a softmax of its own: the other positives of the same row are not in
    it, the same slot of other rows is, and all negatives are. `Aux` counts the pairs that are
    compared in one slot. `weight` is one factor per row. With a distance d, ⟨·, ·⟩ is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        positives: (N, P, D) of the dtype of x: P ≥ 1 of them for every row.
        negatives: (K, D) of the dtype of x: those of all rows together. None: there are none.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        CoDiEmb, the retrieval loss of its training code.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    check_embeddings("x", x)
    check_real("positives", positives)
    if positives.dim() != 3 or not positives.shape[1]:
        shape = tuple(positives.shape)
        raise ValueError(f"positives is {shape}; it must be a tensor (N, P, D) with P at least 1")
    if len(positives) != len(x):
        raise ValueError(f"positives has {len(positives)} rows; it must have {len(x)}, as x has")
    slots = positives.unbind(1)
    check_embeddings("positives[:, 0]", slots[0], like=("x", x))
    asked, comparing = split(common, x)
    by_slot = [Pairs.paired(x, slot, **comparing) for slot in slots]
    of_slots = [row_stats(pairs, *self_and_others(scale)) for pairs in by_slot]
    first = of_slots[0][0]
    shared = None
    compared = slots[0]
    if negatives is not None:
        check_embeddings("negatives", negatives, like=("x", x))
        compared = torch.cat([compared, negatives])
        apart = all_negatives(x, negatives, **comparing)
        (shared,) = row_stats(apart, lse(NEG, scale, first))
    objective = Objective.of(Pairs.paired(x, compared, **comparing), **asked)
    losses = []
    for near, pos, neg in of_slots:
        if shared is not None:
            neg = log_add_exp(neg, shared + scale * (first - near))
        losses.append(log1p_exp(neg - pos))
    return objective.value(torch.stack(losses).mean(0))
