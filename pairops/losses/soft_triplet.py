"""Soft triplet loss: a teacher says how much farther a negative is to be than a positive."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.by_index import pairs_by_index
from pairops.ops.pairs.distances import Distance
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.tensor_checks import check_embeddings
from pairops.ops.terms.term import NEG, POS, highest, lowest, total

from .objective.keywords import LabelledApart, Value
from .objective.objective import labelled
from .objective.registration import loss
from .teacher_similarities import check_teacher, teacher_of_references

__all__ = ["soft_triplet_loss"]


@loss()
def soft_triplet_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    teacher: Tensor,  # (N, E)
    *,
    ref_teacher: Tensor | None = None,  # (M, E)
    distance: Distance = "l2",
    **common: Unpack[LabelledApart],
) -> Value:
    """ℓ_i = −Σ_{k∈{p, n}} π_ik log(e^{d_ik} / (e^{d_ip} + e^{d_in})): x is to rank as the teacher.

    p is the farthest positive of x_i and n its nearest negative. π_ip = e^{d'_ip} / (e^{d'_ip} +
    e^{d'_in}) and π_in = 1 − π_ip are the softmax of the distances d' of the teacher's embeddings
    of the same pairs, held constant; no other distance of the teacher is computed. The logits are
    the distances themselves, with their sign, so the teacher's confidence that n is farther is
    π_in. An anchor without positives, or without negatives, contributes 0. With a similarity s, d
    is −s.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        teacher: (N, E) floating point without gradient, the teacher's embeddings of the same rows.
        ref_teacher: (M, E) of the dtype of `teacher`, its embeddings of `ref_emb`; needed with it.
        distance: how two rows are compared, those of the teacher too, as in `Pairs.of`.

    Source:
        Ge et al., Mutual Mean-Teaching (MMT), ICLR 2020; Attentive WaveBlock trains with it. With
        normalize=False the loss equals the authors' SoftTripletLoss(margin=None).

    Differs from:
        The authors' code takes an anchor without other positives for its own positive, at distance
        1e-6, and one without negatives for its own negative.
    """
    check_embeddings("x", x)
    check_teacher("teacher", teacher, "x", x)
    objective = labelled(x, labels, common, distance=distance)
    pairs = objective.pairs
    ref_teacher = teacher_of_references(teacher, ref_teacher, common.get("ref_emb"))
    objective.warn_without_positives()
    found: Any = row_stats(pairs, lowest(POS, index=True), highest(NEG, index=True))
    (far, positive), (near, negative) = found
    comparing = {"distance": distance, "normalize": common.get("normalize")}
    taught_in = torch.promote_types(teacher.dtype, pairs.dtype)
    teacher, ref_teacher = (z.detach().to(taught_in) for z in (teacher, ref_teacher))
    every = pairs.of_all(1, ref_teacher)
    far_taught, near_taught = (
        _closeness(teacher, every, at, comparing) for at in (positive, negative)
    )
    none = (far == torch.inf) | (near == -torch.inf)
    # d_p − d_n of x and of the teacher.
    gap = torch.where(none, 0, near - far)
    taught = torch.where(none, 0, near_taught - far_taught).to(gap.dtype)
    losses = torch.sigmoid(taught) * log1p_exp(-gap) + torch.sigmoid(-taught) * log1p_exp(gap)
    return objective.value(torch.where(none, 0, losses))


def _closeness(rows: Tensor, every: Tensor, at: Tensor, comparing: dict[str, Any]) -> Tensor:
    """Return (N,) the closeness of each of `rows` to the row of `every` at its index; any where the
    index is −1."""
    others = every[at.clamp(min=0)] if every.shape[0] else rows
    with torch.no_grad():
        pairs = pairs_by_index(rows, others, **comparing)
        return row_stats(pairs, total(POS, 1.0, 0.0))[0]
