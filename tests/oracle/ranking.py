"""The losses over labels that count how many references stand before a positive."""

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, each_anchor, hinge

__all__ = ["fast_ap_loss", "smooth_ap_loss", "soft_topk_loss"]


def smooth_ap_loss(x, labels, *, temperature=0.01, include_self=False, **pairing) -> Tensor:
    """Smooth-AP (Brown et al. 2020): 1 - mean_P (rank among P) / (rank among all).

    A positive's rank is 1 + the sum over the others of sigmoid((t - t_p) / temperature). 0 for an
    anchor without positives. With `include_self` the anchor is one of P, as in the authors' code.
    """
    if include_self:
        pairing["own"] = torch.full((len(x),), -1)

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        everyone, precisions = torch.cat([pos, neg]), []
        for i, p in enumerate(pos):
            others = torch.arange(len(everyone), device=pos.device) != i
            before = torch.sigmoid((everyone - p) / temperature)
            among = 1 + before[: len(pos)][others[: len(pos)]].sum()
            precisions.append(among / (1 + before[others].sum()))
        return 1 - torch.stack(precisions).mean()

    return each_anchor(anchor, x, labels, **pairing)


def fast_ap_loss(x, labels, *, bins=10, distance="cosine", **pairing) -> Tensor:
    """FastAP (Cakir et al. 2019): 1/|P| sum_l h+_l (1 - H+_l / H_l), over histograms of 2 - 2t.

    A pair counts in the two nearest of the bins + 1 centres over [0, 4], by its distance from
    each; H are cumulative. A dot product beyond -1 or 1 counts as -1 or 1. 0 for an anchor without positives.
    """
    assert distance in SIMILARITIES, distance

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        centres = torch.linspace(0, 4, bins + 1, dtype=torch.float64, device=pos.device)
        centres, width = centres.to(pos.dtype), 4 / bins
        h, others = (
            hinge(1 - ((2 - 2 * t[:, None]).clamp(0, 4) - centres).abs() / width).sum(0)
            for t in (pos, neg)
        )
        among = h.cumsum(0)
        every = among + others.cumsum(0)
        found = ~(every <= 0)  # a NaN is seen
        missed = 1 - among / every.masked_fill(~found, 1)
        return (h * missed)[found].sum() / len(pos)

    return each_anchor(anchor, x, labels, distance=distance, **pairing)


def soft_topk_loss(x, labels, *, k=5, alpha=2.0, temperature=0.05, **pairing) -> Tensor:
    """Soft top-k (DEXML, Gupta et al. 2024): mean_P -log sigmoid(alpha (t / temperature + b)).

    b solves sum sigmoid(alpha (t / temperature + b)) = k, over all but self. It is found by
    bisection, and Newton's steps from there give it its derivatives. 0 for an anchor without
    positives, or with no more than k others.
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        z = torch.cat([pos, neg]) / temperature
        if not len(pos) or len(z) <= k:
            return pos.new_zeros(())
        fixed, steep = z.detach(), float(alpha)
        low, high = -fixed.max() - 40 / steep, -fixed.min() + 40 / steep
        for _ in range(100):
            b = (low + high) / 2
            few = torch.sigmoid(steep * (fixed + b)).sum() < k
            low, high = torch.where(few, b, low), torch.where(few, high, b)
        for _ in range(3):
            share = torch.sigmoid(alpha * (z + b))
            b = b - (share.sum() - k) / (alpha * share * (1 - share)).sum()
        return -torch.nn.functional.logsigmoid(alpha * (pos / temperature + b)).mean()

    return each_anchor(anchor, x, labels, **pairing)
