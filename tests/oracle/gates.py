"""Losses of gated pairs: an anchor looks at others through its gate."""

import torch
from torch import Tensor

from oracle.rows import SIMILARITIES, Rows, closeness, log1p_sum_exp

__all__ = ["hydra_loss"]


def hydra_loss(
    x,
    gate,
    labels,
    partner_labels,
    *,
    temperature=0.1,
    ref_emb=None,
    ref_labels=None,
    own=None,
    distance="cosine",
    normalize=None,
    ignore_index=-100,
    dtype=torch.float64,
    reduction="none",
    weight=None,
) -> Tensor:
    """SimLAP (Wu et al. 2024): mean_P log(1 + sum_N e^{(t_n - t_p) / T}), T the temperature.

    t_ij is the closeness of gate_i * x_i and gate_i * x_j. P are the references of the class
    partner_labels_i, N those neither of it nor of labels_i. 0 for an anchor without P. An anchor is
    ignored by either class.
    """
    assert distance in SIMILARITIES, distance
    x, gate = x.to(dtype), gate.to(dtype)
    y, others = (x, labels) if ref_emb is None else (ref_emb, ref_labels)
    keys = partner_labels
    if ignore_index is not None:
        keys = torch.where(labels == ignore_index, ignore_index, keys)
    if own is None:
        own = torch.arange(len(x)) if ref_emb is None else torch.full((len(x),), -1)
    related = {"ref_labels": others, "own": own, "ignore_index": ignore_index, "dtype": dtype}
    rows = Rows(x, keys, ref_emb=y, **related)
    columns = torch.arange(len(y), device=x.device)
    if ignore_index is not None:
        columns = columns[others != ignore_index]
    sides = []
    for k, i in enumerate(rows.anchors.tolist()):
        mine, theirs = gate[i] * x[i : i + 1], gate[i] * y[columns].to(dtype)
        t = closeness(mine, theirs, distance, normalize, dtype)[0] / temperature
        neither = rows.negative[k] & (others[columns] != labels[i])
        sides.append((log1p_sum_exp(t[neither] - t[rows.positive[k]][:, None]),))
    return rows.over_pairs(sides, each=torch.mean, reduction=reduction, weight=weight)
