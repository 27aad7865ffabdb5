"""Accumulators of a row of a tile: the Triton twins of `terms/accumulators.py`.

Each monoid has `init`; `from_tile`, the state of one tile f (R, C); `merge`; and `finalize`.
`at` (1, C) names the columns by their caller's index. A state is a tuple of (R,) tensors.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = bool(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(2**31 - 1)  # the argument of an extreme over no pairs, before `argument`


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


if INTERPRETED:
    # A reduction by a function written here runs number by number in the interpreter.

    @triton.jit
    def row_max(f):
        hidden = tl.max((f != f).to(tl.int32), 1) > 0
        return tl.where(hidden, float("nan"), tl.max(tl.where(f != f, float("-inf"), f), 1))

    @triton.jit
    def row_min(f):
        hidden = tl.max((f != f).to(tl.int32), 1) > 0
        return tl.where(hidden, float("nan"), tl.min(tl.where(f != f, float("inf"), f), 1))

    @triton.jit
    def exp2(x):
        return tl.exp2(x)
else:

    @triton.jit
    def row_max(f):
        """Return the largest of every row; NaN if there is one."""
        return tl.reduce(f, 1, _larger)

    @triton.jit
    def row_min(f):
        return tl.reduce(f, 1, _smaller)

    @triton.jit
    def exp2(x):
        """Return 2^x, or 0 below 2^−126: in one instruction, where tl.exp2 takes four."""
        return libdevice.exp2(x)


@triton.jit
def exp(x):
    return exp2(x * LOG2_E)


@triton.jit
def sum_init(R: tl.constexpr):
    return tl.zeros((R,), tl.float32), tl.zeros((R,), tl.float32)


@triton.jit
def sum_from_tile(f, at):
    total = tl.sum(f, 1)
    return total, tl.zeros_like(total)


@triton.jit
def sum_merge(a, lost_a, b, lost_b):
    """Add Σ f and its rounding errors, since thousands of tiles follow one another."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    return total, lost_a + lost_b + tl.where(tl.abs(total) < float("inf"), lost, 0.0)


@triton.jit
def sum_finalize(total, lost):
    return total + lost


@triton.jit
def _shift(top):
    """Return the number to subtract before exp; 0 for ±inf, since inf − inf is NaN."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit
def lse_init(R: tl.constexpr):
    return tl.full((R,), float("-inf"), tl.float32), tl.zeros((R,), tl.float32)


@triton.jit
def lse_from_tile(f, at):
    top = row_max(f)
    return top, tl.sum(exp(f - _shift(top)[:, None]), 1)


@triton.jit
def lse_merge(top_a, a, top_b, b):
    top = _larger(top_a, top_b)
    shift = _shift(top)
    return top, a * exp(top_a - shift) + b * exp(top_b - shift)


@triton.jit
def lse_finalize(top, total):
    return top + tl.log(total)


@triton.jit
def powers_init(R: tl.constexpr):
    return (tl.zeros((R,), tl.float32),)


@triton.jit
def powers_from_tile(power, at):
    """Return Σ exp of bounded contributions, which needs no maximum."""
    return (tl.sum(power, 1),)


@triton.jit
def powers_merge(a, b):
    return (a + b,)


@triton.jit
def powers_finalize(total):
    return total


@triton.jit
def lowest_init(R: tl.constexpr):
    return (tl.full((R,), float("inf"), tl.float32),)


@triton.jit
def lowest_from_tile(f, at):
    return (row_min(f),)


@triton.jit
def lowest_merge(a, b):
    return (_smaller(a, b),)


@triton.jit
def lowest_finalize(value):
    return value


@triton.jit
def highest_init(R: tl.constexpr):
    return (tl.full((R,), float("-inf"), tl.float32),)


@triton.jit
def highest_from_tile(f, at):
    return (row_max(f),)


@triton.jit
def highest_merge(a, b):
    return (_larger(a, b),)


@triton.jit
def highest_finalize(value):
    return value


@triton.jit
def _attained(f, extreme, at):
    """Return `at` where f is the extreme; for a NaN extreme, where f is NaN."""
    return tl.where((f == extreme) | (f != f), at, NOWHERE)


@triton.jit
def lowest_at_init(R: tl.constexpr):
    return tl.full((R,), float("inf"), tl.float32), tl.full((R,), NOWHERE, tl.int32)


@triton.jit
def lowest_at_from_tile(f, at):
    value = row_min(f)
    return value, tl.min(_attained(f, value[:, None], at), 1)


@triton.jit
def lowest_at_merge(a, at_a, b, at_b):
    value = _smaller(a, b)
    return value, tl.minimum(_attained(a, value, at_a), _attained(b, value, at_b))


@triton.jit
def highest_at_init(R: tl.constexpr):
    return tl.full((R,), float("-inf"), tl.float32), tl.full((R,), NOWHERE, tl.int32)


@triton.jit
def highest_at_from_tile(f, at):
    value = row_max(f)
    return value, tl.min(_attained(f, value[:, None], at), 1)


@triton.jit
def highest_at_merge(a, at_a, b, at_b):
    value = _larger(a, b)
    return value, tl.minimum(_attained(a, value, at_a), _attained(b, value, at_b))


@triton.jit
def argument(value, at, FILL: tl.constexpr):
    """Return the caller's index, −1 where no pair counted."""
    return tl.where((value == FILL) | (at == NOWHERE), -1, at)
