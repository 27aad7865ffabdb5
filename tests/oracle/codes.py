"""Losses of codes: their similarities are to be those of labels."""

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, Rows, hinge

__all__ = ["hashing_loss"]


def hashing_loss(
    x, labels, *, scale=1.0, rectified=True, distance="cosine", ref_labels=None, **pairing
) -> Tensor:
    """DLCH (2023): mean over j != i of ([t_ij]+ - scale cos(l_i, l_j))^2, [.]+ unless told.

    Labels (N,) are classes, of which l has a 1 at its own; labels (N, C) are the l themselves, of
    which 0 has the cosine 0 with all.
    """
    assert distance in SIMILARITIES, distance
    vectors = labels is not None and labels.dim() == 2
    others = labels if ref_labels is None else ref_labels
    given = {"distance": distance, **pairing}
    if vectors:  # who is a positive does not matter
        given["ref_labels"] = None if ref_labels is None else torch.zeros(len(ref_labels)).long()
        rows = Rows(x, torch.zeros(len(x)).long(), **given, ignore_index=None)
        a, b = (_unit(z.to(rows.t)) for z in (labels, others))
        targets = (a[:, None] * b).sum(2)
    else:
        rows = Rows(x, labels, ref_labels=ref_labels, **given)
        targets = rows.positive.to(rows.t.dtype)
    losses = []
    for t, target, counted in zip(rows.t, targets, rows.positive | rows.negative, strict=True):
        off = (hinge(t) if rectified else t) - scale * target
        losses.append(off[counted].square().sum() / max(int(counted.sum()), 1))
    return rows.spread(losses)


def _unit(z: Tensor) -> Tensor:
    norm = z.norm(dim=1, keepdim=True)
    return z / norm.masked_fill(norm == 0, 1)
