"""The losses over labels that are made of log-sum-exps."""

import torch
from torch import Tensor

from oracle.rows import (
    SIMILARITIES,
    Rows,
    at,
    closeness,
    each_anchor,
    hinge,
    log1p_sum_exp,
    softplus,
)

__all__ = [
    "circle_loss",
    "decoupled_softmax_loss",
    "mlcd_loss",
    "ms_loss",
    "n_pair_loss",
    "n_pairs",
    "nca_loss",
    "nt_xent_loss",
    "supcon_loss",
    "uniformity_loss",
]


def ms_loss(
    x, labels, *, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1, distance="cosine", **pairing
) -> Tensor:
    """Multi-Similarity (Wang et al. 2019).

    1/alpha log(1 + sum_P* e^{-alpha(t - base)}) + 1/beta log(1 + sum_N* e^{beta(t - base)}) over
    P* = {p: t_p - epsilon < max_N t} and N* = {n: t_n + epsilon > min_P t}, whose thresholds have
    no gradient; 0 for an anchor without P or without N. With `epsilon=None` nothing is mined: all
    of P and all of N, and an empty side adds log(1 + 0).
    """
    base = at(base, distance)

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if epsilon is not None:
            pos, neg = mined(pos, neg, epsilon)
        pull = log1p_sum_exp(-alpha * (pos - base)) / alpha
        push = log1p_sum_exp(beta * (neg - base)) / beta
        return pull + push

    return each_anchor(anchor, x, labels, distance=distance, **pairing)


def mined(pos: Tensor, neg: Tensor, epsilon) -> tuple[Tensor, Tensor]:
    """Return what the mining of ms_loss keeps of an anchor's P and N."""
    if not len(pos) or not len(neg):
        return pos[:0], neg[:0]
    farthest, nearest = pos.detach().min(), neg.detach().max()
    # said as what is dropped, so that a NaN, which is neither above nor below, is kept
    return pos[~(pos - epsilon >= nearest)], neg[~(neg + epsilon <= farthest)]


def supcon_loss(x, labels, *, temperature=0.1, positive_weight="equal", **pairing) -> Tensor:
    """SupCon (Khosla et al. 2020, L_out), with T the temperature:
    mean_P -log(e^{t_p / T} / sum_{all but self} e^{t / T}).

    0 for an anchor without positives. With labels (N, C) the mean may be weighted: "shared" by the
    number of labels that both have, "jaccard" by that over the number of labels that one has.
    """
    if positive_weight != "equal":
        return _weighted_supcon(x, labels, temperature, positive_weight == "jaccard", **pairing)

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        everyone = torch.cat([pos, neg]) / temperature
        return (everyone.logsumexp(0) - pos / temperature).mean()

    return each_anchor(anchor, x, labels, **pairing)


def _weighted_supcon(x, labels, temperature, jaccard: bool, **pairing) -> Tensor:
    rows = Rows(x, labels, **pairing)
    mine = labels != 0
    other = pairing.get("ref_labels")
    theirs = mine if other is None else other != 0
    losses = []
    for i, t in enumerate(rows.t):
        pos, every = rows.positive[i], rows.positive[i] | rows.negative[i]
        w = (mine[i] & theirs).sum(1).to(t.dtype)
        if jaccard:
            w = w / (mine[i] | theirs).sum(1)
        z = t / temperature
        mean = (w[pos] * z[pos]).sum() / w[pos].sum()
        losses.append(z[every].logsumexp(0) - mean if pos.any() else 0 * t.sum())
    return rows.spread(losses)


def circle_loss(x, labels, *, margin=0.4, gamma=80.0, distance="cosine", **pairing) -> Tensor:
    """Circle (Sun et al. 2020): log(1 + sum_P e^{z_p} sum_N e^{z_n}).

    z_p = -gamma [1 + m - t]+ (t - (1 - m)), z_n = gamma [t + m]+ (t - m), where [.]+ has no
    gradient; 0 for an anchor without P or without N.
    """
    assert distance in SIMILARITIES, distance

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos) or not len(neg):
            return pos.new_zeros(())
        z_p = -gamma * hinge(1 + margin - pos).detach() * (pos - (1 - margin))
        z_n = gamma * hinge(neg + margin).detach() * (neg - margin)
        return softplus(z_p.logsumexp(0) + z_n.logsumexp(0))

    return each_anchor(anchor, x, labels, distance=distance, **pairing)


def n_pair_loss(
    x, labels, *, distance="dot", normalize=None, ignore_index=-100, dtype=torch.float64
) -> Tensor:
    """N-pair (Sohn 2016): cross entropy of an anchor per label against their positives.

    log sum_c e^{t(a, p_c)} - t(a, p_a); 0 for a row that is no anchor (`n_pairs`).
    """
    a, p = n_pairs(labels.to(x.device), ignore_index)
    t = closeness(x[a], x[p], distance, normalize, dtype)  # (labels, labels)
    losses = torch.zeros(len(x), dtype=dtype, device=x.device) + x[:0].to(dtype).sum()
    return losses.index_put((a,), t.logsumexp(1) - t.diagonal())


def n_pairs(labels: Tensor, ignore_index=-100) -> tuple[Tensor, Tensor]:
    """Return the first and the second row of each label that has two."""
    rows: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        if ignore_index is None or label != ignore_index:
            rows.setdefault(label, []).append(i)
    pairs = [each[:2] for each in rows.values() if len(each) > 1]
    return torch.tensor(pairs, dtype=torch.int64, device=labels.device).view(-1, 2).unbind(1)


def nt_xent_loss(
    x, labels, *, temperature=0.07, reduction="none", weight=None, **pairing
) -> Tensor:
    """NT-Xent (Chen et al. 2020): mean_P log(1 + sum_N e^{t_n / T} / e^{t_p / T}).

    0 for an anchor without positives. "mean_pairs" counts the positive pairs.
    """
    rows = Rows(x, labels, **pairing)
    sides = [(log1p_sum_exp((neg - pos[:, None]) / temperature),) for pos, neg in rows]
    return rows.over_pairs(sides, each=torch.mean, reduction=reduction, weight=weight)


def decoupled_softmax_loss(x, labels, *, temperature=0.05, **pairing) -> Tensor:
    """Decoupled softmax (DEXML, Gupta et al. 2024): as `nt_xent_loss`, often against classes."""
    return nt_xent_loss(x, labels, temperature=temperature, **pairing)


def nca_loss(x, labels, *, scale=1.0, distance="sqeuclidean", **pairing) -> Tensor:
    """NCA (Goldberger et al. 2004): -log(sum_P e^{scale t} / sum_{all but self} e^{scale t}).

    0 for an anchor without positives.
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        everyone = torch.cat([pos, neg])
        return (scale * everyone).logsumexp(0) - (scale * pos).logsumexp(0)

    return each_anchor(anchor, x, labels, distance=distance, **pairing)


def mlcd_loss(x, labels, *, scale=64.0, **pairing) -> Tensor:
    """Multi-label cluster discrimination (An et al. 2024), with z = scale t:
    log(1 + sum_N e^z) + log(1 + sum_P e^-z).
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        return log1p_sum_exp(scale * neg) + log1p_sum_exp(-scale * pos)

    return each_anchor(anchor, x, labels, **pairing)


def uniformity_loss(x, labels=None, *, t=2.0, distance="sqeuclidean", **pairing) -> Tensor:
    """Uniformity (Wang & Isola 2020): log of the mean of e^{-t d} over all pairs, once for every
    anchor; 0 without a pair.
    """
    rows = Rows(
        x, torch.zeros(len(x)).long() if labels is None else labels, distance=distance, **pairing
    )
    every = rows.t[rows.positive | rows.negative]
    mean = torch.exp(t * every).mean().log() if len(every) else 0 * rows.t.sum()
    return rows.spread([mean] * len(rows.anchors))
