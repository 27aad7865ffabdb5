"""The losses over labels that count how many references stand before a positive."""

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, each_anchor, hinge

__all__ = ["fast_ap_loss", "smooth_ap_loss", "soft_topk_loss"]


def smooth_ap_loss(x, labels, *, temperature=0.01, include_self=False, **pairing) -> Tensor:
    """Smooth-AP (Brown et al. 2020): mean_P 1 - (rank among P) / (rank among all).

    A positive's rank is 1 + the sum over the others of sigmoid((t - t_p) / temperature); the two
    differ by the negatives. 0 for an anchor without positives. With `include_self` the anchor is
    one of P, as in the authors' code.
    """
    if include_self:
        pairing["own"] = torch.full((len(x),), -1)

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        everyone, missed = torch.cat([pos, neg]), []
        for i, p in enumerate(pos):
            others = torch.arange(len(everyone), device=pos.device) != i
            before = torch.sigmoid((everyone - p) / temperature)
            missed.append(before[len(pos) :].sum() / (1 + before[others].sum()))
        return torch.stack(missed).mean()

    return each_anchor(anchor, x, labels, **pairing)


def fast_ap_loss(x, labels, *, bins=10, distance="cosine", **pairing) -> Tensor:
    """FastAP (Cakir et al. 2019): 1/|P| sum_l h+_l (1 - H+_l / H_l) over histograms of 2 - 2t.

    A pair counts in the two nearest of the bins + 1 centres over [0, 4], by its distance from
    each; H are cumulative. A dot product beyond -1 or 1 counts as -1 or 1. 0 for an anchor without
    positives.
    """
    assert distance in SIMILARITIES, distance

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        if not len(pos):
            return pos.new_zeros(())
        centres = torch.linspace(0, 4, bins + 1, dtype=torch.float64, device=pos.device)
        centres, width = centres.to(pos.dtype), 4 / bins
        h, others = (
            hinge(1 - (within(2 - 2 * t, 0, 4)[:, None] - centres).abs() / width).sum(0)
            for t in (pos, neg)
        )
        others = others.cumsum(0)
        every = h.cumsum(0) + others
        found = ~(every <= 0)  # a NaN is seen
        return (h * others / every.masked_fill(~found, 1))[found].sum() / len(pos)

    return each_anchor(anchor, x, labels, distance=distance, **pairing)


def soft_topk_loss(x, labels, *, k=5, alpha=2.0, temperature=0.05, **pairing) -> Tensor:
    """Soft top-k (DEXML, Gupta et al. 2024): mean_P -log sigmoid(alpha (t / temperature + b)).

    b solves sum sigmoid(alpha (t / temperature + b)) = k, over all but self. It is found by
    cutting an interval into sixteen again and again, and steps like Newton's from there give it
    its derivatives, the first two. 0 for an anchor without positives, or with no more than k
    others.
    """

    def anchor(pos: Tensor, neg: Tensor) -> Tensor:  # (P,), (N,)
        z = torch.cat([pos, neg]) / temperature
        if not len(pos) or len(z) <= k:
            return pos.new_zeros(())
        fixed, steep = z.detach(), alpha.item() if isinstance(alpha, Tensor) else alpha
        low, high = -fixed.max() - 40 / steep, -fixed.min() + 40 / steep
        cuts = torch.arange(1, 16, dtype=z.dtype, device=z.device) / 16
        while True:
            between = low + (high - low) * cuts
            between = between[(between > low) & (between < high)]
            if not len(between):  # they are neighbours
                break
            few = fewer_than(k, steep * (fixed + between[:, None])).sum()
            low, high = torch.cat([low[None], between, high[None]])[few : few + 2]
        b = low
        for _ in range(2):  # each has one more derivative, and none moves b
            share = torch.sigmoid(alpha * (z + b))
            slope = (alpha * share * torch.sigmoid(-alpha * (z + b))).sum().detach()
            moved = (share.sum() - share.sum().detach()) / slope
            b = b if slope == 0 else b - moved
        return -torch.nn.functional.logsigmoid(alpha * (pos / temperature + b)).mean()

    return each_anchor(anchor, x, labels, **pairing)


def within(z: Tensor, low: float, high: float) -> Tensor:
    """Return z held between the two; a NaN keeps its slope, which clamp would make 0."""
    return z.masked_fill(z < low, low).masked_fill(z > high, high)


def fewer_than(k: int, z: Tensor) -> Tensor:  # (C, N) -> (C,)
    """Return whether sum sigmoid(z) < k.

    Those above 0 are counted, and what they lack of 1 is compared with what the rest have, by its
    logarithm: where k are far above 0 and the rest far below, both are next to nothing.
    """
    above = z > 0
    log_share = torch.nn.functional.logsigmoid(-z.abs())
    lacking = log_share.masked_fill(~above, -torch.inf).logsumexp(1)
    rest = log_share.masked_fill(above, -torch.inf).logsumexp(1)
    more = above.sum(1) - k
    some = more.abs().to(z.dtype).log()
    rest = torch.where(more > 0, torch.logaddexp(rest, some), rest)
    lacking = torch.where(more < 0, torch.logaddexp(lacking, some), lacking)
    return rest < lacking
