"""Bounds of pair weights by row, before any weight is computed.

float16 ends at 65504, and whoever adds up products of weights in place needs their unit from the
start. A weight is ∂L/∂R · share · f': a share is 1 at most, and f' of most functions has a bound.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.terms import functions
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.functions import Function
from pairops.ops.terms.term import Term

from .operands import TritonTermView

# |f'| is at most what these return. They take the largest |s|, and |argument| of each argument.
_STEEPEST: dict[Function, Callable[..., Any]] = {
    functions.identity: lambda _: 1.0,
    functions.one: lambda _: 0.0,
    functions.affine: lambda _, scale, _base: scale,
    functions.hinge: lambda _, scale, _base: scale,
    functions.sigmoid: lambda _, scale, _base: 0.25 * scale,
    functions.softplus: lambda _, scale, _bias: scale,
    functions.softplus_from: lambda _, scale, _base, _bias: scale,
    functions.circle_pull: lambda s, gamma, margin: gamma * (1 + margin + s),
    functions.circle_push: lambda s, gamma, margin: gamma * (margin + s),
}


def known(placed: Sequence[TritonTermView], normalized: bool) -> bool:
    """Return whether every term has a bound. normalized: |s| is at most 1."""
    far = () if normalized else (functions.circle_pull, functions.circle_push)
    return all(p.term.function in _STEEPEST and p.term.function not in far for p in placed)


def by_row(placed: Sequence[TritonTermView], cotangents: Sequence[Tensor], same: bool) -> Tensor:
    """Return a bound of |∂L/∂s_ij| over all j, for each row (N,) or, (), for all rows alike."""
    total = cotangents[0].new_zeros(())
    for p, cotangent in zip(placed, cotangents, strict=True):
        bound = cotangent.abs() * _steepest(p.term)
        if same or p.owners == 0:
            total = total + bound
        if same or p.owners == 1:
            total = total + bound.amax()
    return total


def _steepest(term: Term) -> Any:
    """Return a bound of |f'| for each owner, or for all."""
    sizes: list[Any] = []
    for a in term.args:
        if isinstance(a, Partner):
            sizes.append(a.values.abs().amax())
        else:
            assert isinstance(a, (float, Tensor))
            sizes.append(abs(a))
    return _STEEPEST[term.function](1.0, *sizes)


def units(bound: Tensor) -> Tensor:
    """Return powers of two that bring weights below 2^13.

    A share is above 1 by rounding, and where s has other bits than when R was computed; an infinite
    weight stays infinite in any unit.
    """
    exponent = torch.frexp(torch.where(bound.isfinite(), bound, 0.0)).exponent
    return torch.exp2((_PEAK - exponent).clamp(-126, 126).float())


_PEAK = 13
