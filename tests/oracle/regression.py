"""The losses over numbers: near numbers are positives."""

import torch
from torch import Tensor

from oracle.rows import Rows

__all__ = ["conr_loss", "supremix_loss"]


def _sides(x, values, ref_emb, ref_values, width, pairing) -> Rows:
    return Rows(x, values, ref_emb=ref_emb, ref_labels=ref_values, width=width, **pairing)


def _apart(mine: Tensor, others: Tensor | None) -> Tensor:  # (N, M)
    others = mine if others is None else others
    return (mine.detach().double()[:, None] - others.detach().double()).abs()


def conr_loss(
    x,
    values,
    predictions,
    *,
    ref_emb=None,
    ref_values=None,
    ref_predictions=None,
    width=1.0,
    temperature=0.07,
    eta=0.01,
    constant=True,
    weight=None,
    **pairing,
) -> Tensor:
    """ConR (Keramati et al. 2024), as its code for AgeDB: before the weight of the anchor.

    -1/|P| sum_P log(e^{t_p / T} / D), D = sum_P e^{t / T} + M - |P| + w sum_N e^{eta |y - y_n|}
    e^{t_n / T}; N holds those that are no positives, but whose predictions are within the width.
    0 for an anchor without P or without N.
    """
    rows = _sides(x, values, ref_emb, ref_values, width, pairing)
    push = eta * _apart(values, ref_values)
    mistaken = rows.negative & (_apart(predictions, ref_predictions) <= width)
    losses = []
    for i in range(rows.total):
        z, pos, neg = rows.t[i] / temperature, rows.positive[i], mistaken[i]
        if not pos.any() or not neg.any():
            losses.append(rows.t.new_zeros(()))
            continue
        w = torch.ones(()) if weight is None else weight[i]
        away = z[neg] + push[i, neg].to(z.dtype) + w.to(z.dtype).log()
        masked = z.new_full((int(constant) * (len(pos) - int(pos.sum())),), 0.0)
        losses.append((torch.cat([z[pos], masked, away]).logsumexp(0) - z[pos]).mean())
    return rows.spread(losses)


def supremix_loss(
    x,
    values,
    *,
    ref_emb=None,
    ref_values=None,
    width=0.0,
    temperature=0.3,
    **pairing,
) -> Tensor:
    """SupReMix (Wu et al. 2023) without mixtures: SupCon with |y_i - y_j| + 1 times each term of
    the denominator. 0 for an anchor without positives."""
    rows = _sides(x, values, ref_emb, ref_values, width, pairing)
    factor = _apart(values, ref_values) + 1
    losses = []
    for i in range(rows.total):
        z, pos = rows.t[i] / temperature, rows.positive[i]
        counted = pos | rows.negative[i]
        if not pos.any():
            losses.append(rows.t.new_zeros(()))
            continue
        denominator = (z + factor[i].log().to(z.dtype))[counted].logsumexp(0)
        losses.append((denominator - z[pos]).mean())
    return rows.spread(losses)
