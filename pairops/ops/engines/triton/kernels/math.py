"""Scalar functions that Triton lacks, or rounds too much near 0, where a loss needs them."""

import triton
import triton.language as tl


@triton.jit
def _log1p_series(x):
    """Return log(1 + x) for −1/2 ≤ x ≤ 1, as 2 artanh(x / (2 + x)): nothing cancels."""
    z = x / (2.0 + x)
    square = z * z
    tail = 1 / 17
    for k in tl.static_range(7):
        tail = tail * square + 1 / (15 - 2 * k)
    return 2.0 * z * (1.0 + square * tail)


@triton.jit
def log1p(x):
    return tl.where((x > -0.5) & (x < 1.0), _log1p_series(x), tl.log(1.0 + x))


@triton.jit
def log(x):
    return tl.where((x > 0.5) & (x < 2.0), _log1p_series(x - 1.0), tl.log(x))


@triton.jit
def expm1(x):
    tail = 1.0 + x * (1 / 10)
    for k in tl.static_range(8):
        tail = 1.0 + x * (1 / (9 - k)) * tail
    return tl.where(tl.abs(x) < 0.5, x * tail, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    part = expm1(-2.0 * tl.abs(x))
    size = -part / (2.0 + part)
    return tl.where(x < 0, -size, size)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def relu(x):
    """Return max(x, 0); a NaN stays."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x * 0.0))


@triton.jit
def maximum(a, b):
    """Return the maximum, NaN if either is; one of the two may be a number."""
    return tl.where(a >= b, a, tl.where(b > a, b, a + b))


@triton.jit
def minimum(a, b):
    return tl.where(a <= b, a, tl.where(b < a, b, a + b))
