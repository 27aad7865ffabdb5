"""Grid of `blockwise`: sorted, scaled embeddings cut into tiles, and the terms of each tile."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Relation
from pairops.ops.pairs.similarity import apply_scale, product
from pairops.ops.terms.arguments import Partner, Table
from pairops.ops.terms.term import ALL, POS, Term

# The extents of a tile at most. 512 KiB of fp32 and its temporaries stay in cache, and the band of
# positives is narrow. They are the fastest from 64 to 1,024 at N = 1,024 to 4,096 with 1 MiB of L2.
ROWS, COLS = 256, 512

Tile = tuple[int, int]  # which row tile, which column tile


def readable(x: Tensor) -> bool:
    """Return whether values may be read back: not on a GPU, where that would synchronise."""
    return x.device.type == "cpu"


def extents(pairs: Pairs) -> tuple[int, int]:
    """Return the rows and columns of a tile: even pieces, in multiples of 16.

    A sliver at the end would be multiplied by another kernel, and equal columns would then differ
    in the last bit.
    """

    def even(n: int, most: int) -> int:
        # Not max(): torch.compile may not know n when it traces.
        pieces: int = torch.sym_max(1, (n + most - 1) // most)
        extent: int = torch.sym_max(16, ((n + pieces - 1) // pieces + 15) // 16 * 16)
        return extent

    n, m = pairs.shape
    return even(n, ROWS), even(m, COLS)


def counts(pairs: Pairs) -> tuple[int, int]:
    """Return the numbers of row tiles and of column tiles."""
    (n, m), (rows, cols) = pairs.shape, extents(pairs)
    return (n + rows - 1) // rows, (m + cols - 1) // cols


class Grid:
    """One call's tiles. Axis 0 are the rows, x; axis 1 the columns, y; both in sorted order."""

    def __init__(self, pairs: Pairs) -> None:
        relation = pairs.relation
        self.host = readable(pairs.x)
        self.length = pairs.shape
        self.extent = rows, cols = extents(pairs)
        self.order = relation.permutation_x, relation.permutation_y
        valid = relation.valid_x, relation.valid_y
        # Ignored rows come last: they are cut off on the CPU, and masked elsewhere.
        self.valid_count = [int(k.sum()) if self.host else len(k) for k in valid]
        self.present = [k.index_select(0, o) for k, o in zip(valid, self.order, strict=True)]
        x = self._scaled(0, pairs.x, pairs.scales.x, pairs.dtype)
        y = x if pairs.y is None else self._scaled(1, pairs.y, pairs.scales.y, pairs.dtype)
        self.embeddings = x.split(rows), y.split(cols)
        self.blank = [
            x.new_empty(k).split(e) for k, e in zip(self.valid_count, self.extent, strict=True)
        ]
        self.caller = [
            self.order[axis][: self.valid_count[axis]].split(self.extent[axis]) for axis in (0, 1)
        ]
        self.position_y = torch.arange(self.valid_count[1], device=x.device).split(cols)
        self.pos_begin, self.pos_end, self.self_index = (
            v[: self.valid_count[0]].unsqueeze(1).split(rows)
            for v in (relation.pos_begin, relation.pos_end, relation.self_index)
        )
        self._bounds = [
            (int(pos_begin.min()), int(pos_end.max()), int(self_index.min()), int(self_index.max()))
            for pos_begin, pos_end, self_index in zip(
                self.pos_begin, self.pos_end, self.self_index, strict=True
            )
            if self.host and len(pos_begin)
        ]
        self._listed = None if relation.entries is None else _TiledList(relation, self.extent)
        self._masks: tuple[Tile, dict[str, Tensor]] = (-1, -1), {}

    def _scaled(self, axis: int, z: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        order = self.order[axis][: self.valid_count[axis]]
        rows = z.index_select(0, order)
        if not self.host:
            rows = torch.where(self.present[axis].unsqueeze(1), rows, 0)
        return apply_scale(rows, None if scale is None else scale.index_select(0, order), dtype)

    def place(self, rows: Sequence[Term], cols: Sequence[Term]) -> "list[TiledTerm]":
        return [TiledTerm(self, term, 0) for term in rows] + [
            TiledTerm(self, term, 1) for term in cols
        ]

    def tiles(self) -> Iterator[Tile]:
        if all(self.valid_count):
            for a in range(len(self.embeddings[0])):
                for b in range(len(self.embeddings[1])):
                    yield a, b

    def similarity(self, tile: Tile) -> Tensor:
        return product(self.embeddings[0][tile[0]], self.embeddings[1][tile[1]])

    def cut(self, values: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Sort values from the caller's order, and cut them into one piece per tile."""
        order = self.order[axis][: self.valid_count[axis]]
        pieces: tuple[Tensor, ...] = values.index_select(0, order).split(self.extent[axis])
        return pieces

    def unsort(self, pieces: Sequence[Tensor], axis: int, absent: float) -> Tensor:
        """Join the pieces in the caller's order, with `absent` for ignored rows."""
        joined = torch.cat(list(pieces))
        if not self.host:
            present = self.present[axis].view(-1, *[1] * (joined.dim() - 1))
            joined = torch.where(present, joined, absent)
        whole = joined.new_full((self.length[axis], *joined.shape[1:]), absent)
        return whole.index_copy(0, self.order[axis][: self.valid_count[axis]], joined)

    def band(self, tile: Tile) -> bool:
        """Return whether the tile may hold a positive pair."""
        if self._listed is not None:
            return self._listed.any(tile)
        if not self.host:
            return True
        pos_begin, pos_end, _, _ = self._bounds[tile[0]]
        width = self.extent[1]
        return max(pos_begin, tile[1] * width) < min(pos_end, (tile[1] + 1) * width)

    def side(self, side: str, tile: Tile) -> Tensor | None:
        """Return which pairs are on the side, or None if all are."""
        if self.host and (side == ALL or not self.band(tile)):
            _, _, first, last = self._bounds[tile[0]]
            if last < tile[1] * self.extent[1] or first >= (tile[1] + 1) * self.extent[1]:
                return None
        if self._masks[0] != tile:
            self._masks = tile, {}
        masks = self._masks[1]
        if side not in masks:
            masks[side] = self._mask(side, *tile)
        return masks[side]

    def _mask(self, side: str, a: int, b: int) -> Tensor:
        position = self.position_y[b]
        mask: Tensor = position != self.self_index[a]
        if not self.host:
            rows, cols = (p.split(e) for p, e in zip(self.present, self.extent, strict=True))
            mask = mask & rows[a].unsqueeze(1) & cols[b]
        if side == ALL:
            return mask
        if self._listed is not None:
            positive = self._listed.mask((a, b), mask)
        else:
            positive = (position >= self.pos_begin[a]) & (position < self.pos_end[a])
        return mask & positive if side == POS else mask & ~positive


class _TiledList:
    """Positives by list, cut into tiles: they are few, and most tiles have none."""

    def __init__(self, relation: Relation, extent: tuple[int, int]) -> None:
        n, m = len(relation.permutation_x), len(relation.permutation_y)
        row, position = relation.listed(torch.arange(n, device=relation.permutation_x.device))
        self._tiles_in_a_row = -(-m // extent[1])
        tile, order = torch.sort(row // extent[0] * self._tiles_in_a_row + position // extent[1])
        self._row, self._position = row[order] % extent[0], position[order] % extent[1]
        tiles = torch.arange(-(-n // extent[0]) * self._tiles_in_a_row + 1, device=tile.device)
        self._ends: list[int] = torch.searchsorted(tile, tiles).tolist()

    def any(self, tile: Tile) -> bool:
        k = tile[0] * self._tiles_in_a_row + tile[1]
        return self._ends[k] < self._ends[k + 1]

    def mask(self, tile: Tile, like: Tensor) -> Tensor:
        k = tile[0] * self._tiles_in_a_row + tile[1]
        here, found = slice(self._ends[k], self._ends[k + 1]), torch.zeros_like(like)
        found[self._row[here], self._position[here]] = True
        return found


class TiledTerm:
    """A term whose owners are the rows (axis 0) or the columns (axis 1) of a grid."""

    given: tuple[tuple[Tensor, ...], ...] = ()  # cotangents and statistics, for `backward`
    tile_mask: list[list[int]] | None = None
    wanted: Sequence[bool] | None = None  # gradients by its tensor arguments; None: by all

    def __init__(self, grid: Grid, term: Term, axis: int) -> None:
        self.grid, self.term, self.axis = grid, term, axis
        self._args: list[Any] = []  # a number, (axis, pieces) or a table by tile
        for argument in term.args:
            if isinstance(argument, Partner):
                self._args.append((1 - axis, grid.cut(argument.values, 1 - axis)))
            elif isinstance(argument, Tensor):
                self._args.append((axis, grid.cut(argument, axis)))
            elif isinstance(argument, Table):
                self._args.append(_Looked(grid, argument, axis))
            else:
                self._args.append(argument)
        self._above = None if term.above is None else grid.cut(term.above, axis)
        self._below = None if term.below is None else grid.cut(term.below, axis)

    def vector_axes(self) -> list[tuple[int, int]]:
        """Return (position among the arguments, axis) of every tensor argument."""
        return [(k, arg[0]) for k, arg in enumerate(self._args) if isinstance(arg, tuple)]

    def slope_axes(self) -> list[tuple[int, int]]:
        """Return those `vector_axes` by which a gradient is wanted."""
        every = self.vector_axes()
        return every if self.wanted is None else list(itertools.compress(every, self.wanted))

    def operands(self, tile: Tile) -> list[Tensor]:
        """Return what a tile's backward takes: cotangents, statistics, tensor arguments."""
        return [pieces[tile[self.axis]] for pieces in self.given] + self._vectors(tile)

    def _vectors(self, tile: Tile) -> list[Tensor]:
        return [arg[1][tile[arg[0]]] for arg in self._args if isinstance(arg, tuple)]

    def args(self, tile: Tile, vectors: Sequence[Tensor] | None = None) -> list[Any]:
        """Return the arguments, shaped to be combined with a tile of similarities."""
        pieces = iter(self._vectors(tile) if vectors is None else vectors)
        return [
            next(pieces).unsqueeze(1 - arg[0])
            if isinstance(arg, tuple)
            else arg.up(tile)
            if isinstance(arg, _Looked)
            else arg
            for arg in self._args
        ]

    def spread(self, values: Tensor) -> Tensor:
        """Return one value per owner, shaped likewise."""
        return values.unsqueeze(1 - self.axis)

    def visits(self, tile: Tile) -> bool:
        return self.term.side != POS or self.grid.band(tile)

    def active(self, tile: Tile) -> bool:
        """Return whether the window may have a pair inside, by the tile mask."""
        return self.tile_mask is None or bool(self.tile_mask[tile[0]][tile[1]])

    def side(self, tile: Tile) -> Tensor | None:
        return self.grid.side(self.term.side, tile)

    def dropped(self, s: Tensor, tile: Tile) -> Tensor | None:
        """Return 0 for a pair inside the window, −inf outside, NaN for NaN; None: no window.

        threshold() and clamp() rather than a mask: boolean selection is 20 times slower on CPUs.
        """
        s, inside = s.detach(), None
        if self._above is not None:
            inside = s - self.spread(self._above[tile[self.axis]])
        if self._below is not None:
            room = self.spread(self._below[tile[self.axis]]) - s
            inside = room if inside is None else torch.minimum(inside, room)
        return None if inside is None else torch.threshold(inside, 0.0, -torch.inf).clamp_(max=0.0)


class _Looked:
    """A table whose classes are cut into tiles."""

    def __init__(self, grid: Grid, table: Table, axis: int) -> None:
        self._values, self._axis = table.values, axis
        self._owners, self._partners = (
            grid.cut(table.owners, axis),
            grid.cut(table.partners, 1 - axis),
        )

    def up(self, tile: Tile) -> Tensor:
        owners, partners = self._owners[tile[self._axis]], self._partners[tile[1 - self._axis]]
        found = self._values.index_select(0, owners).index_select(1, partners)
        return found if self._axis == 0 else found.T
