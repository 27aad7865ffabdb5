"""The two sweeps: a program owns a block of rows, and streams blocks of columns past it.

                positions in the other set →
              ┌──────┬──────┬──────┬──┐   A program's tiles come in two kinds. Full ones hold
    a program │ part │ full │ full │ p│   negatives only: no label is read, nothing is compared.
              └──────┴──────┴──────┴──┘   Partial ones are those of the band, and a ragged last
                                          one. Full tiles go first, left to right.

Rows and columns are either set: terms of columns take a second sweep with the sets exchanged. VISIT
computes what a tile adds; `codegen.py` writes it for every recipe, for ms_loss see
tests/ops/engines/triton/generated_ms_loss.txt. Only shapes decide the order of sums, and no two
programs add to one number.

Arguments are as in `tile.py`.
"""

import triton
import triton.language as tl

from .tile import (
    block_of,
    blocks_of,
    full_tile,
    halves,
    itinerary,
    masks,
    partial_tile,
    similarities,
    vectors,
)


@triton.jit
def _tile(rows, cols, relation, block, begin_j, i, live_i, x, row, valid_count, depth,
          F: tl.constexpr, C: tl.constexpr, COLS: tl.constexpr,
          PARTIAL: tl.constexpr):  # fmt: skip
    """Compute s of COLS columns from begin_j on, load their vectors, and mask a partial tile."""
    j = begin_j + tl.arange(0, COLS)
    live_j = j < valid_count
    scales = vectors(cols, j, live_j, 2 if F.scaled and not F.folded else 0, PARTIAL)
    y = blocks_of(cols, begin_j, live_j, depth, COLS, C, PARTIAL)
    s = similarities(
        rows, cols, block * C.rows, begin_j, live_i, live_j, x, y, row, scales,
        depth, F, C, COLS, PARTIAL,
    )  # fmt: skip
    # Loaded after the products: before, they would be held in registers throughout.
    col = vectors(cols, j, live_j, F.col_vectors, PARTIAL)
    positive, present = live_i, live_i
    if PARTIAL:
        positive, present = masks(relation, block * C.rows, begin_j, i, j, live_i, live_j, F)
    return j, live_j, col, y, s, positive, present


@triton.jit
def _forward_tile(rows, cols, relation, numbers, tile_masks, block, tile, piece, i, live_i, x, row,
                  state, seen, valid_count, depth, VISIT: tl.constexpr, F: tl.constexpr,
                  C: tl.constexpr, COLS: tl.constexpr, PARTIAL: tl.constexpr):  # fmt: skip
    """Update the states by a piece of a tile; seen: what its pieces so far say of its mask."""
    begin_j = tile * C.cols + piece * COLS
    j, live_j, col, _, s, positive, present = _tile(
        rows, cols, relation, block, begin_j, i, live_i, x, row, valid_count, depth, F, C, COLS,
        PARTIAL,
    )  # fmt: skip
    at = live_j
    if F.arguments:
        if PARTIAL:
            at = tl.load(cols.order + j, mask=live_j, other=0).to(tl.int32)[None, :]
        else:
            at = tl.load(cols.order + j).to(tl.int32)[None, :]
    found = VISIT(s, row, col, numbers, positive, present, at, state, PARTIAL)
    new = ()
    for k in tl.static_range(F.states):
        new = new + (found[k],)
    now = ()
    for k in tl.static_range(F.tile_masks):
        bit = tl.where(piece == 0, 0, seen[k]) | found[F.states + k]
        now = now + (bit,)
        plane = (tl.full((), k, tl.int64) * tl.num_programs(0) + block) * tl.cdiv(cols.n, C.cols)
        here = tile_masks + plane + tile + tl.arange(0, 1)
        tl.store(here, bit.to(tl.uint8))
    return new, now


@triton.jit
def forward(rows, cols, relation, visits, numbers, tile_masks, states, depth,
           INIT: tl.constexpr, VISIT: tl.constexpr, F: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Write states (splits, F.states, N), of one split of the columns for each sorted row."""
    block, split = tl.program_id(0), tl.program_id(1)
    i = block * C.rows + tl.arange(0, C.rows)
    live_i = i < tl.load(rows.valid_count).to(tl.int32)
    valid_count = tl.load(cols.valid_count).to(tl.int32)
    row = vectors(rows, i, live_i, F.row_vectors)
    x = blocks_of(rows, block * C.rows, live_i, depth, C.rows, C, True)
    tiles = tl.cdiv(valid_count, C.cols)
    first, width, begin, full, end = itinerary(
        visits, block, split, tl.num_programs(1), tiles, valid_count, F, C
    )
    state = INIT(C.rows)
    seen = ()
    for k in tl.static_range(F.tile_masks):
        seen = seen + (tl.zeros((1,), tl.int32),)
    if not F.band_only:
        for visit in range(begin, tl.minimum(end, full)):
            tile = full_tile(visits, block, visit, first, width, cols.n, F, C)
            state, _ = _forward_tile(
                rows, cols, relation, numbers, tile_masks, block, tile, 0, i, live_i, x, row,
                state, seen, valid_count, depth, VISIT, F, C, C.cols, False,
            )  # fmt: skip
    for step in range(tl.maximum(begin, full) * C.pieces, end * C.pieces):
        tile = partial_tile(
            visits, block, step // C.pieces, full, first, width, tiles, cols.n, F, C
        )
        state, seen = _forward_tile(
            rows, cols, relation, numbers, tile_masks, block, tile, step % C.pieces, i, live_i, x,
            row, state, seen, valid_count, depth, VISIT, F, C, C.piece, True,
        )  # fmt: skip
    for k in tl.static_range(F.states):
        plane = (tl.full((), split, tl.int64) * F.states + k) * rows.n
        tl.store(states + plane + i, state[k].to(tl.float32, bitcast=True), mask=live_i)


@triton.jit
def _fit(weights, sums, exponent, C: tl.constexpr):
    """Scale weights by a power of two per row that brings the largest so far to [1, 2).

    float16 holds nothing below 6e-8 and nothing above 65504. The sums change units with them.
    """
    largest = tl.max(tl.abs(weights), 1)
    here = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    new = tl.maximum(exponent, tl.minimum(here, 253))
    weights = weights * ((254 - new) << 23).to(tl.float32, bitcast=True)[:, None]
    shrink = (tl.maximum(127 + exponent - new, 0) << 23).to(tl.float32, bitcast=True)
    fitted = ()
    for k in tl.static_range(C.accumulators):
        fitted = fitted + (sums[k] * shrink[:, None],)
    return weights, fitted, new


@triton.jit
def _add_rows(total, weights, y, C: tl.constexpr):
    """Return total + weights · y, the smallest parts first.

    A tensor core truncates the sum that it adds to, always toward zero, and over a row of tiles the
    losses add up. Weights of 11 bits do not notice. Others are summed within a tile, and the tiles
    by plain additions, written as `fma`: Triton makes one of a product and the addition after it.
    """
    if C.coarse:
        return tl.dot(weights.to(tl.float16), y, total, input_precision="ieee")
    else:
        part = tl.zeros_like(total)
        if C.fit:
            high, low = halves(weights)
            if C.split:
                y_high, y_low = halves(y)
                part = tl.dot(low, y_high, part, input_precision="ieee")
                part = tl.dot(high, y_low, part, input_precision="ieee")
                part = tl.dot(high, y_high, part, input_precision="ieee")
            else:
                part = tl.dot(low, y, part, input_precision="ieee")
                part = tl.dot(high, y, part, input_precision="ieee")
        else:
            part = tl.dot(weights, y, part, input_precision="ieee")
        return tl.fma(part, 1.0, total)


@triton.jit
def _backward_tile(rows, cols, relation, numbers, block, begin_j, i, live_i, x, sums, by_vector,
                   exponent, valid_count, depth, VISIT: tl.constexpr, F: tl.constexpr,
                   C: tl.constexpr, COLS: tl.constexpr, PARTIAL: tl.constexpr):  # fmt: skip
    # Loaded here, those that only partial tiles need are not held throughout the loop of full ones.
    row = vectors(rows, i, live_i, F.row_vectors)
    _, live_j, col, y, s, positive, present = _tile(
        rows, cols, relation, block, begin_j, i, live_i, x, row, valid_count, depth, F, C, COLS,
        PARTIAL,
    )  # fmt: skip
    found = VISIT(s, row, col, numbers, positive, present, by_vector, PARTIAL)
    slopes = ()
    for k in tl.static_range(F.gradients):
        slopes = slopes + (found[1 + k],)
    if F.embeddings:
        weights = found[0]
        if F.scaled:
            weights = weights * col[0][None, :]
        if C.fit:
            weights, sums, exponent = _fit(weights, sums, exponent, C)
        new = ()
        for k in tl.static_range(C.accumulators):
            if C.resident:
                part = y[k]
            else:
                at = tl.program_id(2) * C.accumulators + k
                part = block_of(cols, begin_j, live_j, at, depth, COLS, C, PARTIAL)
            new = new + (_add_rows(sums[k], weights, part, C),)
        sums = new
    return sums, slopes, exponent


@triton.jit
def backward(rows, cols, relation, visits, numbers, gradient, by_vector, depth, width,
          VISIT: tl.constexpr, F: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Write Σ_j w_ij ŷ_j of each row, (splits, N, width), and gradients by the rows' vectors
    (splits, F.gradients, N), both in the caller's order."""
    block, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = block * C.rows + tl.arange(0, C.rows)
    live_i = i < tl.load(rows.valid_count).to(tl.int32)
    valid_count = tl.load(cols.valid_count).to(tl.int32)
    x = blocks_of(rows, block * C.rows, live_i, depth, C.rows, C, True)
    tiles = tl.cdiv(valid_count, C.cols)
    first, band_width, begin, full, end = itinerary(
        visits, block, split, tl.num_programs(1), tiles, valid_count, F, C
    )
    sums, slopes = (), ()
    if F.embeddings:
        for k in tl.static_range(C.accumulators):
            sums = sums + (tl.zeros((C.rows, C.depth), tl.float32),)
    for k in tl.static_range(F.gradients):
        slopes = slopes + (tl.zeros((C.rows,), tl.float32),)
    exponent = tl.full((C.rows,), 1, tl.int32)
    if not F.band_only:
        for visit in range(begin, tl.minimum(end, full)):
            tile = full_tile(visits, block, visit, first, band_width, cols.n, F, C)
            sums, slopes, exponent = _backward_tile(
                rows, cols, relation, numbers, block, tile * C.cols, i, live_i, x, sums, slopes,
                exponent, valid_count, depth, VISIT, F, C, C.cols, False,
            )  # fmt: skip
    for step in range(tl.maximum(begin, full) * C.pieces, end * C.pieces):
        tile = partial_tile(
            visits, block, step // C.pieces, full, first, band_width, tiles, cols.n, F, C
        )
        begin_j = tile * C.cols + step % C.pieces * C.piece
        sums, slopes, exponent = _backward_tile(
            rows, cols, relation, numbers, block, begin_j, i, live_i, x, sums, slopes, exponent,
            valid_count, depth, VISIT, F, C, C.piece, True,
        )  # fmt: skip
    at = tl.load(rows.order + i, mask=live_i, other=0)
    if F.embeddings:
        start = gradient + (tl.full((), split, tl.int64) * rows.n + at)[:, None] * width
        if C.fit:
            unit = (exponent << 23).to(tl.float32, bitcast=True)[:, None]
        for k in tl.static_range(C.accumulators):
            dimension = (part * C.accumulators + k) * C.depth + tl.arange(0, C.depth)[None, :]
            total = sums[k]
            if C.fit:
                total = total * unit
            tl.store(start + dimension, total, mask=live_i[:, None] & (dimension < width))
    if part == 0:
        for k in tl.static_range(F.gradients):
            plane = (tl.full((), split, tl.int64) * F.gradients + k) * rows.n
            tl.store(by_vector + plane + at, slopes[k], mask=live_i)
