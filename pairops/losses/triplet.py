"""Triplet loss: an anchor's negatives are to be farther than its positives, by a margin."""

from typing import Literal, get_args

import torch
from torch import Tensor, relu
from typing_extensions import Unpack

from pairops.ops.pairs.indexing import pick_rows
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import hinge_of, log1p_exp, softplus_of
from pairops.ops.row_stats.positive_rows import PositiveRows
from pairops.ops.terms.checks import flag, one_of
from pairops.ops.terms.functions import hinge, one, softplus
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, highest, lowest, total

from .objective.keywords import Labelled, Value
from .objective.objective import Objective, labelled
from .objective.registration import loss

__all__ = ["triplet_loss"]

Mining = Literal["hard", "semihard", "all"]
MINING = get_args(Mining)


@loss()
def triplet_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    margin: float | Tensor = 0.05,
    mining: Mining = "hard",
    soft: bool = False,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = Σ_{(p, n)} [s_in − s_ip + m]₊ over the anchor's mined triplets; 0 if it has none.

    With a distance d, s is −d. If several pairs attain an extreme, the one with the lowest index
    gets the gradient. `reduction="mean_pairs"` averages over positive pairs with mining="semihard",
    and over the triplets with [z]₊ > 0 with mining="all"; mining="hard" does not have it.

    "semihard" and "all" make a row of every positive pair, see `PositiveRows`: they take O(N·D + K)
    memory for K such pairs and, on a GPU, wait for K.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        margin: a number or a 0-d tensor with gradient: m, a difference of similarities or
            distances.
        mining: "hard", one triplet, of the farthest positive and the nearest negative; "semihard",
            with each positive the nearest negative that is farther than it, or the farthest
            negative if none is; "all", every triplet.
        soft: True takes log(1 + e^z) instead of [z]₊.

    Source:
        "hard" Hermans et al., In Defense of the Triplet Loss, 2017. "semihard" Schroff et al.,
        FaceNet, 2015, in TensorFlow Addons' form. "all" with distance="l2" and
        reduction="mean_pairs" is pytorch-metric-learning's TripletMarginLoss.

    Differs from:
        sentence-transformers counts an anchor without positives as if its farthest were at distance
        0.
    """
    margin = number("margin", margin)
    if type(mining) is not str or mining not in MINING:
        one_of("mining", mining, MINING)
    if soft is not False:
        flag("soft", soft)
    objective = labelled(x, labels, common, averages_pairs=mining != "hard")
    objective.warn_without_positives()
    if mining == "hard":
        far, near = lowest(POS), highest(NEG)
        shape = softplus_of if soft else hinge_of
        return objective.of_pieces((far, near), [shape(near, far, offset=margin)])
    if mining == "semihard":
        return _semihard(objective, margin, soft)
    return _all(objective, margin, soft)


def _semihard(objective: Objective, margin: float | Tensor, soft: bool) -> Value:
    pairs = objective.pairs.widened()
    rows = PositiveRows.of(pairs)
    (near,) = row_stats(rows.pairs, highest(NEG, below=rows.score.detach()))
    (farthest,) = row_stats(pairs, lowest(NEG))
    farthest = pick_rows(farthest, rows.anchor)
    # +inf marks an anchor without any negative.
    near = torch.where(near == -torch.inf, farthest, near)
    violation = torch.where(near == torch.inf, -torch.inf, near - rows.score + margin)
    losses = rows.per_anchor(_penalty(violation, soft))
    if not objective.averages_pairs:
        return objective.value(losses)
    positives, negatives = pairs.counts()
    return objective.mean_pairs((losses, torch.where(negatives > 0, positives, 0)))


def _all(objective: Objective, margin: float | Tensor, soft: bool) -> Value:
    pairs = objective.pairs.widened()
    rows = PositiveRows.of(pairs)
    base = rows.score - margin
    if soft:
        penalties = total(NEG, 1.0, -base, function=softplus)
    else:
        penalties = total(NEG, 1.0, base, function=hinge)
    if not objective.averages_pairs:
        (sums,) = row_stats(rows.pairs, penalties)
        return objective.value(rows.per_anchor(sums))
    if soft:
        (sums,) = row_stats(rows.pairs, penalties)
        positives, negatives = pairs.counts()
        return objective.mean_pairs((rows.per_anchor(sums), positives * negatives))
    sums, active = row_stats(rows.pairs, penalties, total(NEG, function=one, above=base))
    if objective.weight is not None:  # weights are per anchor, else per pair will do
        sums, active = rows.per_anchor(sums), rows.per_anchor(active)
    return objective.mean_pairs((sums, active))


def _penalty(violation: Tensor, soft: bool) -> Tensor:
    return log1p_exp(violation) if soft else relu(violation)
