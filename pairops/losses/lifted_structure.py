"""Lifted structure loss: an anchor's positives against all of its negatives at once."""

from dataclasses import replace
from typing import Literal

from torch import Tensor, relu
from typing_extensions import Unpack

from pairops.ops.pairs.distances import Distance
from pairops.ops.pairs.indexing import pick_rows
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.positive_rows import PositiveRows
from pairops.ops.terms.accumulators import finite, log_add_exp
from pairops.ops.terms.term import NEG, POS, lse

from .objective.keywords import LabelledApart, Value
from .objective.lone_batches import warn_without_positives
from .objective.objective import Objective, labelled
from .objective.registration import loss
from .objective.scalars import number

__all__ = ["lifted_structure_loss"]


@loss()
def lifted_structure_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    form: Literal["generalised", "original"] = "generalised",
    pos_margin: float | Tensor | None = None,
    neg_margin: float | Tensor | None = None,
    distance: Distance = "l2",
    **common: Unpack[LabelledApart],
) -> Value:
    """Generalised: ℓ_i = [log Σ_p e^{d_ip − m_p} + log Σ_n e^{m_n − d_in}]₊.

    Original: ℓ_i = Σ_p ½ [d_ip − m_p + log(Σ_{n∈N_i} e^{m_n − d_in} + Σ_{n∈N_p} e^{m_n − d_pn})]₊²,
    where N_p are the anchors with another label than p. Of similarities d is −s, m_p and m_n
    likewise.

    form: which of the two. In the generalised one a side without pairs adds 0; in the original one
    a batch without negatives is worth 0.  pos_margin, neg_margin: m_p and m_n, distances, by
    default 0 and 1, or similarities, by default 1 and 0; numbers or 0-d tensors with gradient.
    reduction="mean_pairs": of the original, the average over positive pairs. Other arguments,
    errors and the returned dtype: as in `ms_loss`.

    Source: Song et al., CVPR 2016; generalised by Hermans et al., In Defense of the Triplet Loss,
    2017. Equal to pytorch-metric-learning's GeneralizedLiftedStructureLoss, and the original with
    reduction="mean_pairs" to its LiftedStructureLoss; of two sets, that takes the negatives of p by
    index from the anchors.
    """
    if form not in ("generalised", "original"):
        raise ValueError(f'form is {form!r}; it must be "generalised" or "original"')
    original = form == "original"
    objective = labelled(x, labels, common, averages_pairs=original, distance=distance)
    pairs = objective.pairs
    similar = pairs.measure is None
    pull = pairs.at(number("pos_margin", pos_margin, default=1.0 if similar else 0.0))
    push = pairs.at(number("neg_margin", neg_margin, default=0.0 if similar else 1.0))
    if original:
        warn_without_positives(pairs)
        return _original(objective, pull, push)
    pos, neg = row_stats(pairs, lse(POS, -1.0, pull), lse(NEG, 1.0, push))
    return objective.value(relu(finite(pos) + finite(neg)), positive=pos, negative=neg)


def _original(objective: Objective, pull: float | Tensor, push: float | Tensor) -> Value:
    pairs = objective.pairs.widened()
    rows = PositiveRows.of(pairs)
    of_anchor, of_partner = _negatives(pairs, push)
    first = pick_rows(of_anchor, rows.anchor)
    second = pick_rows(pairs.of_all(1, of_partner), rows.partner)
    hinged = relu(pull - rows.score + log_add_exp(first, second))
    losses = rows.per_anchor(hinged * hinged / 2)
    if objective.averages_pairs:
        return objective.mean_pairs((losses, pairs.positives()), negative=of_anchor)
    return objective.value(losses, negative=of_anchor)


def _negatives(pairs: Pairs, push: float | Tensor) -> tuple[Tensor, Tensor]:
    """log Σ e^{t − m_n} over the negatives of every row (N,), and of every partner (M,), which is
    then the anchor: snr divides by its variance."""
    term = lse(NEG, 1.0, push)
    if pairs.y is None:
        (rows,) = row_stats(pairs, term)
        return rows, rows
    if pairs.measure is None or not pairs.measure.directed:
        rows, cols = row_stats(pairs, term, cols=[term])
        return rows, cols
    turned = replace(pairs, measure=pairs.measure.turned())
    return row_stats(pairs, term)[0], row_stats(turned, cols=[term])[0]
