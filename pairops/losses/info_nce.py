"""Contrast between two sets that belong together row by row: InfoNCE and what grew from it."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.distributed.agreement import collective
from pairops.ops.pairs.checks import check_embeddings
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp, softplus_of
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.term import ALL, NEG, POS, Term, highest, lse, total

from .objective.keywords import Paired, Value
from .objective.objective import Objective, check_one_for_each, paired, split
from .objective.scalars import number


@collective()
def info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = ½ (log Σ_j e^{s_ij/τ} + log Σ_j e^{s_ji/τ}) − s_ii/τ: x_i finds y_i, and y_i finds x_i.

    x, y: embeddings; y_i is the one positive of x_i. Rows of y beyond the N-th are hard negatives:
    every x_i has to tell them from y_i.  temperature: τ above 0; a number or a 0-d tensor with
    gradient.  symmetric: False leaves x_i finds y_i alone, log Σ_j e^{s_ij/τ} − s_ii/τ.  weight:
    (N,) per pair (i, i).  Of distances s is −d. Other arguments, errors and the returned dtype: as
    in `ms_loss`.

    Source: van den Oord et al., 2018; two-way as in CLIP (Radford et al., 2021), equal to
    open_clip's ClipLoss with logit_scale = 1/τ; one-way with hard negatives it is
    sentence-transformers' MultipleNegativesRankingLoss with scale = 1/τ.
    """
    scale = 1 / number("temperature", temperature, positive=True)
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
    """The similarity of an anchor's own pair; that times `scale`, and log Σ e^{scale s} of the
    others, both less it: the loss is theirs, and small ones are not lost in large numbers."""
    near = highest(POS, grad=False)
    return near, total(POS, scale, near), lse(NEG, scale, near)


@collective()
def anchor_info_nce_loss(
    x: Tensor,  # (N, D)
    anchor: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = 0.07,
    frozen: bool = True,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log Σ_j e^{⟨x_i, a_j⟩/τ} − ⟨x_i, a_i⟩/τ: one space is drawn to another.

    x: embeddings of one modality, to be called once for each.  anchor: the space that they are to
    take, such as that of behaviour.  frozen: no gradient reaches `anchor`. Other arguments, errors
    and the returned dtype: as in `info_nce_loss`.

    Source: anchor-based InfoNCE of semantic item graphs; of the paper only the abstract could be
    read, which does not tell whether the anchor is held fixed.
    """
    y = anchor.detach() if frozen else anchor
    return info_nce_loss(x, y, temperature=temperature, symmetric=False, **common)


@collective()
def quality_weighted_info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    quality: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.07,
    gamma: float = 1.0,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = w_i (log Σ_j e^{s_ij/τ} − s_ii/τ), w_i = N e^{γ q_i} / Σ_k e^{γ q_k}, held constant.

    quality: q, how good the pair (i, i) is, such as the similarity of its foregrounds less that of
    its backgrounds; no gradient reaches it.  gamma: γ, a number. Other arguments, errors and the
    returned dtype: as in `info_nce_loss`.

    Source: Li et al., GenView, ECCV 2024, whose code multiplies by 2τ and adds the loss with the
    views exchanged.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    sharpness = number("gamma", gamma)
    check_embeddings("x", x)
    if not isinstance(quality, Tensor) or quality.shape != x.shape[:1]:
        kind = tuple(quality.shape) if isinstance(quality, Tensor) else type(quality).__name__
        raise ValueError(f"quality is {kind}; it must be a tensor ({x.shape[0]},)")
    objective = paired(x, y, common)
    quality = quality.detach().to(x.device, objective.pairs.dtype)
    share = _shares(sharpness * quality, objective)
    near, pos, neg = row_stats(objective.pairs, *_self_and_others(scale))
    seen = {"rows": torch.logaddexp(neg, pos) + scale * near} if objective.return_aux else {}
    return objective.value(share * log1p_exp(neg - pos), **seen)


@collective()
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

    The positive is not in the denominator. 0 for N = 1.

    x, y: two views.  sigma: σ above 0; w_i = 2 − N e^{⟨x_i, y_i⟩/σ} / Σ_k e^{⟨x_k, y_k⟩/σ}, with
    gradient; without it w_i = 1.  symmetric: the mean of that and of the same with x and y
    exchanged. Other arguments, errors and the returned dtype: as in `info_nce_loss`.

    Source: Yeh et al., Decoupled Contrastive Learning, ECCV 2022; the weights are those of a
    reimplementation, whose gradient passes through them.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    spread = None if sigma is None else number("sigma", sigma, positive=True)
    check_one_for_each(x, y)
    asked, comparing = split(common, x)
    objective = Objective.of(Pairs.paired(x, y, **comparing), **asked)
    pairs = objective.pairs
    # snr divides by the variance of the anchor, which is a row of y the other way.
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
    """sets: the rows of `pairs`, whose way this is; then its columns, for the mean of both ways."""
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
    """N times the softmax of z (N,), both of the whole batch."""
    group = objective.group
    if group is None:
        return len(z) * torch.softmax(z, 0)
    top = z.detach().amax(0, keepdim=True) if len(z) else z.new_full((1,), -torch.inf)
    power = torch.exp(z - group.rows(top, (1,) * group.size).amax())
    return power * (objective.pairs.batch[0] / objective.total(power.sum()))


@collective()
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
    it, the same slot of other rows is, and all negatives are.

    positives: P ≥ 1 of them for every row.  negatives: those of all rows together. Other arguments,
    errors and the returned dtype: as in `info_nce_loss`; `Aux` counts what is compared in one slot.

    Source: CoDiEmb, the retrieval loss of its training code.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    check_embeddings("x", x)
    if not isinstance(positives, Tensor) or positives.dim() != 3 or not positives.shape[1]:
        kind = tuple(positives.shape) if isinstance(positives, Tensor) else type(positives).__name__
        raise ValueError(f"positives is {kind}; it must be a tensor (N, P, D) with P at least 1")
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
