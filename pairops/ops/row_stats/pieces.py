"""What a loss is besides its terms: a sum of small functions of an anchor's statistics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term


class Piece(NamedTuple):
    """Of an anchor weight · shape(plus, minus, offset), where both are statistics of it; per_pair
    is of all anchors."""

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
    """log(1 + e^u), u = plus − minus + offset; 0 where plus is −inf, a log-sum-exp of nothing."""
    return Piece("log1p_exp", plus, minus, offset, weight)


def hinge_of(plus: Term, minus: Term, *, offset: float | Tensor = 0.0) -> Piece:
    """[plus − minus + offset]₊; 0 where plus is −inf."""
    return Piece("hinge", plus, minus, offset)


def linear(plus: Term) -> Piece:
    """The statistic itself."""
    return Piece("linear", plus)


def less_mean(plus: Term, sums: Term) -> Piece:
    """plus − sums / number of positives, for an anchor with two or more; of fewer it is 0."""
    return Piece("less_mean", plus, sums)


def per_pair(sums: Term, counts: Term) -> Piece:
    """Of all anchors together Σ sums / Σ counts, 0 where nothing is counted: an average over pairs.

    A loss has pieces of this kind alone, or none.
    """
    return Piece("per_pair", sums, counts)


def mean_of(pieces: Sequence[Piece], statistics: Mapping[Term, Tensor], pairs: Pairs) -> Tensor:
    """The mean of the losses of all anchors, or what averages over pairs add up to."""
    if pieces[0].shape != "per_pair":
        return losses_of(pieces, statistics, pairs).mean()
    averages = []
    for piece in pieces:
        assert piece.minus is not None, "an average is over something"
        counted = statistics[piece.minus].detach().sum().clamp(min=1)  # without a slope
        averages.append(statistics[piece.plus].sum() / counted)
    return torch.stack(averages).sum()


def losses_of(pieces: Sequence[Piece], statistics: Mapping[Term, Tensor], pairs: Pairs) -> Tensor:
    """(N,) the sum of the pieces of every anchor; differentiable."""
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
    if piece.shape == "less_mean":
        assert piece.minus is not None, "a mean is of something"
        positives = pairs.positives()
        mean = statistics[piece.minus] / positives.clamp(min=1)
        return torch.where(positives > 1, plus - mean, 0)
    u = plus
    if piece.minus is not None:
        # Not −inf − (−inf), of an anchor without positives.
        u = torch.where(plus == -torch.inf, -torch.inf, plus - statistics[piece.minus])
    if isinstance(piece.offset, Tensor) or piece.offset:
        u = u + piece.offset
    return torch.relu(u) if piece.shape == "hinge" else log1p_exp(u)


def log1p_exp(statistic: Tensor) -> Tensor:
    """log(1 + exp R), the log of 1 + Σ exp of a log-sum-exp.

    Not `softplus`, which is linear above 20 and so 2e-9 off; and 0 with all its derivatives at
    −inf.
    """
    return -torch.nn.functional.logsigmoid(-statistic)
