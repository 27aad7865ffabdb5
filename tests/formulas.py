"""Every loss written naively from its paper: the oracle that the engines are compared with.

Nothing here knows the library. A loss computes in `dtype` (float64; float32 gives what dense torch
gets), by plain autograd over the whole matrix, and returns one number per anchor, in the caller's
order; `reduce` makes them one.

The losses over labels share these keywords (see `_each_anchor`):
    ref_emb, ref_labels   the references; None: the anchors themselves
    own                   (N,) the reference that row i itself is, or -1; None: i if the same set
    normalize             compare x / |x|; the zero vector stays zero and gets no gradient
    ignore_index          rows with this label are neither anchors nor references; None: no label
    dtype                 what to compute in
"""

import torch
from torch import Tensor


def ms_loss(x, labels, *, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1, **pairing) -> Tensor:
    """Multi-Similarity (Wang et al. 2019).

    1/alpha log(1 + sum_P* e^{-alpha(s - base)}) + 1/beta log(1 + sum_N* e^{beta(s - base)}) over
    P* = {p: s_p - epsilon < max_N s} and N* = {n: s_n + epsilon > min_P s}, whose thresholds have
    no gradient; 0 for an anchor without P or without N. With `epsilon=None` nothing is mined: all
    of P and all of N, and an empty side adds log(1 + 0).
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if epsilon is not None:
            if not len(pos) or not len(neg):
                return pos.new_zeros(())
            farthest, nearest = pos.detach().min(), neg.detach().max()
            # said as what is dropped, so that a NaN, which is neither above nor below, is kept
            pos, neg = pos[~(pos - epsilon >= nearest)], neg[~(neg + epsilon <= farthest)]
        pull = _log1p_sum_exp(-alpha * (pos - base)) / alpha
        push = _log1p_sum_exp(beta * (neg - base)) / beta
        return pull + push

    return _each_anchor(anchor, x, labels, **pairing)


def contrastive_loss(x, labels, *, pos_margin=1.0, neg_margin=0.5, **pairing) -> Tensor:
    """Contrastive, on similarities: sum_P [pos_margin - s]+ + sum_N [s - neg_margin]+."""

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        return _hinge(pos_margin - pos).sum() + _hinge(neg - neg_margin).sum()

    return _each_anchor(anchor, x, labels, **pairing)


def supcon_loss(x, labels, *, temperature=0.1, **pairing) -> Tensor:
    """SupCon (Khosla et al. 2020, L_out): mean_P -log(e^{s_p / t} / sum_{all but self} e^{s / t}).

    0 for an anchor without positives.
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        everyone = torch.cat([pos, neg]) / temperature
        return (everyone.logsumexp(0) - pos / temperature).mean()

    return _each_anchor(anchor, x, labels, **pairing)


def triplet_loss(x, labels, *, margin=0.05, **pairing) -> Tensor:
    """Triplet, batch hard (Hermans et al. 2017), on similarities: [max_N s - min_P s + margin]+.

    0 for an anchor without positives or without negatives.
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos) or not len(neg):
            return pos.new_zeros(())
        return _hinge(_highest(neg) + _highest(-pos) + margin)

    return _each_anchor(anchor, x, labels, **pairing)


def info_nce_loss(x, y, *, temperature=0.07, normalize=True, dtype=torch.float64) -> Tensor:
    """InfoNCE both ways (CLIP): half the cross entropies of row i and of column i, target i."""
    logits = _similarities(x, y, normalize, dtype) / temperature  # (N, N)
    matched = logits.diagonal()
    return (logits.logsumexp(1) - matched) / 2 + (logits.logsumexp(0) - matched) / 2


def siglip_loss(x, y, *, scale, bias, normalize=True, dtype=torch.float64) -> Tensor:
    """SigLIP (Zhai 2023): sum_j log(1 + e^{-z_ij (scale s_ij + bias)}), z_ii = 1, else -1."""
    logits = scale * _similarities(x, y, normalize, dtype) + bias  # (N, N)
    z = 2 * torch.eye(len(logits), dtype=dtype, device=logits.device) - 1
    # not F.softplus, which is the identity above 20 and so 2e-9 off
    return torch.logaddexp(-z * logits, torch.zeros_like(logits)).sum(1)


def reduce(losses: Tensor, *, weight=None, reduction="mean", ignored=None) -> Tensor:
    """Reduce losses (N,), each times its weight (N,), to "mean", "mean_nonzero", "sum" or "none".

    "mean" divides by the number of anchors that the mask `ignored` (N,) leaves, "mean_nonzero" by
    the number of losses that are not <= 0.
    """
    ignored = torch.zeros_like(losses, dtype=torch.bool) if ignored is None else ignored
    weight = torch.ones_like(losses) if weight is None else weight.to(losses.dtype)
    losses, weight = losses.masked_fill(ignored, 0), weight.masked_fill(ignored, 0)
    if reduction == "none":
        return weight * losses
    if reduction == "sum":
        return (weight * losses).sum()
    if reduction == "mean":
        return (weight * losses).sum() / max(int((~ignored).sum()), 1)
    if reduction == "mean_nonzero":
        counted = ~(losses <= 0)  # a NaN is counted, and so is seen
        return (weight * losses)[counted].sum() / max(int(counted.sum()), 1)
    raise ValueError(f"reduction is {reduction!r}")


def _each_anchor(
    anchor,
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    own: Tensor | None = None,  # (N,)
    normalize: bool = True,
    ignore_index: int | None = -100,
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # (N,)
    """Return `anchor(similarities to P, similarities to N)` of every row of x."""
    same_set = ref_emb is None
    y, ref_labels = (x, labels) if same_set else (ref_emb, ref_labels)
    if own is None:
        own = torch.arange(len(x)) if same_set else torch.full((len(x),), -1)
    assert not labels.is_floating_point(), "labels are compared exactly"
    assert not ref_labels.is_floating_point(), "labels are compared exactly"
    # int64 before the comparison: in an uint8 tensor -100 could not be told from 156
    labels, ref_labels, own = (t.to(x.device, torch.int64) for t in (labels, ref_labels, own))

    anchors, columns = torch.arange(len(x), device=x.device), torch.arange(len(y), device=x.device)
    if ignore_index is not None:
        anchors, columns = anchors[labels != ignore_index], columns[ref_labels != ignore_index]
    # ignored rows leave before any arithmetic: 0 * NaN would take theirs into everybody's gradient
    s = _similarities(x[anchors], y[columns], normalize, dtype)
    losses = [x.new_zeros((), dtype=dtype)] * len(x)
    for i, s_i in zip(anchors.tolist(), s.unbind(0), strict=True):
        other = columns != own[i]
        same = ref_labels[columns] == labels[i]
        losses[i] = anchor(s_i[same & other], s_i[~same & other])
    # the empty sum ties a loss without any pair to its inputs: gradient 0 and not None
    tie = s[:0].sum()
    return torch.stack(losses) + tie if losses else tie.expand(0)


def _similarities(x: Tensor, y: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:  # (N, M)
    x, y = x.to(dtype), y.to(dtype)
    return _unit(x) @ _unit(y).T if normalize else x @ y.T


def _unit(x: Tensor) -> Tensor:  # (N, D)
    squares = (x * x).sum(1, keepdim=True)
    tiny = squares.detach().sqrt() < 1e-12  # false for a NaN
    # 1 stands in before the root: the slope of the root at 0 is infinite, and times 0 a NaN
    return (x / squares.masked_fill(tiny, 1).sqrt()).masked_fill(tiny, 0)


def _hinge(z: Tensor) -> Tensor:
    """Return [z]+, with slope 0 at 0 and slope NaN at NaN (clamp would say 0 there)."""
    slope = torch.where(z.isnan(), z, 1.0).detach()
    return (slope * z).masked_fill(z <= 0, 0)


def _highest(s: Tensor) -> Tensor:
    """Return the maximum of s (K,); its gradient goes to one element: the first NaN or maximum.

    In float64 BLAS gives the same two vectors other last bits in other columns of the matrix, so
    maxima are equal within 1e-13; in float32 that means exactly equal.
    """
    s_fixed = s.detach()
    tied = s_fixed.isclose(s_fixed.max(), rtol=1e-13, atol=1e-15, equal_nan=True)
    return s[int(tied.nonzero()[0, 0])]


def _log1p_sum_exp(z: Tensor) -> Tensor:
    """Return log(1 + sum e^z) of z (K,)."""
    return torch.cat([z.new_zeros(1), z]).logsumexp(0)
