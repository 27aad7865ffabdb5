"""The losses over two sets: row i of y belongs to row i of x."""

import torch
from torch import Tensor

from oracle.info_nce import info_nce_loss
from oracle.rows import SIMILARITIES, closeness, hinge, softplus

__all__ = [
    "alignment_loss",
    "anchor_info_nce_loss",
    "auc_loss",
    "conditional_transport_loss",
    "cosent_loss",
    "decoupled_contrastive_loss",
    "multi_positive_loss",
    "quality_weighted_info_nce_loss",
    "siglip_loss",
    "sms_loss",
    "tal_loss",
]


def siglip_loss(x, y, *, scale=10.0, bias=-10.0, **pairing) -> Tensor:
    """SigLIP (Zhai 2023): sum_j log(1 + e^{-z_ij (scale s_ij + bias)}), z_ii = 1, else -1."""
    logits = scale * closeness(x, y, **pairing) + bias  # (N, N)
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return softplus(-z * logits).sum(1)


def alignment_loss(x, y, *, alpha=2.0, distance="l2", **pairing) -> Tensor:
    """Alignment (Wang & Isola 2020): d_ii^alpha, 0 without gradient where d_ii is 0."""
    apart = -closeness(x, y, distance, **pairing).diagonal()
    return (apart.masked_fill(apart == 0, 1) ** alpha).masked_fill(apart == 0, 0)


def auc_loss(x, y, *, temperature=0.01, **pairing) -> Tensor:
    """Mann-Whitney (2025): sum over all negatives (k, l) of log(1 + e^{(t_kl - t_ii) / T})."""
    t = closeness(x, y, **pairing)
    others = ~torch.eye(*t.shape, dtype=torch.bool, device=t.device)
    losses = [softplus((t[others] - own) / temperature).sum() for own in t.diagonal()]
    return torch.stack(losses) if losses else t.sum(1)


def cosent_loss(x, y, scores, *, temperature=0.05, **pairing) -> Tensor:
    """CoSENT (Huang 2024): log(1 + sum_{c_k > c_l} e^{(t_ll - t_kk) / T}), c the scores."""
    own = closeness(x, y, **pairing).diagonal()
    higher = scores[:, None] > scores
    exponents = ((own - own[:, None]) / temperature)[higher]
    return torch.cat([own.new_zeros(1), exponents]).logsumexp(0).expand(len(own))


def anchor_info_nce_loss(x, anchor, *, temperature=0.07, frozen=True, **pairing) -> Tensor:
    """InfoNCE one way, against anchors (N, D), which get no gradient if frozen."""
    anchor = anchor.detach() if frozen else anchor
    return info_nce_loss(x, anchor, temperature=temperature, symmetric=False, **pairing)


def quality_weighted_info_nce_loss(
    x, y, quality, *, temperature=0.07, gamma=1.0, **pairing
) -> Tensor:
    """InfoNCE one way, row i times N softmax_i(gamma quality) without gradient (GenView, 2024)."""
    losses = info_nce_loss(x, y, temperature=temperature, symmetric=False, **pairing)
    weight = len(x) * (gamma * quality.detach().to(losses.dtype)).softmax(0)
    return weight * losses


def conditional_transport_loss(x, y, *, scale=10.0, distance="cosine", **pairing) -> Tensor:
    """Conditional transport (Zheng & Zhou 2021): sum_j softmax_j(scale t_ij) (1 - t_ij) of row i
    plus the same of column i; of a distance the cost is the distance, -t."""
    t = closeness(x, y, distance=distance, **pairing)
    cost = (1 if distance in SIMILARITIES else 0) - t
    there = ((scale * t).softmax(1) * cost).sum(1)
    return there + ((scale * t).softmax(0) * cost).sum(0)


def decoupled_contrastive_loss(
    x, y, *, temperature=0.1, sigma=None, detach_weights=False, symmetric=True, **pairing
) -> Tensor:
    """DCL (Yeh et al. 2022): -w_i t_ii / T + log sum_{j != i} (e^{xx_ij / T} + e^{t_ij / T}).

    xx is the closeness within x, T the temperature; w_i is 1, or 2 - N softmax_i(t_ii / sigma),
    without gradient if detach_weights.
    Symmetric: the mean with that of (y, x). 0 where there is one row.
    """
    if symmetric:
        options = {"temperature": temperature, "sigma": sigma, "symmetric": False, **pairing}
        options["detach_weights"] = detach_weights
        one, other = (decoupled_contrastive_loss(*each, **options) for each in ((x, y), (y, x)))
        return one / 2 + other / 2
    xx, xy = closeness(x, x, **pairing), closeness(x, y, **pairing)
    matched, N = xy.diagonal(), len(x)
    if N < 2:
        return 0 * matched.masked_fill(matched.isfinite(), 0)
    w = 1 if sigma is None else 2 - N * (matched / sigma).softmax(0)
    if detach_weights and sigma is not None:
        w = w.detach()
    itself = torch.eye(N, dtype=torch.bool, device=x.device).repeat(1, 2)
    others = (torch.cat([xx, xy], 1) / temperature)[~itself].view(N, 2 * (N - 1))
    return others.logsumexp(1) - w * matched / temperature


def multi_positive_loss(x, positives, *, negatives=None, temperature=0.02, **pairing) -> Tensor:
    """InfoNCE one way with positives (N, P, D): the mean over its slots (CoDiEmb, 2025).

    Slot o: row i against that slot of every row and against all negatives (K, D), target its own.
    """
    shared = positives[:0, 0] if negatives is None else negatives
    slots = [
        info_nce_loss(
            x, torch.cat([slot, shared]), temperature=temperature, symmetric=False, **pairing
        )
        for slot in positives.unbind(1)
    ]
    return torch.stack(slots).mean(0)


def tal_loss(x, y, labels, *, temperature=0.015, margin=0.1, **pairing) -> Tensor:
    """TAL (RDE, Qin et al. 2024): [m - sum_P a t + T log sum_N e^{t / T}]+ of row i plus that of
    column i.

    P has the label of i, and so y_i in it; a = softmax_P(t / T) without gradient, T the
    temperature. A way without negatives adds 0.
    """
    t = closeness(x, y, **pairing)  # (N, N)
    labels = labels.to(x.device, torch.int64)

    def way(t_i: Tensor, same: Tensor) -> Tensor:
        pos, neg = t_i[same], t_i[~same]
        if not len(neg):
            return t_i.new_zeros(())
        a = (pos / temperature).softmax(0).detach()
        return hinge(margin - (a * pos).sum() + temperature * (neg / temperature).logsumexp(0))

    losses = [
        way(t[i], labels == label) + way(t[:, i], labels == label) for i, label in enumerate(labels)
    ]
    tie = t[:0].sum()
    return torch.stack(losses) + tie if losses else tie.expand(0)


def sms_loss(
    x,
    y,
    *,
    relevance=None,
    x_classes=None,
    y_classes=None,
    own=None,
    gamma=0.6,
    tau=0.1,
    tolerance=1.1 / 240,
    **pairing,
) -> Tensor:
    """Symmetric Multi-Similarity (EVA02-AT, 2025): the mean over j != i of
    phi(gamma R - (t_ii - t_ij), R = c_ii - c_ij) and phi(gamma R - (t_ii - t_ji), R = c_ii - c_ji).

    c_ij = relevance[x_classes_i, y_classes_j]; without a table c_ii is own_i, or 1, and all others
    are 0.
    phi(z, R) = [z]+ if R > tolerance, [|z| - tau]+ if |R| < tolerance, else [-z]+.
    """
    t = closeness(x, y, **pairing)  # (N, N)
    if relevance is None:
        c_ii = t.new_ones(len(t)) if own is None else own.to(t)
        R_row = R_column = c_ii[:, None].expand_as(t)
    else:
        c = relevance.to(t)[x_classes[:, None], y_classes]
        R_row, R_column = c.diagonal()[:, None] - c, c.diagonal()[:, None] - c.T

    def phi(z: Tensor, R: Tensor) -> Tensor:
        alike, less = (z.abs() - tau), -z
        return hinge(torch.where(tolerance < R, z, torch.where(R.abs() < tolerance, alike, less)))

    t_ii = t.diagonal()[:, None]
    rows, columns = (
        phi(gamma * R_row - (t_ii - t), R_row),
        phi(gamma * R_column - (t_ii - t.T), R_column),
    )
    others = ~torch.eye(len(t), dtype=torch.bool, device=t.device)
    return ((rows + columns) * others).sum(1) / max(2 * (len(t) - 1), 1)
