"""Ranks up to R of a query's R positives, over tiles of queries and references in plain torch.

A negative counts for the positives that it is at least as near as, which are none or the farthest
few: sorted into the positives it adds to one position of a row, and sums along the row are the
ranks. So any number of references can be streamed, and in a strip only those matter that are nearer
than the farthest positive whose rank may still be R.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale, product

_ROWS, _COLS = 1024, 4096  # of a tile of similarities at most
_ROOM = 2**21  # similarities of positives in a block of queries


class Sorted:
    """Both sets in sorted order, without ignored rows, in blocks of queries × strips of references.

    The intervals are read on the host once: pos_begin and pos_end rise with the queries.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs, self._dtype = pairs, widest_float(pairs.x.device)
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

    def blocks(self) -> Iterator[tuple[int, int]]:
        pos_begin, pos_end, _ = self._host
        begin = 0
        while begin < self._n:
            widest = int((pos_end - pos_begin)[begin : begin + _ROWS].max())
            end = min(self._n, begin + max(1, min(_ROWS, _ROOM // max(widest, 1))))
            yield begin, end
            begin = end

    def within_r(self, begin: int, end: int, pessimistic: bool) -> Tensor:
        """Return (2, end − begin): average precision at R and R-precision of these queries."""
        positives, size = self._positives(begin, end)
        if positives.shape[1] == 0:
            return torch.zeros(2, end - begin, dtype=self._dtype, device=size.device)
        ascending, width = positives.sort(1).values, positives.shape[1]
        nan = ascending.isnan().any(1)
        k = torch.arange(1, width + 1, device=size.device)
        # For the k-th nearest positive, the negatives between the one before and it.
        between = torch.zeros(end - begin, width + 1, dtype=torch.int32, device=size.device)
        rank = k.expand(end - begin, -1).clone()
        hit = (k <= size[:, None]) & ~nan[:, None]
        for first, last, mixed in self._strips(begin, end):
            s = self._closeness(begin, end, first, last)
            if mixed:
                s = torch.where(self._belongs(begin, end, first, last), -torch.inf, s)
            floor = torch.where(hit, ascending.flip(1), torch.inf).amin(1, keepdim=True)
            near = ~(s.amax(1) < floor[:, 0])
            share = int(near.sum()) / len(near)
            if share == 0:
                continue
            reached = slice(None) if share > 0.5 else torch.where(near)[0]
            s, nearest = s[reached], ascending[reached]
            if width < s.shape[1]:  # R negatives are enough
                s = s.topk(width, sorted=False).values
            after = torch.searchsorted(nearest, s, right=pessimistic)  # a NaN is after everything
            between[reached] = between[reached].scatter_add(
                1, width - after, torch.ones_like(after, dtype=torch.int32)
            )
            rank[reached] = k + between[reached, :width].cumsum(1)
            hit[reached] &= rank[reached] <= size[reached, None]
        precision = torch.where(hit, k.to(self._dtype) / rank, 0.0)
        size = size.clamp(min=1).to(self._dtype)
        return torch.stack([precision.sum(1) / size, hit.sum(1) / size])

    def _positives(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Return closeness (B, W) of the queries' positives, −inf beyond the last; and R, (B,)."""
        pos_begin, pos_end, self_index = self._of(begin, end)
        width = int((self._host[1] - self._host[0])[begin:end].max())  # at least R
        found = self._x.new_full((end - begin, width), -torch.inf)
        position = pos_begin + torch.arange(width, device=pos_begin.device)
        present = (position < pos_end) & (position != self_index)
        for first, last, mixed in self._strips(begin, end):
            if mixed:
                s = self._closeness(begin, end, first, last)
                here = present & (position >= first) & (position < last)
                picked = s.gather(1, (position - first).clamp(0, last - first - 1))
                found = torch.where(here, picked, found)
        return found, present.sum(1)

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
