"""Positives by list on a GPU: who is listed in a tile, and which tiles hold a listed pair.

The positives of row i of x are entries [pos_begin_i, pos_end_i) of a list, positions in y, which
ascend. So a tile finds its own by a binary search for each row, and no list is sorted by tile: that
would take a second list for columns as owners, and a longer one where rows have their positives in
common.
"""

import triton
import triton.language as tl


@triton.jit
def is_listed(relation, row, live, first, AXIS: tl.constexpr, EXTENT: tl.constexpr):
    """Return (R, C) whether the positions from `first` to `first + EXTENT`, along AXIS, are entries
    of these rows of x, along the other axis."""
    flags = _flags(relation, row, live, first, EXTENT)
    offset = tl.expand_dims(tl.arange(0, EXTENT), 1 - AXIS)
    found = tl.expand_dims(flags[0], AXIS)
    for k in tl.static_range(1, (EXTENT + 31) // 32):
        found = tl.where(offset < 32 * k, found, tl.expand_dims(flags[k], AXIS))
    return ((found >> offset % 32) & 1) != 0


@triton.jit
def _flags(relation, row, live, first, EXTENT: tl.constexpr):
    """Return the entries from `first` to `first + EXTENT`, 32 flags to a number, which take fewer
    registers than a mask."""
    # Not as 32 bits: a list may have more entries than a set has positions.
    low = tl.load(relation.pos_begin + row, mask=live, other=0)
    end = tl.load(relation.pos_end + row, mask=live, other=0)
    past = first + EXTENT
    high = end
    longest = tl.max(end - low, 0)
    while longest > 0:
        middle = (low + high) // 2
        before = tl.load(relation.entries + middle, mask=low < high, other=past) < first
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
        longest = longest // 2
    flags = ()
    for _ in tl.static_range((EXTENT + 31) // 32):
        flags = flags + (tl.zeros_like(low).to(tl.int32),)
    entry = tl.load(relation.entries + low, mask=low < end, other=past)
    # As often as the fullest row has entries here, which is seldom more than a few times.
    while tl.min(entry, 0) < past:
        flag = tl.minimum(entry - first, EXTENT).to(tl.int32)
        new = ()
        for k in tl.static_range((EXTENT + 31) // 32):
            new = new + (flags[k] | tl.where(flag // 32 == k, 1 << flag % 32, 0),)
        flags = new
        low += 1
        entry = tl.load(relation.entries + low, mask=low < end, other=past)
    return flags


@triton.jit
def mark_occupied(relation, n, marks, tiles, ROWS: tl.constexpr, COLS: tl.constexpr,
                  F: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Write 1 in marks (blocks, tiles) of a sweep for each tile that holds a pair of the list or,
    unless the sweep sees positives alone, of a row with itself."""
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    at = tl.load(relation.pos_begin + i, mask=i < n, other=0)
    end = tl.load(relation.pos_end + i, mask=i < n, other=0)
    while tl.max(end - at, 0) > 0:
        j = tl.load(relation.entries + at, mask=at < end, other=0)
        tl.store(marks + _tile_of(i, j, tiles, ROWS, COLS, F), 1, mask=at < end)
        at += 1
    if not F.band_only:
        j = tl.load(relation.self_index + i, mask=i < n, other=-1)
        tl.store(marks + _tile_of(i, j, tiles, ROWS, COLS, F), 1, mask=j >= 0)


@triton.jit
def _tile_of(i, j, tiles, ROWS: tl.constexpr, COLS: tl.constexpr, F: tl.constexpr):
    if F.rows_are_y:
        tile = (j // ROWS) * tiles + i // COLS
    else:
        tile = (i // ROWS) * tiles + j // COLS
    return tile
