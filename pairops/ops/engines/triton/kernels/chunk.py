"""Kernels of the chunked path, elementwise over a chunk of rows of s in memory.

VISIT is that of `sweep.py`; every tile is partial here.

rows, cols: `Side`s. chunk: the address of s, its first row and column in the sorted sets, their
numbers, and its strides, so that the same kernels also go along its columns.
"""

import triton
import triton.language as tl

from .tile import masks, scale, vectors


@triton.jit
def _tile(cols, relation, chunk, tile, i, live_i, row, limit,
          F: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Load s of a tile and its columns' vectors; return also positives, and pairs at all."""
    begin_i = chunk.first_i + tl.program_id(0) * i.shape[0]
    begin_j = chunk.first_j + tile * C
    j = begin_j + tl.arange(0, C)
    live_j = j < limit
    col = vectors(cols, j, live_j, F.col_vectors)
    at = (tl.full((), 0, tl.int64) + i - chunk.first_i)[:, None] * chunk.stride_i
    at += (tl.full((), 0, tl.int64) + j - chunk.first_j)[None, :] * chunk.stride_j
    s = tl.load(chunk.s + at, mask=live_i[:, None] & live_j[None, :], other=0.0)
    if F.scaled:
        s = scale(s, row, col, F)
    positive, present = masks(relation, begin_i, begin_j, i, j, live_i, live_j, F)
    return s, col, positive, present, at, j, live_j


@triton.jit
def _extent(rows, cols, chunk, R: tl.constexpr):
    """Return the rows of this program, which of them count, and the end of the columns."""
    i = chunk.first_i + tl.program_id(0) * R + tl.arange(0, R)
    last_i = tl.minimum(tl.load(rows.valid_count).to(tl.int32), chunk.first_i + chunk.many_i)
    last_j = tl.minimum(tl.load(cols.valid_count).to(tl.int32), chunk.first_j + chunk.many_j)
    return i, i < last_i, last_j


@triton.jit
def forward(rows, cols, relation, chunk, numbers, states,
           INIT: tl.constexpr, VISIT: tl.constexpr, MERGE: tl.constexpr, F: tl.constexpr,
           R: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Update the states (1, F.states, N) of all rows by this chunk."""
    i, live_i, limit = _extent(rows, cols, chunk, R)
    row = vectors(rows, i, live_i, F.row_vectors)
    known = ()
    for k in tl.static_range(F.states):
        plane = tl.full((), k, tl.int64) * rows.n
        known = known + (tl.load(states + plane + i, mask=live_i, other=0.0),)
    state = MERGE(INIT(R), known)
    for tile in range(0, tl.cdiv(tl.maximum(limit - chunk.first_j, 0), C)):
        s, col, positive, present, _, j, live_j = _tile(
            cols, relation, chunk, tile, i, live_i, row, limit, F, C
        )
        at = tl.load(cols.order + j, mask=live_j, other=0).to(tl.int32)[None, :]
        found = VISIT(s, row, col, numbers, positive, present, at, state, True)
        new = ()
        for k in tl.static_range(F.states):
            new = new + (found[k],)
        state = new
    for k in tl.static_range(F.states):
        plane = tl.full((), k, tl.int64) * rows.n
        tl.store(states + plane + i, state[k].to(tl.float32, bitcast=True), mask=live_i)


@triton.jit
def largest_weight(rows, cols, relation, chunk, numbers, largest,
                   VISIT: tl.constexpr, F: tl.constexpr, R: tl.constexpr,
                   C: tl.constexpr):  # fmt: skip
    """Store the largest |weight| among the rows of each program in `largest` (programs,)."""
    i, live_i, limit = _extent(rows, cols, chunk, R)
    row = vectors(rows, i, live_i, F.row_vectors)
    slopes = ()
    for k in tl.static_range(F.gradients):
        slopes = slopes + (tl.zeros((R,), tl.float32),)
    top = tl.zeros((R,), tl.float32)
    for tile in range(0, tl.cdiv(tl.maximum(limit - chunk.first_j, 0), C)):
        s, col, positive, present, _, j, live_j = _tile(
            cols, relation, chunk, tile, i, live_i, row, limit, F, C
        )
        found = VISIT(s, row, col, numbers, positive, present, slopes, True)
        weights = found[0]
        if F.scaled:
            weights = weights * row[0][:, None] * col[0][None, :]
        top = tl.maximum(top, tl.max(tl.where(live_i[:, None], tl.abs(weights), 0.0), 1))
    tl.store(largest + tl.program_id(0), tl.max(top, 0))


@triton.jit
def backward(rows, cols, relation, chunk, numbers, unit, high, low, by_vector,
          VISIT: tl.constexpr, F: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
          C: tl.constexpr):  # fmt: skip
    """Write high (+ low) = r_i w_ij r_j in units of 1 / unit; a float32 `high` may be s itself.

    by_vector (F.gradients, N), in the caller's order, is added to."""
    i, live_i, limit = _extent(rows, cols, chunk, R)
    row = vectors(rows, i, live_i, F.row_vectors)
    order = tl.load(rows.order + i, mask=live_i, other=0)
    slopes = ()
    for k in tl.static_range(F.gradients):
        plane = tl.full((), k, tl.int64) * rows.n
        slopes = slopes + (tl.load(by_vector + plane + order, mask=live_i, other=0.0),)
    if P.fit:
        times = tl.load(unit)
    for tile in range(0, tl.cdiv(chunk.many_j, C)):
        s, col, positive, present, at, j, live_j = _tile(
            cols, relation, chunk, tile, i, live_i, row, limit, F, C
        )
        found = VISIT(s, row, col, numbers, positive, present, slopes, True)
        new = ()
        for k in tl.static_range(F.gradients):
            new = new + (found[1 + k],)
        slopes = new
        if F.embeddings:
            weights = tl.where(live_i[:, None] & live_j[None, :], found[0], 0.0)
            if F.scaled:
                weights = weights * row[0][:, None] * col[0][None, :]
            inside = (i < chunk.first_i + chunk.many_i)[:, None]
            inside = inside & (j < chunk.first_j + chunk.many_j)[None, :]
            if P.fit:
                weights = weights * times
                part = weights.to(tl.float16)
                tl.store(high + at, part, mask=inside)
                if P.fine:
                    tl.store(low + at, (weights - part.to(tl.float32)).to(tl.float16), mask=inside)
            else:
                tl.store(high + at, weights, mask=inside)
    for k in tl.static_range(F.gradients):
        plane = tl.full((), k, tl.int64) * rows.n
        tl.store(by_vector + plane + order, slopes[k], mask=live_i)
