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
from pairops.ops.terms.checks import one_of
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, lse

from .objective.keywords import LabelledApart, Value
from .objective.objective import Objective, labelled
from .objective.registration import loss

__all__ = ["lifted_structure_loss"]


@loss()
def lifted_structure_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    form: Literal["generalised", "original"] = "generalised",
    pos_margin: float | Tensor | None = None,
    neg_margin: float | Tensor | None = None,
    distance: Distance = "l2",
    **common: Unpack[LabelledApart],
) -> Value:
    """ℓ_i = [log Σ_p e^{d_ip − m_p} + log Σ_n e^{m_n − d_in}]₊, or the original form.

    The original form is ℓ_i = Σ_p ½ [d_ip − m_p + log(Σ_{n∈N_i} e^{m_n − d_in} + Σ_{n∈N_p} e^{m_n −
    d_pn})]₊², where N_p are the anchors with another label than p. With a similarity s, d is −s,
    and the margins change their sign likewise. In the generalised form a side without pairs adds 0;
    in the original form a batch without negatives is worth 0. `reduction="mean_pairs"` averages the
    original form over positive pairs.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        form: "generalised" or "original".
        pos_margin: a number or a 0-d tensor with gradient: m_p, a distance, by default 0, or a
            similarity, by default 1.
        neg_margin: a number or a 0-d tensor with gradient: m_n, a distance, by default 1, or a
            similarity, by default 0.
        distance: how two rows are compared, as in `Pairs.of`.

    Source:
        Song et al., CVPR 2016; generalised by Hermans et al., In Defense of the Triplet Loss, 2017.
        The generalised form equals pytorch-metric-learning's GeneralizedLiftedStructureLoss, and
        the original form with reduction="mean_pairs" its LiftedStructureLoss.

    Differs from:
        pytorch-metric-learning's LiftedStructureLoss takes, with two sets, the negatives of p by
        index from the anchors.
    """
    one_of("form", form, ("generalised", "original"))
    original = form == "original"
    objective = labelled(x, labels, common, averages_pairs=original, distance=distance)
    pairs = objective.pairs
    similar = pairs.measure is None
    pull = pairs.at(number("pos_margin", pos_margin, default=1.0 if similar else 0.0))
    push = pairs.at(number("neg_margin", neg_margin, default=0.0 if similar else 1.0))
    if original:
        objective.warn_without_positives()
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
    """Compute log Σ e^{t − m_n} over the negatives of every row (N,) and of every partner (M,).

    A partner is then the anchor, and snr divides by its variance.
    """
    term = lse(NEG, 1.0, push)
    if pairs.symmetric:
        (rows,) = row_stats(pairs, term)
        return rows, rows
    if pairs.measure is None or not pairs.measure.directed:
        rows, cols = row_stats(pairs, term, cols=[term])
        return rows, cols
    turned = replace(pairs, measure=pairs.measure.turned())
    return row_stats(pairs, term)[0], row_stats(turned, cols=[term])[0]
