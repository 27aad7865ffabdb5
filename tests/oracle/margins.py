"""The losses over labels that are sums over pairs or triplets, with a margin."""

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, Rows, at, highest, hinge, softplus

__all__ = [
    "binomial_deviance_loss",
    "contrastive_loss",
    "lifted_structure_loss",
    "margin_loss",
    "triplet_loss",
]


def contrastive_loss(
    x,
    labels,
    *,
    pos_margin=None,
    neg_margin=None,
    negatives="hinge",
    distance="cosine",
    reduction="none",
    weight=None,
    **pairing,
) -> Tensor:
    """Contrastive (Hadsell et al. 2006): sum_P [m_p - t]+ + sum_N [t - m_n]+.

    With negatives="raw" a negative adds t where t > m_n, as the code of XBM has it. "mean_pairs"
    divides each side by the number of its pairs with a loss.
    """
    like = distance in SIMILARITIES
    m_p = at((1.0 if like else 0.0) if pos_margin is None else pos_margin, distance)
    m_n = at((0.5 if like else 1.0) if neg_margin is None else neg_margin, distance)
    rows = Rows(x, labels, distance=distance, **pairing)
    if negatives == "raw":
        assert like, "the raw closeness is a similarity"
        sides = [(hinge(m_p - pos), neg.masked_fill(neg <= m_n, 0)) for pos, neg in rows]
    else:
        sides = [(hinge(m_p - pos), hinge(neg - m_n)) for pos, neg in rows]
    return rows.over_pairs(sides, counted="active", reduction=reduction, weight=weight)


def triplet_loss(
    x, labels, *, margin=0.05, mining="hard", soft=False, reduction="none", weight=None, **pairing
) -> Tensor:
    """Triplet: phi(t_n - t_p + margin) with phi = [z]+, or log(1 + e^z) if soft, summed over

    "hard": the farthest p with the nearest n (Hermans et al. 2017)
    "all": every p with every n; "mean_pairs" counts those with a loss, or all if soft
    "semihard" (Schroff et al. 2015): every p with the nearest n that is farther than p, or if there
    is none with the farthest n (TensorFlow's rule); "mean_pairs" counts these p
    """
    phi = softplus if soft else hinge
    rows = Rows(x, labels, **pairing)
    sides = []
    for pos, neg in rows:
        if not len(pos) or not len(neg):
            z = pos.new_zeros(0)
        elif mining == "hard":
            z = (highest(neg) + highest(-pos) + margin)[None]
        elif mining == "semihard":
            z = torch.stack([_semihard(p, neg) - p + margin for p in pos])
        else:
            assert mining == "all", mining
            z = (neg - pos[:, None] + margin).flatten()
        sides.append((phi(z),))
    assert reduction == "none" or mining != "hard", "a hardest triplet is no pair"
    counted = "active" if mining == "all" and not soft else "all"
    return rows.over_pairs(sides, counted=counted, reduction=reduction, weight=weight)


def _semihard(p: Tensor, neg: Tensor) -> Tensor:
    # said as what is left out, so that a NaN is kept; equal within rounding, as in `highest`, is
    # not farther
    out = (neg >= p) | neg.isclose(p, rtol=1e-13, atol=1e-15)
    return -highest(-neg) if out.all() else highest(neg[~out])


def lifted_structure_loss(
    x,
    labels,
    *,
    form="generalised",
    pos_margin=None,
    neg_margin=None,
    distance="l2",
    reduction="none",
    weight=None,
    **pairing,
) -> Tensor:
    """Lifted structure, generalised: [log sum_P e^{m_p - t} + log sum_N e^{t - m_n}]+.

    (Hermans et al. 2017.) A side without pairs adds 0. The original (Song et al. 2016):
    sum_p 1/2 [m_p - t_ip + log(sum_{n: N_i} e^{t_in - m_n} + sum_{j: N_p} e^{t_pj - m_n})]+^2,
    where N_p are the anchors with another label than p; 0 for a p without any n or j. "mean_pairs",
    of the original, counts the positive pairs.
    """
    like = distance in SIMILARITIES
    m_p = at((1.0 if like else 0.0) if pos_margin is None else pos_margin, distance)
    m_n = at((0.0 if like else 1.0) if neg_margin is None else neg_margin, distance)
    rows = Rows(x, labels, distance=distance, **pairing)
    if form == "generalised":
        assert reduction == "none", "the pairs have no losses of their own"

        def total(z: Tensor) -> Tensor:
            return z.logsumexp(0) if len(z) else z.sum()

        return rows.spread([hinge(total(m_p - pos) + total(neg - m_n)) for pos, neg in rows])

    assert form == "original", form
    masked = zip(rows.of_columns, rows.negative.T, strict=True)
    columns = [(column[negative] - m_n).logsumexp(0) for column, negative in masked]  # -inf: no j
    sides = []
    for (pos, neg), positive in zip(rows, rows.positive, strict=True):
        row, losses = (neg - m_n).logsumexp(0), []
        for t, p in zip(pos, positive.nonzero()[:, 0].tolist(), strict=True):
            alone = not len(neg) and not rows.negative[:, p].any()
            z = m_p - t + torch.logaddexp(row, columns[p])
            losses.append(0 * t if alone else hinge(z) ** 2 / 2)
        sides.append((torch.stack(losses) if losses else neg.new_zeros(0),))
    return rows.over_pairs(sides, reduction=reduction, weight=weight)


def binomial_deviance_loss(
    x,
    labels,
    *,
    alpha=2.0,
    beta=40.0,
    base=0.5,
    distance="cosine",
    reduction="none",
    weight=None,
    **pairing,
) -> Tensor:
    """Binomial deviance (Yi et al. 2014): mean_P log(1 + e^{-alpha(t - base)}) + mean_N
    log(1 + e^{beta(t - base)}).

    An empty side adds 0. "mean_pairs" divides each side by the number of its pairs.
    """
    rows, base = Rows(x, labels, distance=distance, **pairing), at(base, distance)
    sides = [(softplus(-alpha * (p - base)), softplus(beta * (n - base))) for p, n in rows]
    return rows.over_pairs(sides, each=torch.mean, reduction=reduction, weight=weight)


def margin_loss(
    x,
    labels,
    *,
    beta=1.2,
    margin=0.2,
    triplets=False,
    distance="l2",
    reduction="none",
    weight=None,
    **pairing,
) -> Tensor:
    """Margin (Wu et al. 2017): sum_P [beta - t + margin]+ + sum_N [t - beta + margin]+.

    beta is a number, or one for each label (C,). With `triplets` a pair counts once for each
    triplet that it is in. "mean_pairs" divides by the number of pairs, of both sides, with a loss.
    """
    rows = Rows(x, labels, distance=distance, **pairing)
    beta = beta if isinstance(beta, Tensor) else torch.tensor(beta, dtype=torch.float64)
    beta = at(beta, distance)
    betas = beta.to(rows.t)[rows.labels] if beta.ndim else beta.to(rows.t).expand(len(rows.labels))
    sides = []
    for (pos, neg), b in zip(rows, betas, strict=True):
        pull, push = hinge(b - pos + margin), hinge(neg - b + margin)
        if triplets:
            pull, push = pull.repeat(len(neg)), push.repeat(len(pos))
        sides.append((torch.cat([pull, push]),))
    return rows.over_pairs(sides, counted="active", reduction=reduction, weight=weight)
