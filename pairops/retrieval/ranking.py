"""Ranks up to R of a query's R positives, over tiles of queries and references in plain torch.

A negative counts for the positives that it is at least as near as, which are none or the farthest
few: sorted into the positives it adds to one position of a row, and sums along the row are the
ranks. So any number of references can be streamed, and those matter alone that are at least as near
as the farthest positive whose rank may still be R: a bound that rises as references are counted.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache
from pairops.ops.pairs.similarity import apply_scale, no_autocast, product
from pairops.ops.row_stats.ring_blocks import FORWARD, blocks_of_ring
from pairops.progress import bar

_ROWS, _COLS = 1024, 4096  # of a tile of similarities at most
_ROOM = 2**21  # similarities of positives in a block of queries
_AT_ONCE = 2**19  # similarities whose negatives are listed at once, some 60 bytes each


def precisions_at_r(pairs: Pairs, pessimistic: bool, progress: bool | None) -> Tensor:
    """Return (2, N): average precision at R and R-precision of every query of this rank."""
    dtype, device = widest_float(pairs.x.device), pairs.x.device
    result, size = torch.zeros(2, pairs.shape[0], dtype=dtype, device=device), pairs.positives()
    shown = bar(progress, pairs.shape[0], "MAP@R", "query")
    with no_autocast(device.type), shown as advance:
        for queries, parts in _blocks(pairs):
            result[:, queries] = _within_r(parts, size[queries], pairs.dtype, pessimistic)
            advance(len(queries))
    return result


# A block of queries meets its references in parts. A part is sorted pairs, and which of their
# rows, in sorted order, are the queries.
_Part = tuple["Sorted", int, int]


def _blocks(pairs: Pairs) -> Iterator[tuple[Tensor, Callable[[], Iterable[_Part]]]]:
    """Yield queries (B,) int64 in sorted order, and what streams their references once."""
    order = pairs.relation.permutation_x[: int(pairs.relation.valid_x.sum())]
    ends = _ends(pairs.positives()[order].cpu())
    if pairs.shards is None:
        whole = Sorted(pairs)
        for begin, end in zip([0, *ends], ends, strict=False):
            yield order[begin:end], partial(list, [(whole, begin, end)])
        return
    # Every rank goes through as many rings.
    (blocks,) = pairs.shards.group.agree({}, len(ends))
    ends += [len(order)] * (max(blocks) - len(ends))
    for begin, end in zip([0, *ends], ends, strict=False):
        queries = order[begin:end]
        # Sorting is stable, so that the queries keep their order in the pairs of every block.
        some = replace(
            pairs, x=pairs.x[queries], y=pairs.other, shards=pairs.shards.of_rows(queries),
            cache=Cache(gathered=pairs.cache.gathered),
        )  # fmt: skip
        yield queries, partial(_of_ranks, some)


def _of_ranks(pairs: Pairs) -> Iterator[_Part]:
    """Yield the references of all ranks, a rank's at a time."""
    assert pairs.shards is not None, "these pairs have a group"
    piece = pairs.shards.group.another()
    with closing(blocks_of_ring(pairs, 0, (), FORWARD, piece)) as blocks:
        for _, block, _ in blocks:
            yield Sorted(block), 0, pairs.shape[0]


def _ends(size: Tensor) -> list[int]:
    """Divide queries with so many positives into blocks, and return where each ends."""
    ends, begin = [], 0
    while begin < len(size):
        widest = int(size[begin : begin + _ROWS].max())
        begin = min(len(size), begin + max(1, min(_ROWS, _ROOM // max(widest, 1))))
        ends.append(begin)
    return ends


def _within_r(
    parts: Callable[[], Iterable[_Part]], size: Tensor, dtype: torch.dtype, pessimistic: bool
) -> Tensor:
    """Return (2, B): average precision at R and R-precision of queries with `size` positives."""
    width = int(size.max()) if len(size) else 0
    # A query itself may stand among its positives, and the last column takes what is no positive.
    found = torch.full((len(size), width + 2), -torch.inf, dtype=dtype, device=size.device)
    filled = torch.zeros_like(size)
    for part, begin, end in parts():
        if width:
            filled = part.add_positives(begin, end, found, filled)
    counter = _Ranks(found[:, :-1].sort(1).values[:, 1:], size, pessimistic)
    for part, begin, end in parts():
        if width:
            for s, others in part.negatives(begin, end):
                counter.add(s, others)
    return counter.precisions()


class _Ranks:
    """Ranks of the positives of some queries, while negatives are counted.

    Args:
        ascending: (B, W) the closeness of each query's positives, −inf before the first.
        size: (B,) int64, the numbers of positives.
        pessimistic: True ranks a negative before the positives that are as near.
    """

    def __init__(self, ascending: Tensor, size: Tensor, pessimistic: bool) -> None:
        self._nearest, self._size, self._pessimistic = ascending.contiguous(), size, pessimistic
        rows, self._width = ascending.shape
        self._k = torch.arange(1, self._width + 1, device=size.device)
        # For the k-th nearest positive, the negatives between the one before and it.
        self._between = torch.zeros(rows, self._width + 1, dtype=torch.int32, device=size.device)
        self._present = self._k <= size[:, None]
        self._present &= ~ascending.isnan().any(1, keepdim=True)
        self._waiting = 0  # how many negatives were counted since `_update`
        self._update()

    def _update(self) -> None:
        self._rank = self._k + self._between[:, : self._width].cumsum(1)
        self._hit = self._present & (self._rank <= self._size[:, None])
        nearest = self._nearest.flip(1)
        self._floor = torch.where(self._hit, nearest, torch.inf)
        self._floor = self._floor.amin(1, keepdim=True) if self._width else self._floor
        self._waiting = 0

    def add(self, s: Tensor, others: Tensor | None) -> None:
        """Count the negatives of a tile.

        Args:
            s: (B, C) closeness; a NaN is nearer than everything.
            others: (B, C) bool, the columns that are no negatives. None: all are.
        """
        near = ~(s < self._floor)
        if others is not None:
            near &= ~others
        step = max(1, _AT_ONCE // max(s.shape[1], 1))
        for first in range(0, len(s), step):
            rows = slice(first, first + step)
            self._waiting += self._count(s[rows], near[rows], first)
        # Ranks cost as much as the counting of some negatives for each of them.
        if self._waiting > self._between.numel() // 8:
            self._update()

    def _count(self, s: Tensor, near: Tensor, first: int) -> int:
        """Count what is near to the rows from `first` on, and return how many that are."""
        if not near.any():
            return 0
        row, column = near.nonzero().unbind(1)
        starts = torch.searchsorted(row, torch.arange(len(s) + 1, device=row.device))
        place = torch.arange(len(row), device=row.device) - starts[row]
        values = s.new_zeros(len(s), int(starts.diff().max()))
        values[row, place] = s[row, column]
        nearest = self._nearest[first : first + len(s)]
        after = torch.searchsorted(nearest, values, right=self._pessimistic)[row, place]
        at = (first + row) * (self._width + 1) + self._width - after
        self._between.view(-1).scatter_add_(0, at, torch.ones_like(at, dtype=torch.int32))
        return len(row)

    def precisions(self) -> Tensor:
        """Return (2, B): average precision at R and R-precision, in the widest dtype."""
        self._update()
        dtype = widest_float(self._size.device)
        precision = torch.where(self._hit, self._k.to(dtype) / self._rank, 0.0)
        size = self._size.clamp(min=1).to(dtype)
        return torch.stack([precision.sum(1) / size, self._hit.sum(1) / size])


class Sorted:
    """Both sets of pairs in sorted order, without ignored rows; references in strips.

    The intervals are read on the host once: pos_begin and pos_end rise with the queries.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._n, self._m = int(pairs.relation.valid_x.sum()), int(pairs.relation.valid_y.sum())
        self._x = self._rows(pairs.x, pairs.scales.x, pairs.relation.permutation_x[: self._n])
        self._y = self._x
        if pairs.y is not None:
            self._y = self._rows(pairs.y, pairs.scales.y, pairs.relation.permutation_y[: self._m])
        known = pairs.relation
        intervals = known.pos_begin, known.pos_end, known.self_index
        self._host = [z[: self._n].cpu() for z in intervals]

    def _rows(self, z: Tensor, scale: Tensor | None, order: Tensor) -> Tensor:
        scales = None if scale is None else scale[order]
        return apply_scale(z[order], scales, self._pairs.dtype)

    def add_positives(self, begin: int, end: int, found: Tensor, filled: Tensor) -> Tensor:
        """Put closeness to these queries' positives into found (B, W + 2), from column filled (B,)
        on, and return the columns up to which it is filled then."""
        pos_begin, pos_end, self_index = self._of(begin, end)
        width = int((self._host[1] - self._host[0])[begin:end].max())
        position = pos_begin + torch.arange(width, device=pos_begin.device)
        present = (position < pos_end) & (position != self_index)
        column = filled[:, None] + torch.arange(width, device=filled.device)
        for first, last, mixed in self._strips(begin, end):
            if mixed and width:
                s = self._closeness(begin, end, first, last)
                here = present & (position >= first) & (position < last)
                picked = s.gather(1, (position - first).clamp(0, last - first - 1))
                found.scatter_(1, torch.where(here, column, found.shape[1] - 1), picked)
        return filled + (pos_end - pos_begin)[:, 0]

    def negatives(self, begin: int, end: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield closeness (B, C) of strips, and which columns are no negatives, if any are."""
        for first, last, mixed in self._strips(begin, end):
            others = self._belongs(begin, end, first, last) if mixed else None
            yield self._closeness(begin, end, first, last), others

    def _strips(self, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield begin and end of each strip, and whether it may hold a positive or a query."""
        pos_begin, pos_end, self_index = (
            self._host[0][begin],
            self._host[1][end - 1],
            self._host[2][begin:end],
        )
        # Even strips: a sliver is multiplied by another kernel, and copies of a row then differ.
        pieces = -(-self._m // _COLS)
        size = -(-self._m // max(1, pieces) // 16) * 16
        for first in range(0, self._m, max(1, size)):
            last = min(self._m, first + size)
            itself = bool(((self_index >= first) & (self_index < last)).any())
            yield first, last, itself or bool((pos_begin < last) & (pos_end > first))

    def _belongs(self, begin: int, end: int, first: int, last: int) -> Tensor:
        """Return which columns are no negatives of a query, but positives or itself."""
        pos_begin, pos_end, self_index = self._of(begin, end)
        position = torch.arange(first, last, device=pos_begin.device)
        return ((position >= pos_begin) & (position < pos_end)) | (position == self_index)

    def _of(self, begin: int, end: int) -> Iterator[Tensor]:
        known = self._pairs.relation
        intervals = known.pos_begin, known.pos_end, known.self_index
        return (z[begin:end, None] for z in intervals)

    def _closeness(self, begin: int, end: int, first: int, last: int) -> Tensor:
        s = product(self._x[begin:end], self._y[first:last])
        if self._pairs.measure is None:
            return s
        known = self._pairs.relation
        rows, cols = known.permutation_x[begin:end], known.permutation_y[first:last]
        return self._pairs.squares().of_block(s, rows, cols)
