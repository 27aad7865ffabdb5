"""Losses that add up pair by pair: a pair is pulled or pushed by how far it is from a threshold."""

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.checks import as_index, ignored_label, is_number
from pairops.ops.pairs.distances import Distance
from pairops.ops.pairs.indexing import pick_rows
from pairops.ops.pairs.similarity import at_least_float32
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import linear, per_pair
from pairops.ops.terms.checks import flag, one_of
from pairops.ops.terms.functions import affine, hinge, one, softplus
from pairops.ops.terms.tensor_checks import (
    FLOATS,
    check_classes,
    check_embeddings,
    check_real,
    number,
    whole_numbers,
)
from pairops.ops.terms.term import NEG, POS, Term, total

from .objective.keywords import Labelled, LabelledApart, Value
from .objective.objective import labelled, similar_only
from .objective.registration import loss

__all__ = ["binomial_deviance_loss", "contrastive_loss", "margin_loss"]


@loss()
def contrastive_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    pos_margin: float | Tensor | None = None,
    neg_margin: float | Tensor | None = None,
    negatives: Literal["hinge", "raw"] = "hinge",
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = Σ_p [pos_margin − s_ip]₊ + Σ_n [s_in − neg_margin]₊.

    With a distance d the loss is Σ_p [d_ip − pos_margin]₊ + Σ_n [neg_margin − d_in]₊.
    `reduction="mean_pairs"` averages the positives over those that are not 0, likewise the
    negatives, and adds both averages up.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        pos_margin: a number or a 0-d tensor with gradient: a similarity, by default 1, or a
            distance, by default 0.
        neg_margin: a number or a 0-d tensor with gradient: a similarity, by default 0.5, or a
            distance, by default 1.
        negatives: "hinge", or "raw", which adds s_in as it is for each s_in > neg_margin, as the
            code released with cross-batch memory does; the loss then jumps at the margin.

    Source:
        Hadsell et al., CVPR 2006, in the similarity form of the general-pair-weighting paper. With
        distance="l2" and reduction="mean_pairs" the loss equals pytorch-metric-learning's
        ContrastiveLoss.
    """
    objective = labelled(x, labels, common, averages_pairs=True)
    pairs = objective.pairs
    similar = pairs.measure is None
    pull = pairs.at(number("pos_margin", pos_margin, default=1.0 if similar else 0.0))
    push = pairs.at(number("neg_margin", neg_margin, default=0.5 if similar else 1.0))
    if type(negatives) is not str or negatives not in ("hinge", "raw"):
        one_of("negatives", negatives, ("hinge", "raw"))
    if negatives == "raw":
        similar_only('contrastive_loss with negatives="raw"', pairs)
        pushing = total(NEG, 1.0, 0.0, function=affine, above=push)
    else:
        pushing = total(NEG, 1.0, push, function=hinge)
    pulling = total(POS, -1.0, pull, function=hinge)
    if not objective.averages_pairs:
        return objective.of_pieces((pulling, pushing), [linear(pulling), linear(pushing)])
    pulled, pushed = _active(pull, push)
    return objective.of_pieces(
        (pulling, pushing, pulled, pushed), [per_pair(pulling, pulled), per_pair(pushing, pushed)]
    )


@loss("beta")
def margin_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    beta: float | Tensor = 1.2,
    margin: float | Tensor = 0.2,
    triplets: bool = False,
    distance: Distance = "l2",
    **common: Unpack[LabelledApart],
) -> Value:
    """ℓ_i = Σ_p [d_ip − β + m]₊ + Σ_n [β − d_in + m]₊, with β of the anchor's class.

    With a similarity s the loss is Σ_p [β − s_ip + m]₊ + Σ_n [s_in − β + m]₊.
    `reduction="mean_pairs"` divides the sum by the number of pairs that are not 0; `triplets`
    multiplies that number as it does the sum.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        beta: a number, a 0-d tensor, or a tensor (C,) whose entry at its label an anchor takes;
            with gradient. β, a distance or a similarity.
        margin: a number or a 0-d tensor with gradient: m.
        triplets: True counts a positive once for each negative of its anchor, and a negative once
            for each positive.
        distance: how two rows are compared, as in `Pairs.of`.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be; so of a
            label outside of β, where labels can be read without waiting.

    Source:
        Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017. With triplets=True and
        reduction="mean_pairs" the loss equals pytorch-metric-learning's MarginLoss.

    Differs from:
        The paper samples pairs by distance; here every pair counts.
    """
    margin = number("margin", margin)
    flag("triplets", triplets)
    if isinstance(beta, Tensor) and beta.dim() == 1 and len(beta) != 1:
        check_embeddings("x", x)
        if labels is None or common.get("width") is not None:
            raise ValueError(
                f"beta has {len(beta)} entries, one for each class, but labels are "
                f"{'None' if labels is None else 'numbers'}; beta must be one number"
            )
        whole_numbers("labels", labels, "x", x)
        ignored = ignored_label(common.get("ignore_index", -100))
        beta = _of_class(beta, labels.to(x.device), ignored)
    else:
        beta = number("beta", beta)
    objective = labelled(x, labels, common, averages_pairs=True, distance=distance)
    pairs = objective.pairs
    if triplets:
        objective.warn_without_positives()
    place = pairs.at(beta)
    pull, push = place + margin, place - margin
    pulling = total(POS, -1.0, pull, function=hinge)
    pushing = total(NEG, 1.0, push, function=hinge)
    if not (triplets or objective.averages_pairs):
        return objective.of_pieces((pulling, pushing), [linear(pulling), linear(pushing)])
    counting = _active(pull, push) if objective.averages_pairs else ()
    pos, neg, *active = row_stats(pairs, pulling, pushing, *counting)
    times_pos, times_neg = reversed(pairs.counts()) if triplets else (1, 1)
    losses = times_pos * pos + times_neg * neg
    if not objective.averages_pairs:
        return objective.value(losses)
    pulled, pushed = active
    return objective.mean_pairs((losses, times_pos * pulled + times_neg * pushed))


@loss()
def binomial_deviance_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    alpha: float | Tensor = 2.0,
    beta: float | Tensor = 40.0,
    base: float | Tensor = 0.5,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1/|P_i| Σ_p log(1 + e^{−α(s_ip − λ)}) + 1/|N_i| Σ_n log(1 + e^{β(s_in − λ)}).

    A side without pairs adds 0. With a distance d, s is −d. `reduction="mean_pairs"` averages over
    all positive pairs of the batch, likewise over all negative ones, and adds both averages up.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        alpha: a number above 0 or a 0-d tensor with gradient: α, the sharpness on positives.
        beta: a number above 0 or a 0-d tensor with gradient: β, the sharpness on negatives.
        base: a number or a 0-d tensor with gradient: λ, a similarity; or a distance, and λ is
            −base.

    Source:
        Yi et al., Deep Metric Learning for Practical Person Re-Identification, 2014, in the form of
        Deep_Metric, the code before multi-similarity.

    Differs from:
        Deep_Metric leaves self pairs out by value.
    """
    alpha, beta = number("alpha", alpha, positive=True), number("beta", beta, positive=True)
    objective = labelled(x, labels, common, averages_pairs=True)
    pairs = objective.pairs
    base = pairs.at(number("base", base))
    pos, neg = row_stats(
        pairs,
        total(POS, -alpha, alpha * base, function=softplus),
        total(NEG, beta, -beta * base, function=softplus),
    )
    positives, negatives = pairs.counts()
    if objective.averages_pairs:
        return objective.mean_pairs((pos, positives), (neg, negatives))
    return objective.value(pos / positives.clamp(min=1) + neg / negatives.clamp(min=1))


def _active(pull: float | Tensor, push: float | Tensor) -> tuple[Term, Term]:
    """Count an anchor's positives below `pull`, and its negatives above `push`."""
    return total(POS, function=one, below=pull), total(NEG, function=one, above=push)


def _of_class(beta: Tensor, labels: Tensor, ignored: int | None) -> Tensor:
    """Look up the entry of beta (C,) at each label (N,); an ignored row gets any entry."""
    check_real("beta", beta)
    if beta.dtype not in FLOATS:
        raise TypeError(f"beta is {beta.dtype}; it must be floating-point")
    index = as_index(labels)
    if ignored is not None:
        index = torch.where(is_number(labels, ignored), 0, index)
    check_classes("labels", index, len(beta), "beta has")
    return pick_rows(at_least_float32(beta), index)
