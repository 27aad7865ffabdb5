"""The losses between rows and proxies, which are vectors that stand for the labels."""

import math

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, Rows, log1p_sum_exp

__all__ = [
    "arcface_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
]


def proxy_anchor_loss(
    x, labels, proxies, *, proxy_labels=None, alpha=32.0, margin=0.1, distance="cosine", **pairing
) -> Tensor:  # (C,)
    """Proxy anchor (Kim et al. 2020): a loss for each of C proxies, over the rows of x.

    C / C+ log(1 + sum_P e^{-alpha(t - margin)}) + log(1 + sum_N e^{alpha(t + margin)}), where C+ is
    how many proxies have positives. (So the mean has the divisors C+ and C of the paper.)
    """
    assert distance in SIMILARITIES, distance
    proxy_labels = _every_label(proxies) if proxy_labels is None else proxy_labels
    references = {"ref_emb": x, "ref_labels": labels}
    rows = Rows(proxies, proxy_labels, **references, distance=distance, **pairing)
    share = len(rows.anchors) / max(int(rows.positive.any(1).sum()), 1)
    losses = []
    for pos, neg in rows:
        pull = share * log1p_sum_exp(-alpha * (pos - margin))
        losses.append(pull + log1p_sum_exp(alpha * (neg + margin)))
    return rows.spread(losses)


def proxy_nca_loss(
    x,
    labels,
    proxies,
    *,
    proxy_labels=None,
    scale=1.0,
    smoothing=0.0,
    distance="sqeuclidean",
    **pairing,
) -> Tensor:  # (N,)
    """Proxy-NCA (Movshovitz-Attias et al. 2017) with all proxies in the denominator, z = scale t:
    log sum e^z - (1 - smoothing) log sum_P e^z - smoothing mean_N z.

    0 for a row without a proxy of its label. Where there is no other proxy nothing is smoothed.
    """
    proxy_labels = _every_label(proxies) if proxy_labels is None else proxy_labels
    references = {"ref_emb": proxies, "ref_labels": proxy_labels}
    rows = Rows(x, labels, **references, distance=distance, **pairing)
    losses = []
    for pos, neg in rows:
        if not len(pos):
            losses.append(pos.new_zeros(()))
            continue
        own = (scale * pos).logsumexp(0)
        target = (1 - smoothing) * own + smoothing * (scale * neg).mean() if len(neg) else own
        losses.append((scale * torch.cat([pos, neg])).logsumexp(0) - target)
    return rows.spread(losses)


def arcface_loss(
    x,
    labels,
    proxies,
    *,
    proxy_labels=None,
    margin=0.5,
    cosine_margin=0.0,
    scale=64.0,
    distance="cosine",
    **pairing,
) -> Tensor:  # (N,)
    """ArcFace (Deng et al. 2019): cross entropy of scale cos(theta) over the classes, in which the
    angle of the own class is theta + margin, and its cosine less by cosine_margin.

    The own class has the cosine c - margin sin(margin) where theta + margin is beyond pi. 0 for a
    row without a proxy of its label; of several the nearest counts.
    """
    assert distance in SIMILARITIES, distance
    proxy_labels = _every_label(proxies) if proxy_labels is None else proxy_labels
    references = {"ref_emb": proxies, "ref_labels": proxy_labels}
    rows = Rows(x, labels, **references, distance=distance, **pairing)
    losses = []
    for pos, neg in rows:
        if not len(pos):
            losses.append(pos.new_zeros(()))
            continue
        own = pos.max()
        margin = torch.as_tensor(margin, dtype=own.dtype)
        angle = own.clamp(-1, 1).acos() + margin
        own = angle.cos() if angle <= math.pi else own - margin * margin.sin()
        losses.append(log1p_sum_exp(scale * (neg - (own - cosine_margin))))
    return rows.spread(losses)


def _every_label(proxies: Tensor) -> Tensor:
    return torch.arange(len(proxies), device=proxies.device)
