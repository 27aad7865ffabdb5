"""Kernels after a sweep: states of splits become statistics, sums of splits become gradients."""

import triton
import triton.language as tl


@triton.jit
def finalize_states(states, rows, values, arguments, splits,
             INIT: tl.constexpr, MERGE: tl.constexpr, FINALIZE: tl.constexpr, F: tl.constexpr,
             R: tl.constexpr):  # fmt: skip
    """Merge the states of all splits in order, into statistics in the caller's order."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    live = i < tl.load(rows.valid_count).to(tl.int32)
    state = INIT(R)
    for split in range(splits):
        other = ()
        for k in tl.static_range(F.states):
            plane = (tl.full((), split, tl.int64) * F.states + k) * rows.n
            other = other + (tl.load(states + plane + i, mask=live, other=0.0),)
        state = MERGE(state, other)
    found = FINALIZE(state)
    at = tl.load(rows.order + i, mask=live, other=0)
    for k in tl.static_range(F.terms):
        tl.store(values[k] + at, found[k], mask=live)
    for k in tl.static_range(F.arguments):
        tl.store(arguments[k] + at, found[F.terms + k].to(tl.int64), mask=live)


@triton.jit
def normalize_backward(gradient, x, scale, valid, out, splits, n, width,
                       SCALED: tl.constexpr, R: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Take the sum of all splits, in order, through the scale; out may be the first of them.

    gradient (splits, n, width), x and out (n, width) in the caller's order. In float64: where rows
    nearly coincide, a gradient is almost along them, and float32 would leave its rounding.
    """
    i = tl.program_id(0) * R + tl.arange(0, R)
    live = i < n
    is_valid = live & (tl.load(valid + i, mask=live, other=0) != 0)
    start = (tl.full((), 0, tl.int64) + i)[:, None] * width
    r = tl.zeros((R,), tl.float64)
    along = tl.zeros((R,), tl.float64)
    if SCALED:
        r = tl.load(scale + i, mask=is_valid, other=0.0).to(tl.float64)
    for second in tl.static_range(1 - SCALED, 2):
        for begin in range(0, width, DEPTH):
            dimension = begin + tl.arange(0, DEPTH)[None, :]
            here = is_valid[:, None] & (dimension < width)
            unit = tl.load(x + start + dimension, mask=here, other=0.0).to(tl.float32)
            g = tl.load(gradient + start + dimension, mask=here, other=0.0)
            for split in range(1, splits):
                plane = gradient + tl.full((), split, tl.int64) * n * width
                g += tl.load(plane + start + dimension, mask=here, other=0.0)
            if SCALED:
                unit = unit * r[:, None]
                if second == 0:
                    along += tl.sum(unit * g, 1)
                else:
                    g = r[:, None] * (g - unit * along[:, None])
            else:
                g = g + 0.0 * unit
            if second == 1:
                inside = live[:, None] & (dimension < width)
                tl.store(out + start + dimension, tl.where(here, g, 0.0), mask=inside)
