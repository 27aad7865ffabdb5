"""Kernels of the chunked path, elementwise over a chunk of s in memory.

A program owns R rows and a part of the chunk's columns, tile by tile: first full tiles, of which
all pairs are negatives and nothing is masked, then partial ones, those of the band of positives and
those at ragged ends. With positives by list all are partial. VISIT is that of `sweep.py`.

rows, cols: `Side`s. bands: of each R rows, as `engines/bands.py` returns them. chunk: the address
of s, its first row and column in the sorted sets, their numbers, and its strides, so that the same
kernels also go along its columns.
"""

import triton
import triton.language as tl

from .tile import masks, scale, vectors


@triton.jit
def _tile(cols, relation, chunk, tile, i, live_i, row, limit,
          F: tl.constexpr, C: tl.constexpr, PARTIAL: tl.constexpr):  # fmt: skip
    """Load s of a tile and its columns' vectors; return also positives, and pairs at all."""
    begin_i = chunk.first_i + tl.program_id(0) * i.shape[0]
    begin_j = chunk.first_j + tile * C
    j = begin_j + tl.arange(0, C)
    live_j = j < limit
    col = vectors(cols, j, live_j, F.col_vectors)
    at = (i - chunk.first_i)[:, None] * chunk.stride_i
    at += (j - chunk.first_j)[None, :] * chunk.stride_j
    positive, present = live_i, live_i
    if PARTIAL:
        s = tl.load(chunk.s + at, mask=live_i[:, None] & live_j[None, :], other=0.0)
        positive, present = masks(relation, begin_i, begin_j, i, j, live_i, live_j, F)
    else:
        s = tl.load(chunk.s + at)
    if F.scaled:
        s = scale(s, row, col, F)
    return s, col, positive, present, at, j, live_j


@triton.jit
def _extent(rows, cols, chunk, R: tl.constexpr):
    """Return the rows of this program, which of them count, and the end of the columns."""
    i = chunk.first_i + tl.program_id(0) * R + tl.arange(0, R)
    last_i = tl.minimum(tl.load(rows.valid_count).to(tl.int32), chunk.first_i + chunk.many_i)
    last_j = tl.minimum(tl.load(cols.valid_count).to(tl.int32), chunk.first_j + chunk.many_j)
    return i, i < last_i, last_j


@triton.jit
def _itinerary(bands, chunk, live_i, limit, tiles,
               F: tl.constexpr, R: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Return the begin and end of this program's tiles, of those before the ragged ones, and of the
    band among these."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    begin, end = tiles * part // parts, tiles * (part + 1) // parts
    whole = tl.maximum(limit - chunk.first_j, 0) // C
    whole = tl.where(tl.min(live_i.to(tl.int32), 0) > 0, whole, 0)
    if F.listed:
        whole, first, last = 0, 0, 0
    else:
        band = bands + 2 * (chunk.first_i // R + tl.program_id(0))
        first = tl.maximum(tl.load(band) - chunk.first_j, 0).to(tl.int32) // C
        last = tl.cdiv(tl.maximum(tl.load(band + 1) - chunk.first_j, 0).to(tl.int32), C)
    whole = tl.minimum(tl.maximum(whole, begin), end)
    first = tl.minimum(tl.maximum(first, begin), whole)
    last = tl.minimum(tl.maximum(last, first), whole)
    return begin, end, whole, first, last


@triton.jit
def _full_tile(visit, begin, first, last):
    tile = begin + visit
    return tl.where(tile < first, tile, tile + last - first)


@triton.jit
def _partial_tile(visit, whole, first, last):
    tile = first + visit
    return tl.where(tile < last, tile, tile + whole - last)


@triton.jit
def _forward_tile(cols, relation, chunk, tile, i, live_i, row, limit, numbers, state,
                  VISIT: tl.constexpr, F: tl.constexpr, C: tl.constexpr,
                  PARTIAL: tl.constexpr):  # fmt: skip
    s, col, positive, present, _, j, live_j = _tile(
        cols, relation, chunk, tile, i, live_i, row, limit, F, C, PARTIAL
    )
    at = live_j
    if F.arguments:
        at = tl.load(cols.order + j, mask=live_j, other=0).to(tl.int32)[None, :]
    found = VISIT(s, row, col, numbers, positive, present, at, state, PARTIAL)
    new = ()
    for k in tl.static_range(F.states):
        new = new + (found[k],)
    return new


@triton.jit
def forward(rows, cols, relation, bands, chunk, numbers, states,
           INIT: tl.constexpr, VISIT: tl.constexpr, MERGE: tl.constexpr, F: tl.constexpr,
           R: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Update the states (parts, F.states, N) of all rows by this chunk."""
    i, live_i, limit = _extent(rows, cols, chunk, R)
    row = vectors(rows, i, live_i, F.row_vectors)
    tiles = tl.cdiv(tl.maximum(limit - chunk.first_j, 0), C)
    begin, end, whole, first, last = _itinerary(bands, chunk, live_i, limit, tiles, F, R, C)
    mine = states + tl.full((), tl.program_id(1), tl.int64) * F.states * rows.n
    known = ()
    for k in tl.static_range(F.states):
        plane = tl.full((), k, tl.int64) * rows.n
        known = known + (tl.load(mine + plane + i, mask=live_i, other=0.0),)
    state = MERGE(INIT(R), known)
    full = whole - begin - (last - first)
    if not F.band_only:
        for visit in tl.range(0, full, num_stages=2):
            tile = _full_tile(visit, begin, first, last)
            state = _forward_tile(cols, relation, chunk, tile, i, live_i, row, limit, numbers,
                                  state, VISIT, F, C, False)  # fmt: skip
    for visit in range(0, end - begin - full):
        tile = _partial_tile(visit, whole, first, last)
        state = _forward_tile(cols, relation, chunk, tile, i, live_i, row, limit, numbers,
                              state, VISIT, F, C, True)  # fmt: skip
    for k in tl.static_range(F.states):
        plane = tl.full((), k, tl.int64) * rows.n
        tl.store(mine + plane + i, state[k].to(tl.float32, bitcast=True), mask=live_i)


@triton.jit
def _weights(rows, cols, relation, chunk, tile, i, live_i, row, limit, numbers, slopes, factor,
             VISIT: tl.constexpr, F: tl.constexpr, C: tl.constexpr,
             PARTIAL: tl.constexpr):  # fmt: skip
    """Return factor_i w_ij r_j of a tile, if the embeddings' gradient is wanted, where it stands in
    the chunk, its columns, and slopes with what the tile adds."""
    s, col, positive, present, at, j, live_j = _tile(
        cols, relation, chunk, tile, i, live_i, row, limit, F, C, PARTIAL
    )
    weights = tl.zeros_like(s)
    new = slopes
    if PARTIAL or not F.band_only:
        found = VISIT(s, row, col, numbers, positive, present, slopes, PARTIAL)
        new = ()
        for k in tl.static_range(F.gradients):
            new = new + (found[1 + k],)
        if F.embeddings:
            weights = found[0]
            if F.scaled:
                weights = weights * factor[:, None] * col[0][None, :]
            if PARTIAL:
                weights = tl.where(live_i[:, None] & live_j[None, :], weights, 0.0)
    return weights, at, j, new


@triton.jit
def largest_weight(rows, cols, relation, bands, chunk, numbers, largest,
                   VISIT: tl.constexpr, F: tl.constexpr, R: tl.constexpr,
                   C: tl.constexpr):  # fmt: skip
    """Raise `largest` (parts, N) to the largest |r_i w_ij r_j| of each row in this chunk."""
    i, live_i, limit = _extent(rows, cols, chunk, R)
    row = vectors(rows, i, live_i, F.row_vectors)
    tiles = tl.cdiv(tl.maximum(limit - chunk.first_j, 0), C)
    mine = _itinerary(bands, chunk, live_i, limit, tiles, F, R, C)
    slopes = ()
    for k in tl.static_range(F.gradients):
        slopes = slopes + (tl.zeros((R,), tl.float32),)
    here = largest + tl.full((), tl.program_id(1), tl.int64) * rows.n + i
    top = tl.load(here, mask=live_i, other=0.0)
    for tile in range(mine[0], mine[1]):
        found = _weights(
            rows, cols, relation, chunk, tile, i, live_i, row, limit, numbers, slopes, row[0],
            VISIT, F, C, True,
        )  # fmt: skip
        top = tl.maximum(top, tl.max(tl.abs(found[0]), 1))
    tl.store(here, top, mask=live_i)


@triton.jit
def _store(weights, at, inside, high, low, P: tl.constexpr, PARTIAL: tl.constexpr):
    mask = None
    if PARTIAL:
        mask = inside
    if P.fit:
        part = weights.to(tl.float16)
        tl.store(high + at, part, mask=mask)
        if P.fine:
            tl.store(low + at, (weights - part.to(tl.float32)).to(tl.float16), mask=mask)
    else:
        tl.store(high + at, weights, mask=mask)


@triton.jit
def backward(rows, cols, relation, bands, chunk, numbers, unit, high, low, by_vector,
          VISIT: tl.constexpr, F: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
          C: tl.constexpr):  # fmt: skip
    """Write high (+ low) = r_i w_ij r_j in units of 1 / unit_i; a float32 `high` may be s itself.

    unit (N,), in sorted order. by_vector (parts, F.gradients, N), in the caller's, is added to."""
    i, live_i, limit = _extent(rows, cols, chunk, R)
    row = vectors(rows, i, live_i, F.row_vectors)
    tiles = tl.cdiv(chunk.many_j, C)
    begin, end, whole, first, last = _itinerary(bands, chunk, live_i, limit, tiles, F, R, C)
    order = tl.load(rows.order + i, mask=live_i, other=0)
    mine = by_vector + tl.full((), tl.program_id(1), tl.int64) * F.gradients * rows.n
    slopes = ()
    for k in tl.static_range(F.gradients):
        plane = tl.full((), k, tl.int64) * rows.n
        slopes = slopes + (tl.load(mine + plane + order, mask=live_i, other=0.0),)
    factor = live_i
    if F.embeddings and F.scaled:
        factor = row[0]
        if P.fit:
            factor = factor * tl.load(unit + i, mask=live_i, other=0.0)
    many_i = (i < chunk.first_i + chunk.many_i)[:, None]
    full = whole - begin - (last - first)
    for visit in tl.range(0, full, num_stages=2):
        tile = _full_tile(visit, begin, first, last)
        weights, at, j, slopes = _weights(
            rows, cols, relation, chunk, tile, i, live_i, row, limit, numbers, slopes, factor,
            VISIT, F, C, False,
        )  # fmt: skip
        if F.embeddings:
            _store(weights, at, many_i, high, low, P, False)
    for visit in range(0, end - begin - full):
        tile = _partial_tile(visit, whole, first, last)
        weights, at, j, slopes = _weights(
            rows, cols, relation, chunk, tile, i, live_i, row, limit, numbers, slopes, factor,
            VISIT, F, C, True,
        )  # fmt: skip
        if F.embeddings:
            inside = many_i & (j < chunk.first_j + chunk.many_j)[None, :]
            _store(weights, at, inside, high, low, P, True)
    for k in tl.static_range(F.gradients):
        plane = tl.full((), k, tl.int64) * rows.n
        tl.store(mine + plane + order, slopes[k], mask=live_i)
