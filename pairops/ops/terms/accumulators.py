"""Accumulators, which turn contributions of pairs into one statistic: four monoids over tiles.

Each has `init` (the state without pairs), `from_tile` (the state of one tile), `merge`
(associative), `finalize`, `from_statistic` (a state with that statistic), and the value `neutral`
of a pair that does not count. Tiles, threads, memories and ranks can divide the work in any way,
since the states are monoids; a fixed merge order makes the result reproducible bit for bit.
`csrc/math/accumulators.h` holds the twins.
"""

from typing import Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]
NOWHERE = torch.iinfo(
    torch.int64
).max  # the argument of an extreme over no pairs, before `argument`


class Accumulator(Protocol):
    """The interface for engines. `dim` is the axis that is reduced."""

    neutral: float  # also the statistic of an empty side

    def init(self, like: Tensor) -> State: ...
    def from_tile(self, f: Tensor, dim: int, where: Tensor, /) -> State: ...
    def merge(self, a: State, b: State) -> State: ...
    def finalize(self, state: State) -> Tensor: ...
    def from_statistic(self, statistic: Tensor, argument: Tensor | None, /) -> State: ...


class Sum:
    """Σ f; every pair has share 1."""

    neutral = 0.0

    def init(self, like: Tensor) -> State:
        return (torch.zeros_like(like),)

    def from_tile(self, f: Tensor, dim: int, _where: Tensor) -> State:
        return (f.sum(dim),)

    def merge(self, a: State, b: State) -> State:
        return (a[0] + b[0],)

    def finalize(self, state: State) -> Tensor:
        return state[0]

    def from_statistic(self, statistic: Tensor, _argument: Tensor | None) -> State:
        return (statistic,)


class LogSumExp:
    """log Σ exp f; a pair's share is exp(f − R). State: the maximum, and Σ exp(f − maximum)."""

    neutral = -torch.inf

    def init(self, like: Tensor) -> State:
        return torch.full_like(like, -torch.inf), torch.zeros_like(like)

    def from_tile(self, f: Tensor, dim: int, _where: Tensor) -> State:
        top = f.amax(dim)
        return top, torch.exp(f - _shift(top).unsqueeze(dim)).sum(dim)

    def merge(self, a: State, b: State) -> State:
        top = torch.maximum(a[0], b[0])
        shift = _shift(top)
        return top, a[1] * torch.exp(a[0] - shift) + b[1] * torch.exp(b[0] - shift)

    def finalize(self, state: State) -> Tensor:
        return state[0] + torch.log(state[1])

    def from_statistic(self, statistic: Tensor, _argument: Tensor | None) -> State:
        return statistic, torch.ones_like(statistic)


class Extreme:
    """The lowest or highest f and, if wanted, the caller's index of the partner that attains it.

    Ties, of equal bits, go to the lowest index; a NaN wins over everything.
    """

    def __init__(self, sign: int, with_argument: bool) -> None:
        self.neutral = sign * -torch.inf
        self.sign = sign
        self.with_argument = with_argument

    def init(self, like: Tensor) -> State:
        value = torch.full_like(like, self.neutral)
        argument = torch.full_like(like, NOWHERE, dtype=torch.int64)
        return (value, argument) if self.with_argument else (value,)

    def from_tile(self, f: Tensor, dim: int, where: Tensor) -> State:
        value = f.amax(dim) if self.sign > 0 else f.amin(dim)
        if not self.with_argument:
            return (value,)
        at = where.unsqueeze(1 - dim).expand_as(f)
        return value, _attained(f, value.unsqueeze(dim), at).amin(dim)

    def merge(self, a: State, b: State) -> State:
        value = (torch.maximum if self.sign > 0 else torch.minimum)(a[0], b[0])
        if not self.with_argument:
            return (value,)
        at = torch.minimum(_attained(a[0], value, a[1]), _attained(b[0], value, b[1]))
        return value, at

    def finalize(self, state: State) -> Tensor:
        return state[0]

    def argument(self, state: State) -> Tensor:
        """Return the caller's index, −1 where no pair counted."""
        nobody = (state[0] == self.neutral) | (state[1] == NOWHERE)
        return torch.where(nobody, -1, state[1])

    def from_statistic(self, statistic: Tensor, argument: Tensor | None) -> State:
        if argument is None:
            return (statistic,)
        return statistic, torch.where(argument < 0, NOWHERE, argument)


def _attained(f: Tensor, extreme: Tensor, index: Tensor) -> Tensor:
    return torch.where((f == extreme) | f.isnan(), index, NOWHERE)


def _shift(top: Tensor) -> Tensor:
    """Return the number to subtract before exp; 0 for ±inf, since inf − inf is NaN."""
    return torch.where(top.isinf(), 0.0, top)


def finite(statistic: Tensor) -> Tensor:
    """Replace −inf in `statistic` by 0, so that exp(−inf − it) is 0 and not NaN."""
    return torch.where(statistic == -torch.inf, 0.0, statistic)


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """Return log(exp a + exp b); −inf, the log of nothing, gets no gradient beside a number.

    torch.logaddexp's second derivatives are NaN where one of the two is infinite, or so much
    smaller than the other that their quotient is.
    """
    first = a >= b
    higher, lower = torch.where(first, a, b), torch.where(first, b, a)
    apart = torch.where(higher == -torch.inf, -torch.inf, lower - higher)
    return higher + torch.log1p(torch.exp(apart))


ACCUMULATORS: dict[tuple[str, bool], Accumulator] = {
    ("sum", False): Sum(),
    ("lse", False): LogSumExp(),
    ("lowest", False): Extreme(-1, False),
    ("lowest", True): Extreme(-1, True),
    ("highest", False): Extreme(+1, False),
    ("highest", True): Extreme(+1, True),
}
