"""What a loss tells beside its value: how many pairs an anchor has, and its extreme ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, Rows
from oracle.softmaxes import mined


class Aux(NamedTuple):
    positives: Tensor  # (N,) int64, as are all counts; 0 for an ignored row
    negatives: Tensor
    farthest_positive: Tensor  # (N,) a similarity or a distance
    nearest_negative: Tensor
    mined_positives: Tensor | None = None
    mined_negatives: Tensor | None = None


def aux(x, labels, *, epsilon=None, distance="cosine", **pairing) -> Aux:
    """Return these of every anchor; those mined if ms_loss has this `epsilon`.

    Where there is no positive, no one is farther than infinitely near: inf as a similarity, -inf as
    a distance; where there is no negative the other way round.
    """
    rows = Rows(x.detach(), labels, distance=distance, **pairing)
    none = torch.full((rows.total,), torch.inf, dtype=rows.t.dtype, device=x.device)
    farthest, nearest = none, -none
    counts = torch.zeros(4, rows.total, dtype=torch.int64, device=x.device)
    for i, (pos, neg) in zip(rows.anchors.tolist(), rows, strict=True):
        kept = (pos, neg) if epsilon is None else mined(pos, neg, epsilon)
        counts[:, i] = torch.tensor([len(each) for each in (pos, neg, *kept)])
        if len(pos):
            farthest[i] = pos.min()
        if len(neg):
            nearest[i] = neg.max()
    sign = 1 if distance in SIMILARITIES else -1
    return Aux(
        *counts[:2], sign * farthest, sign * nearest, *counts[2:] if epsilon is not None else ()
    )
