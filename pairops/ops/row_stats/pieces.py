"""Pieces: small functions of an anchor's statistics, which a loss is the sum of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term


class Piece(NamedTuple):
    """weight · shape(plus, minus, offset) of an anchor; plus and minus are its statistics. The
    shape per_pair is of all anchors together."""

    shape: str
    plus: Term
    minus: Term | None = None
    offset: float | Tensor = 0.0
    weight: float | Tensor = 1.0


def softplus_of(
    plus: Term,
    minus: Term | None = None,
    *,
    offset: float | Tensor = 0.0,
    weight: float | Tensor = 1.0,
) -> Piece:
    """The piece log(1 + e^u), u = plus − minus + offset; 0 where plus, a log-sum-exp, is −inf."""
    return Piece("log1p_exp", plus, minus, offset, weight)


def hinge_of(plus: Term, minus: Term, *, offset: float | Tensor = 0.0) -> Piece:
    """The piece [plus − minus + offset]₊; 0 where plus is −inf."""
    return Piece("hinge", plus, minus, offset)


def linear(plus: Term) -> Piece:
    """The piece that is the statistic itself."""
    return Piece("linear", plus)


def mean_over_positives(sums: Term) -> Piece:
    """The piece sums / number of positives; 0 for an anchor without."""
    return Piece("mean", sums)


def less_mean(plus: Term, sums: Term) -> Piece:
    """The piece plus − sums / number of positives; 0 for an anchor with fewer than two."""
    return Piece("less_mean", plus, sums)


def per_pair(sums: Term, counts: Term | None = None) -> Piece:
    """The piece Σ sums / Σ counts over all anchors, an average over pairs; 0 if no pair counts.

    counts: None: the numbers of positives. A loss has pieces of this kind alone, or none.
    """
    return Piece("per_pair", sums, counts)


def mean_of(pieces: Sequence[Piece], statistics: Mapping[Term, Tensor], pairs: Pairs) -> Tensor:
    """Return the mean of the losses of all anchors, or the sum of averages over pairs."""
    if pieces[0].shape != "per_pair":
        return losses_of(pieces, statistics, pairs).mean()
    averages = []
    for piece in pieces:
        counts = pairs.positives() if piece.minus is None else statistics[piece.minus].detach()
        counted = counts.sum().clamp(min=1)
        averages.append(statistics[piece.plus].sum() / counted)
    return torch.stack(averages).sum()


def losses_of(pieces: Sequence[Piece], statistics: Mapping[Term, Tensor], pairs: Pairs) -> Tensor:
    """Return (N,) the sum of the pieces of every anchor; differentiable."""
    total = None
    for piece in pieces:
        one = _value(piece, statistics, pairs)
        if isinstance(piece.weight, Tensor) or piece.weight != 1:
            one = one * piece.weight
        total = one if total is None else total + one
    assert total is not None, "a loss has a piece"
    return total


def _value(piece: Piece, statistics: Mapping[Term, Tensor], pairs: Pairs) -> Tensor:
    plus = statistics[piece.plus]
    if piece.shape == "linear":
        return plus
    if piece.shape == "mean":
        return plus / pairs.positives().clamp(min=1)
    if piece.shape == "less_mean":
        assert piece.minus is not None, "a mean is of something"
        positives = pairs.positives()
        mean = statistics[piece.minus] / positives.clamp(min=1)
        return torch.where(positives > 1, plus - mean, 0)
    u = plus
    if piece.minus is not None:
        # An anchor without positives must not compute −inf − (−inf).
        u = torch.where(plus == -torch.inf, -torch.inf, plus - statistics[piece.minus])
    if isinstance(piece.offset, Tensor) or piece.offset:
        u = u + piece.offset
    return torch.relu(u) if piece.shape == "hinge" else log1p_exp(u)


def log1p_exp(statistic: Tensor) -> Tensor:
    """Return log(1 + exp R), where R is a log-sum-exp.

    Not `softplus`, which is linear above 20 and so 2e-9 off; and 0 with all its derivatives at
    −inf.
    """
    return -torch.nn.functional.logsigmoid(-statistic)
