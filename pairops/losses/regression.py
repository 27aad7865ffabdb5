"""Losses over numbers: rows with near numbers are positives, and far ones are pushed by how far."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.by_label import pairs_by_label
from pairops.ops.pairs.widths import numbers, width_of
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.checks import flag
from pairops.ops.terms.functions import Function
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, highest, lse, total

from .objective.keywords import Numbered, Value
from .objective.objective import Objective, split
from .objective.registration import loss

__all__ = ["conr_loss", "supremix_loss"]


@loss()
def conr_loss(
    x: Tensor,  # (N, D)
    values: Tensor,  # (N,)
    predictions: Tensor,  # (N,)
    *,
    width: float = 1.0,
    temperature: float | Tensor = 0.07,
    eta: float | Tensor = 0.01,
    constant: bool = True,
    ref_predictions: Tensor | None = None,  # (M,)
    **common: Unpack[Numbered],
) -> Value:
    """ℓ_i = log(c_i + Σ_p e^{s_ip/τ} + ω_i Σ_n e^{η|y_i − y_n|} e^{s_in/τ}) − 1/|P_i| Σ_p s_ip/τ.

    Positives have a number y within `width`. Negatives are those of the others whose prediction is
    within `width` of that of the anchor: the network takes for alike what is not. An anchor without
    positives, or without negatives, contributes 0. c_i = M − |P_i|, where M is the number of
    references, the anchor's own place among them. `weight` is ω: it multiplies ℓ_i, and the push of
    negatives within it. With a distance d, s is −d.

    Numbers are compared with `width` in float64, and differences are taken in the dtype of the
    result. A row whose number is NaN has no positives, and shows in the loss of the others.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        values: (N,) real numbers without gradient: y.
        predictions: (N,) real numbers without gradient, what the network says of y.
        width: a finite number, 0 or above.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        eta: a number or a 0-d tensor with gradient: η, how steeply a push grows with |y_i − y_n|.
        constant: False takes c_i = 0.
        ref_predictions: (M,) real numbers, the predictions of `ref_emb`.

    Source:
        Keramati et al., ConR: Contrastive Regularizer for Deep Imbalanced Regression, ICLR 2024.
        With both views of a batch in x the loss equals the authors' code for AgeDB and IMDB-WIKI,
        which multiplies it by 4 and adds it to that of the predictions.

    Differs from:
        c_i is that of the authors' code, which adds e^0 for every pair that is no positive; no such
        term is known of the paper. An anchor without positives is NaN there. Their code for NYUD2
        pushes by η|y_i − y_n|ω_i, in place of the power, divides by |P_i| + 1, and has no ω_i
        outside of the logarithm.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    eta, width = number("eta", eta), width_of(width)
    flag("constant", constant)
    objective, (mine, other) = _numbered(x, values, width, common)
    pairs = objective.pairs
    said = numbers("predictions", predictions, "x", x)
    said_of_other = _of_references("ref_predictions", ref_predictions, said, common.get("ref_emb"))
    objective.warn_without_positives()
    near = highest(POS, grad=False)
    push = lse(
        NEG, mine, Partner(other), said, Partner(said_of_other), scale, near, eta, width,
        function=_push,
    )  # fmt: skip
    terms = near, lse(POS, scale, near), total(POS, scale, near), push
    base, pos, sums, neg = row_stats(pairs, *terms)
    none = (base == -torch.inf) | (neg == -torch.inf)
    # An anchor that counts for 0 takes 0 for all of its statistics: no infinity gets a slope.
    base, pos, sums, neg = (torch.where(none, 0, z) for z in (base, pos, sums, neg))
    positives = pairs.positives()
    if objective.weight is not None:
        neg = neg + _log(objective.weight.to(neg.dtype))
    if constant:
        others = (pairs.batch[1] - positives).to(neg.dtype)
        neg = log_add_exp(neg, torch.log(others) - scale * base)
    less_mean = torch.where(positives > 1, pos - sums / positives.clamp(min=1), 0)
    losses = log1p_exp(neg - pos) + less_mean
    return objective.value(torch.where(none, 0, losses), positive=lse(POS, scale, 0.0))


@loss()
def supremix_loss(
    x: Tensor,  # (N, D)
    values: Tensor,  # (N,)
    *,
    width: float = 0.0,
    temperature: float | Tensor = 0.3,
    **common: Unpack[Numbered],
) -> Value:
    """ℓ_i = log Σ_{j≠i} (|y_i − y_j| + 1) e^{s_ij/τ} − 1/|P_i| Σ_p s_ip/τ, 0 without positives.

    The loss is `supcon_loss` over numbers: the farther away the number of a reference, the more it
    counts in the denominator. With a distance d, s is −d.

    Numbers are compared with `width` in float64, and differences are taken in the dtype of the
    result. A row whose number is NaN has no positives, and shows in the loss of the others.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        values: (N,) real numbers without gradient: y.
        width: a finite number, 0 or above: rows are positives of each other if their numbers differ
            by at most this; by default if they are equal.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        Wu et al., Mixup Your Own Pairs (SupReMix), 2023: its weights "L1_inv", with both views of a
        batch in x.

    Differs from:
        The paper also compares with random mixtures of two rows each, drawn anew for every anchor:
        one number for each pair, which would have to be stored, or drawn alike in both passes of
        every engine and on every rank. So they are left out; mixtures that do not depend on the
        anchor are rows of `ref_emb`, with `ref_values` mixed likewise. The authors' code multiplies
        by τ/τ_base, and is NaN for an anchor without positives.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    objective, (mine, other) = _numbered(x, values, width, common)
    pairs = objective.pairs
    objective.warn_without_positives()
    near = highest(POS, grad=False)
    pos, neg = (
        lse(side, mine, Partner(other), scale, near, function=_farther) for side in (POS, NEG)
    )
    base, found_pos, sums, found_neg = row_stats(pairs, near, pos, total(POS, scale, near), neg)
    none = base == -torch.inf
    found_pos, sums = (torch.where(none, 0, z) for z in (found_pos, sums))
    positives = pairs.positives()
    less_mean = found_pos - sums / positives.clamp(min=1)
    # Of one positive it is the logarithm of a constant, where two slopes would cancel.
    less_mean = torch.where(positives > 1, less_mean, less_mean.detach())
    losses = log1p_exp(found_neg - found_pos) + less_mean
    return objective.value(torch.where(none, 0, losses), positive=lse(POS, scale, 0.0))


def _numbered(
    x: Tensor, values: Tensor, width: float, common: Numbered
) -> tuple[Objective, tuple[Tensor, Tensor]]:
    """Make the objective of a loss over numbers; return them too, of rows (N,) and columns (M,)."""
    asked, pairing = split(common, x)
    ref_values = pairing.pop("ref_values", None)
    pairs = pairs_by_label(
        x, values, ref_labels=ref_values, ignore_index=None, width=width_of(width),
        called=("values", "ref_values"), **pairing,
    )  # fmt: skip
    mine = numbers("values", values, "x", x)
    other = _of_references("ref_values", ref_values, mine, pairing.get("ref_emb"))
    return Objective.of(pairs, **asked), (mine, other)


def _of_references(name: str, given: Tensor | None, mine: Tensor, ref_emb: Any) -> Tensor:
    """Return the numbers of columns (M,): those of rows if there are no references."""
    if ref_emb is None:
        if given is not None:
            raise ValueError(f"{name} is given without ref_emb; it must come with one")
        return mine
    if given is None:
        raise ValueError(f"{name} is None; it must be given with ref_emb")
    return numbers(name, given, "ref_emb", ref_emb)


def _log(weight: Tensor) -> Tensor:
    """Return log ω, without a slope at 0: there ω multiplies what the logarithm is part of."""
    zero = weight == 0
    return torch.where(zero, -torch.inf, torch.log(torch.where(zero, 1.0, weight)))


def _push_value(s, value, other, said, said_of_other, scale, base, eta, width):  # type: ignore[no-untyped-def]
    """scale (s − base) + eta |value − other| where predictions are within the width, else −∞"""
    z = torch.abs(said - said_of_other) - width + 0.0 * s
    pushed = scale * (s - base) + eta * torch.abs(value - other)
    return torch.where(z <= 0, pushed, torch.where(z > 0, -torch.inf, z))


def _push_slopes(s, value, other, said, said_of_other, scale, base, eta, width):  # type: ignore[no-untyped-def]
    z = torch.abs(said - said_of_other) - width + 0.0 * s
    flat = torch.where(z > 0, 0.0, z)  # NaN for NaN, if it is used
    closed = torch.where(z <= 0, 0.0, flat)
    by_s = torch.where(z <= 0, scale, flat)
    by_scale = torch.where(z <= 0, s - base, flat)
    by_eta = torch.where(z <= 0, torch.abs(value - other), flat)
    by_value = torch.where(z <= 0, eta * torch.sign(value - other), flat)
    return by_s, by_value, -by_value, closed, closed, by_scale, -by_s, by_eta, closed


def _farther_value(s, value, other, scale, base):  # type: ignore[no-untyped-def]
    """scale (s − base) + log(1 + |value − other|)"""
    return scale * (s - base) + torch.log1p(torch.abs(value - other))


def _farther_slopes(s, value, other, scale, base):  # type: ignore[no-untyped-def]
    by_value = torch.sign(value - other) / (1 + torch.abs(value - other))
    return scale, by_value, -by_value, s - base, -scale


_push = Function(_push_value, _push_slopes, "conr_push")
_farther = Function(_farther_value, _farther_slopes, "farther")
