"""InfoNCE and losses that grew from it: two sets belong together row by row."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp, softplus_of
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.checks import flag
from pairops.ops.terms.tensor_checks import check_embeddings, check_real, number
from pairops.ops.terms.term import ALL, NEG, POS, Term, highest, lse, total

from .objective.keywords import Paired, Value
from .objective.objective import Objective, check_one_for_each, paired, split
from .objective.registration import loss

__all__ = ["decoupled_contrastive_loss", "info_nce_loss", "multi_positive_loss"]


@loss()
def info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = ½ (log Σ_j e^{s_ij/τ} + log Σ_j e^{s_ji/τ}) − s_ii/τ: x_i finds y_i, and y_i finds x_i.

    y_i is the one positive of x_i. Rows of y beyond the N-th are hard negatives: every x_i has to
    tell them from y_i. `weight` is one factor per pair (i, i). With a distance d, s is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (M, D) of the dtype of x, with M ≥ N. The embeddings that x is compared with.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        symmetric: False leaves only the direction in which x_i finds y_i, log Σ_j e^{s_ij/τ} −
            s_ii/τ.

    Source:
        van den Oord et al., 2018; two-way as in CLIP (Radford et al., 2021). The two-way loss
        equals open_clip's ClipLoss with logit_scale = 1/τ. The one-way loss with hard negatives is
        sentence-transformers' MultipleNegativesRankingLoss with scale = 1/τ.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    if symmetric is not True:
        flag("symmetric", symmetric)
    objective = paired(x, y, common)
    ways: list[tuple[Term, ...]] = [_self_and_others(scale)]
    if symmetric:
        ways += (_self_and_others(scale),)
    pieces = [softplus_of(neg, pos, weight=1 / len(ways)) for _, pos, neg in ways]
    seen = {}
    if objective.return_aux:
        seen = dict(zip(("rows", "cols"), [lse(ALL, scale, 0.0) for _ in ways], strict=False))
        ways = [(*way, every) for way, every in zip(ways, seen.values(), strict=True)]
    return objective.of_pieces(ways[0], pieces, ways[1] if symmetric else (), **seen)


def _self_and_others(scale: float | Tensor) -> tuple[Term, ...]:
    """Build terms of an anchor: c = s_ii, scale (s_ii − c), log Σ_{j≠i} e^{scale (s_ij − c)}.

    c is held constant. A loss of differences from it does not lose small numbers in large ones.
    """
    near = highest(POS, grad=False)
    return near, total(POS, scale, near), lse(NEG, scale, near)


@loss()
def decoupled_contrastive_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = 0.1,
    sigma: float | Tensor | None = None,
    symmetric: bool = True,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log(Σ_{j≠i} e^{⟨x_i, x_j⟩/τ} + Σ_{j≠i} e^{⟨x_i, y_j⟩/τ}) − w_i ⟨x_i, y_i⟩/τ.

    The positive is not in the denominator. The loss is 0 for N = 1. `weight` is one factor per pair
    (i, i). With a distance d, ⟨·, ·⟩ is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings of one view.
        y: (N, D) of the dtype of x, the embeddings of the other view.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        sigma: a number above 0 or a 0-d tensor with gradient: σ in w_i = 2 − N e^{⟨x_i, y_i⟩/σ} /
            Σ_k e^{⟨x_k, y_k⟩/σ}, which has a gradient. None: w_i = 1.
        symmetric: True takes the mean of this loss and of the same with x and y exchanged.

    Source:
        Yeh et al., Decoupled Contrastive Learning, ECCV 2022. The weights w_i are those of a
        reimplementation, whose gradient passes through them.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    spread = None if sigma is None else number("sigma", sigma, positive=True)
    flag("symmetric", symmetric)
    check_one_for_each(x, y)
    asked, comparing = split(common, x)
    objective = Objective.of(Pairs.paired(x, y, **comparing), **asked)
    pairs = objective.pairs
    # snr divides by the variance of the anchor. In the other direction that is a row of y.
    directed = pairs.measure is not None and pairs.measure.directed
    at_once = (x, y) if symmetric and not directed else (x,)
    losses = _decoupled(objective, pairs, at_once, comparing, scale, spread)
    if symmetric and directed:
        turned = Pairs.paired(y, x, **comparing)
        losses = (losses + _decoupled(objective, turned, (y,), comparing, scale, spread)) / 2
    return objective.value(losses)


def _decoupled(
    objective: Objective,
    pairs: Pairs,
    sets: tuple[Tensor, ...],
    comparing: Any,
    scale: float | Tensor,
    spread: float | Tensor | None,
) -> Tensor:  # (N,)
    """Compute the loss of every pair (i, i), before weights.

    Args:
        objective: the objective of the call.
        pairs: x_i and y_i, by index.
        sets: the rows of `pairs`, and its columns too for the mean of both directions.
        comparing: keywords of `Pairs.of` that say how rows are compared.
        scale: 1/τ.
        spread: σ. None: w_i = 1.
    """
    terms = _self_and_others(scale)
    found = row_stats(pairs, *terms, cols=terms if len(sets) > 1 else ())
    if pairs.batch[0] < 2:
        return 0 * found[1]
    names = pairs.indices()
    ways = []
    for z, near, pos, cross in zip(sets, found[::3], found[1::3], found[2::3], strict=True):
        alone = Pairs.of(z, names, ignore_index=None, **comparing)
        (within,) = row_stats(alone, lse(NEG, scale, near))
        ways.append(log_add_exp(cross, within) - pos)
    losses = torch.stack(ways).mean(0)
    if spread is not None:
        s = found[1] / scale + found[0]
        losses = losses - (1 - _shares(s / spread, objective)) * s * scale
    return losses


def _shares(z: Tensor, objective: Objective) -> Tensor:
    """Compute N times the softmax of z (N,) over the batch of all ranks."""
    if objective.group is None:
        return len(z) * torch.softmax(z, 0)
    power = torch.exp(z - objective.highest(z))
    return power * (objective.pairs.batch[0] / objective.total(power.sum()))


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
    of_slots = [row_stats(pairs, *_self_and_others(scale)) for pairs in by_slot]
    first = of_slots[0][0]
    shared = None
    compared = slots[0]
    if negatives is not None:
        check_embeddings("negatives", negatives, like=("x", x))
        compared = torch.cat([compared, negatives])
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        ones = torch.ones(len(negatives), dtype=torch.int64, device=x.device)
        apart = Pairs.of(
            x, zeros, ref_emb=negatives, ref_labels=ones, ignore_index=None, **comparing
        )
        (shared,) = row_stats(apart, lse(NEG, scale, first))
    objective = Objective.of(Pairs.paired(x, compared, **comparing), **asked)
    losses = []
    for near, pos, neg in of_slots:
        if shared is not None:
            neg = log_add_exp(neg, shared + scale * (first - near))
        losses.append(log1p_exp(neg - pos))
    return objective.value(torch.stack(losses).mean(0))
