"""One tile on a GPU: its embeddings, its similarities, who is positive, and which tiles there are.

rows, cols: `Side`s. relation: `Intervals` of the rows of x, also where these are the columns, or
`ListedIntervals`. `F`, the facts of a recipe, and `C`, a configuration, are compile-time records.
visits: which tiles a block of rows visits, (blocks, 2) as `engines/bands.py` returns it, or a
`TileList`.
"""

import triton
import triton.language as tl

from .lists import is_listed


@triton.jit
def vectors(side, at, live, COUNT: tl.constexpr, PARTIAL: tl.constexpr = True):
    """Load the COUNT vectors of these rows."""
    found = ()
    for k in tl.static_range(COUNT):
        start = side.vectors + tl.full((), k, tl.int64) * side.n
        if PARTIAL:
            found = found + (tl.load(start + at, mask=live, other=0.0),)
        else:
            found = found + (tl.load(start + at),)
    return found


@triton.jit
def block_of(side, begin, live, k, depth, R: tl.constexpr, C: tl.constexpr, PARTIAL: tl.constexpr):
    """Load (R, C.depth) of the embeddings: rows from `begin`, the k-th block of dimensions."""
    row = tl.arange(0, R)[:, None]
    dimension = k * C.depth + tl.arange(0, C.depth)[None, :]
    start = side.embeddings + tl.full((), begin, tl.int64) * depth
    if PARTIAL:
        return tl.load(start + row * depth + dimension, mask=live[:, None], other=0.0)
    else:
        return tl.load(start + row * depth + dimension)


@triton.jit
def blocks_of(side, begin, live, depth, R: tl.constexpr, C: tl.constexpr, PARTIAL: tl.constexpr):
    """Load all blocks of dimensions, if they are few enough to stay in registers."""
    found = ()
    if C.resident:
        for k in tl.static_range(C.blocks):
            found = found + (block_of(side, begin, live, k, depth, R, C, PARTIAL),)
    return found


@triton.jit
def halves(a):
    """Split a float32 below 65504 into the sum of two float16, which hold 22 bits."""
    high = a.to(tl.float16)
    return high, (a - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _add_product(sums, a, b, C: tl.constexpr):
    """Return sums + a bᵀ: one sum, or three, two of which swap if a and b do."""
    if C.split:
        a_high, a_low = halves(a)
        b_high, b_low = halves(b)
        whole = tl.dot(a_high, b_high.T, sums[0], input_precision="ieee")
        left = tl.dot(a_low, b_high.T, sums[1], input_precision="ieee")
        right = tl.dot(a_high, b_low.T, sums[2], input_precision="ieee")
        return whole, left, right
    else:
        return (tl.dot(a, b.T, sums[0], input_precision="ieee"),)


@triton.jit
def scale(s, row, col, F: tl.constexpr):
    """Return r_i r_j s, with the same bits as r_j r_i s."""
    if F.normalized:
        # r is (1 + e) times its first part; without e a whole row would have a common error.
        s = s * (row[0][:, None] * col[0][None, :])
        return tl.fma(s, row[1][:, None] + col[1][None, :], s)
    else:
        # The product of powers of two may overflow; an infinite s stays infinite.
        return s * row[0][:, None] * col[0][None, :]


@triton.jit
def similarities(rows, cols, begin_i, begin_j, live_i, live_j, x, y, row, col, depth,
                 F: tl.constexpr, C: tl.constexpr, COLS: tl.constexpr,
                 PARTIAL: tl.constexpr):  # fmt: skip
    """Compute s of a tile, with the same bits if the sets are exchanged, and in both passes.

    F.folded: its scales are left to VISIT.
    """
    zeros = tl.zeros((C.rows, COLS), tl.float32)
    if C.split:
        sums = (zeros, zeros, zeros)
    else:
        sums = (zeros,)
    if C.resident:
        for k in tl.static_range(C.blocks):
            sums = _add_product(sums, x[k], y[k], C)
    else:
        for k in range(C.blocks):
            a = block_of(rows, begin_i, live_i, k, depth, C.rows, C, True)
            b = block_of(cols, begin_j, live_j, k, depth, COLS, C, PARTIAL)
            sums = _add_product(sums, a, b, C)
    if C.split:
        s = sums[0] + (sums[1] + sums[2])
    else:
        s = sums[0]
    if F.scaled and not F.folded:
        s = scale(s, row, col, F)
    return s


@triton.jit
def masks(relation, begin_i, begin_j, i, j, live_i, live_j, F: tl.constexpr):
    """Return (R, C) whether a pair is positive, and whether it is a pair at all.

    begin_i, begin_j: the first of i and of j.
    """
    if F.rows_are_y:
        self_index = tl.load(relation.self_index + j, mask=live_j, other=-1).to(tl.int32)[None, :]
        position = i[:, None]
    else:
        self_index = tl.load(relation.self_index + i, mask=live_i, other=-1).to(tl.int32)[:, None]
        position = j[None, :]
    present = live_j[None, :] & (position != self_index)
    if F.listed:
        if F.rows_are_y:
            positive = present & is_listed(relation, j, live_j, begin_i, 0, i.shape[0])
        else:
            positive = present & is_listed(relation, i, live_i, begin_j, 1, j.shape[0])
    else:
        if F.rows_are_y:
            pos_begin = tl.load(relation.pos_begin + j, mask=live_j, other=0).to(tl.int32)[None, :]
            pos_end = tl.load(relation.pos_end + j, mask=live_j, other=0).to(tl.int32)[None, :]
        else:
            pos_begin = tl.load(relation.pos_begin + i, mask=live_i, other=0).to(tl.int32)[:, None]
            pos_end = tl.load(relation.pos_end + i, mask=live_i, other=0).to(tl.int32)[:, None]
        positive = present & (position >= pos_begin) & (position < pos_end)
    return positive, present


@triton.jit
def itinerary(visits, block, split, splits, tiles, valid_count, F: tl.constexpr, C: tl.constexpr):
    """Return first tile and width of the band, if there is one; then visits: full tiles from
    `begin` to `full`, and partial ones to `end`."""
    if F.tile_list:
        first, width = tiles, tiles
        full = tl.load(visits.full + block).to(tl.int32)
        start = visits.starts + block * (splits + 1) + split
        begin = tl.load(start).to(tl.int32)
        end = tl.load(start + 1).to(tl.int32)
    else:
        first = tl.minimum(tl.load(visits + 2 * block) // C.cols, tiles).to(tl.int32)
        last = tl.minimum(tl.cdiv(tl.load(visits + 2 * block + 1), C.cols), tiles).to(tl.int32)
        width = tl.maximum(last - first, 0)
        if F.band_only:
            full = width * 0
            many = width
        else:
            ragged = ((valid_count % C.cols != 0) & ((width == 0) | (last < tiles))).to(tl.int32)
            many = tiles
            full = tiles - width - ragged
        begin = (many.to(tl.int64) * split // splits).to(tl.int32)
        end = (many.to(tl.int64) * (split + 1) // splits).to(tl.int32)
    return first, width, begin, full, end


@triton.jit
def listed_tile(visits, block, visit, n, C: tl.constexpr):
    """Return the tile of a visit in a `TileList`, where the columns are n."""
    row = visits.tiles + tl.full((), block, tl.int64) * tl.cdiv(n, C.cols)
    return tl.load(row + visit).to(tl.int32)


@triton.jit
def full_tile(visits, block, visit, first, width, n, F: tl.constexpr, C: tl.constexpr):
    if F.tile_list:
        tile = listed_tile(visits, block, visit, n, C)
    else:
        tile = tl.where(visit < first, visit, visit + width)
    return tile


@triton.jit
def partial_tile(visits, block, visit, full, first, width, tiles, n,
                 F: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Return the tile of a visit: those of the band, then the ragged last one."""
    if F.tile_list:
        tile = listed_tile(visits, block, visit, n, C)
    else:
        tile = tl.where(visit - full < width, first + visit - full, tiles - 1)
    return tile
