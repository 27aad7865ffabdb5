"""Bounds of pair weights by row, before any weight is computed.

float16 ends at 65504, and whoever adds up products of weights in place needs their unit from the
start. A weight is ∂L/∂R · share · f': a share is 1 at most, and f' of some functions is nearly its
bound wherever it is not 0. Of others, such as softplus, all weights of a call may lie so far below
a bound that float16 has no digits for them.
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

# |f'| is at most what these return, of the |argument| of each argument.
_STEEPEST: dict[Function, Callable[..., Any]] = {
    functions.identity: lambda: 1.0,
    functions.one: lambda: 0.0,
    functions.affine: lambda scale, _base: scale,
    functions.hinge: lambda scale, _base: scale,
}


def known(placed: Sequence[TritonTermView]) -> bool:
    """Return whether every term has a bound."""
    return all(p.term.function in _STEEPEST for p in placed)


def by_row(placed: Sequence[TritonTermView], cotangents: Sequence[Tensor], same: bool) -> Tensor:
    """Return a bound of |∂L/∂s_ij| over all j, for each row (N,) or, (), for all rows alike.

    What is not finite says nothing of other rows, and is left out.
    """
    total = cotangents[0].new_zeros(())
    for p, cotangent in zip(placed, cotangents, strict=True):
        bound = cotangent.abs() * _steepest(p.term)
        if same or p.owners == 0:
            total = total + bound
        if same or p.owners == 1:
            total = total + largest(bound)
    return total


def _steepest(term: Term) -> Any:
    """Return a bound of |f'| for each owner, or for all."""
    sizes: list[Any] = []
    for a in term.args:
        if isinstance(a, Partner):
            sizes.append(largest(a.values.abs()))
        else:
            assert isinstance(a, (float, Tensor))
            sizes.append(abs(a))
    return _STEEPEST[term.function](*sizes)


def largest(sizes: Tensor) -> Tensor:
    """Return the largest finite one, ()."""
    return torch.where(sizes.isfinite(), sizes, 0.0).amax()


def units(bound: Tensor) -> Tensor:
    """Return powers of two that bring weights below 2^13.

    A share is above 1 by rounding, and where s has other bits than when R was computed; an infinite
    weight stays infinite in any unit.
    """
    exponent = torch.frexp(torch.where(bound.isfinite(), bound, 0.0)).exponent
    return torch.exp2((_PEAK - exponent).clamp(-126, 126).float())


_PEAK = 13
