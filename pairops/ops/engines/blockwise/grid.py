"""Grid of `blockwise`: sorted, scaled embeddings cut into tiles, and the terms of each tile."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Relation
from pairops.ops.pairs.similarity import apply_scale, product
from pairops.ops.terms.arguments import Argument, Between, Partner, Table
from pairops.ops.terms.term import ALL, POS, Term

from .tiled_arguments import (
    TiledArgument,
    TiledNumber,
    TiledOperand,
    TiledProduct,
    TiledTable,
    TiledVector,
)

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

    def tiled(self, argument: Argument, axis: int) -> TiledArgument:
        """Cut an argument of a term whose owners are the rows (axis 0) or the columns (axis 1)."""
        if isinstance(argument, Partner):
            return TiledVector(1 - axis, self.cut(argument.values, 1 - axis))
        if isinstance(argument, Tensor):
            return TiledVector(axis, self.cut(argument, axis))
        if isinstance(argument, Table):
            classes = self.cut(argument.owners, axis), self.cut(argument.partners, 1 - axis)
            return TiledTable(argument.values, *classes, axis)
        if isinstance(argument, Between):
            owners, partners = (
                self._scaled(k, z, None, z.dtype).split(self.extent[k])
                for k, z in ((axis, argument.owners), (1 - axis, argument.partners))
            )
            return TiledProduct(owners, partners, axis, argument.grad)
        assert isinstance(argument, float), "earlier terms are resolved"
        return TiledNumber(argument)

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
        self._args = [grid.tiled(argument, axis) for argument in term.args]
        self._operands = [z for argument in self._args for z in argument.operands]
        # A product of other embeddings may be infinite or NaN where s is not.
        products = any(isinstance(argument, TiledProduct) for argument in self._args)
        self.finite = term.function.finite and not products
        self._above = None if term.above is None else grid.cut(term.above, axis)
        self._below = None if term.below is None else grid.cut(term.below, axis)

    def _wants(self) -> list[bool]:
        """Return whether a gradient is wanted by each operand."""
        flags = iter(self.wanted or ())
        return [
            operand.has_grad and (self.wanted is None or next(flags)) for operand in self._operands
        ]

    def slope_operands(self) -> list[TiledOperand]:
        """Return the operands of arguments by which a gradient is wanted."""
        return list(itertools.compress(self._operands, self._wants()))

    def operands(self, tile: Tile) -> list[Tensor]:
        """Return what a tile's backward takes: cotangents, statistics, operands of arguments."""
        return [pieces[tile[self.axis]] for pieces in self.given] + self.pieces(tile)

    def pieces(self, tile: Tile) -> list[Tensor]:
        """Return the operands of arguments in a tile."""
        return [operand.pieces[tile[operand.axis]] for operand in self._operands]

    def args(self, tile: Tile, pieces: Sequence[Tensor]) -> list[Any]:
        """Return the arguments, shaped to be combined with a tile of similarities."""
        given = iter(pieces)
        return [
            argument.value(tile, [next(given) for _ in argument.operands])
            for argument in self._args
        ]

    def gradients(self, pieces: Sequence[Tensor], weights: Callable[[int], Tensor]) -> list[Tensor]:
        """Return the gradients by `slope_operands`. weights: those by the k-th argument."""
        found, given, flags = [], iter(pieces), iter(self._wants())
        for k, argument in enumerate(self._args):
            mine = [next(given) for _ in argument.operands]
            wanted = [next(flags) for _ in argument.operands]
            if any(wanted):
                found += argument.gradients(weights(k), mine, wanted)
        return found

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
