"""Operands of a sweep: sorted embeddings, vectors and numbers of each term, bands, tile lists."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.engines.bounded import is_bounded
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale
from pairops.ops.terms.accumulators import finite
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.term import Term

from .tile_configs import Configuration


@dataclass(frozen=True, eq=False)
class TritonTermView:
    """A term whose owners are along the rows of a sweep or, transposed, along its columns."""

    term: Term
    owners: int  # the set of its owners: 0, x, or 1, y
    transposed: bool
    numbers: tuple[int, ...]  # indices of its numbers among all numbers
    vectors: tuple[int, ...]  # indices of its vectors, windows after arguments, by axis
    given: tuple[int, ...] = ()  # indices of its statistic and cotangent, for `backward`
    bounded: bool = False  # exp f has digits whatever s is; `given` is then a `share_at_0`

    def changed(self, transposed: bool) -> "TritonTermView":
        return replace(self, transposed=transposed)


def along_rows(placed: Sequence[TritonTermView]) -> list[tuple[int, int]]:
    """Return (term id, argument) of the vectors along the rows of a sweep, which computes their
    gradients."""
    return [
        (term_id, k)
        for term_id, p in enumerate(placed)
        for k, a in enumerate(p.term.args)
        if not isinstance(a, float) and isinstance(a, Partner) == p.transposed
    ]


class Vectors:
    """The numbers of a call, and the vectors of each set, in the order that sweeps load them."""

    def __init__(self, same: bool, scaled: bool, folded: bool) -> None:
        self.same, self.folded = same, folded
        self.numbers: list[float] = []
        self.held = 2 if scaled else 0  # the scales
        self.along: tuple[list[Tensor], list[Tensor]] = ([], [])

    def place(self, term: Term, axis: int, given: Sequence[Tensor] = ()) -> TritonTermView:
        axis = 0 if self.same else axis
        partners = 0 if self.same else 1 - axis
        numbers, vectors = [], []
        for a in term.args:
            if isinstance(a, float):
                if a not in self.numbers:
                    self.numbers.append(a)
                numbers.append(self.numbers.index(a))
            elif isinstance(a, Partner):
                vectors.append(self._add(partners, a.values))
            elif isinstance(a, Tensor):
                vectors.append(self._add(axis, a))
        vectors += [self._add(axis, bound) for bound in term.windows()]
        bounded = self.folded and is_bounded(term)
        if given:
            statistic, cotangent = given
            given = [finite(statistic), cotangent]
            if bounded:
                given = [share_at_0(term, statistic, cotangent)]
        slots = tuple([self._add(axis, v) for v in given])
        return TritonTermView(term, axis, False, tuple(numbers), tuple(vectors), slots, bounded)

    def _add(self, axis: int, values: Tensor) -> int:
        for k, known in enumerate(self.along[axis]):
            if known is values:
                return self.held + k
        self.along[axis].append(values)
        return self.held + len(self.along[axis]) - 1

    def counts(self, axis: int) -> int:
        return self.held + len(self.along[0 if self.same else axis])


def share_at_0(term: Term, statistic: Tensor, cotangent: Tensor) -> Tensor:
    """Return what a pair adds to the slope by s, (owners,), divided by exp(scale · s)."""
    scale, base = [a.double() if isinstance(a, Tensor) else a for a in term.args]
    # Between −|scale| and |scale| + log 2^31, but where a base is so far away that R has no digits.
    apart = (scale * base + statistic.double()).clamp(-abs(scale), abs(scale) + 22)
    share = torch.exp(-apart) * (scale * cotangent.double())
    # An empty side has no share, whatever its cotangent is.
    return torch.where((cotangent == 0) | (statistic == -torch.inf), 0.0, share)


def log_of_powers(term: Term, total: Tensor) -> Tensor:
    """Return the log Σ exp f of a bounded term from total = Σ exp(scale · s)."""
    scale, base = [a.double() if isinstance(a, Tensor) else a for a in term.args]
    return torch.where(total == 0, -torch.inf, total.double().log() - scale * base).float()


class Side(NamedTuple):
    """One set in sorted order."""

    embeddings: Tensor  # (n, padded)
    vectors: Tensor  # (count, n) float32
    order: Tensor  # (n,) int64: the caller's index
    valid_count: Tensor  # () int64: the number of valid rows; they come first
    n: int


class Intervals(NamedTuple):
    pos_begin: Tensor  # `pos_begin` of `pairs.Relation`
    pos_end: Tensor  # `pos_end`
    self_index: Tensor  # `self_index`


class ListedIntervals(NamedTuple):
    pos_begin: Tensor  # those of `Intervals`, which count entries
    pos_end: Tensor
    self_index: Tensor
    entries: Tensor  # `entries`


class TileList(NamedTuple):
    tiles: Tensor  # (blocks, tiles) int32: full ones first, then partial ones
    starts: Tensor  # (blocks, parts + 1) int64: the begin of each part in its list
    full: Tensor  # (blocks,) int64: the number of full ones


class Operands:
    """The sets of one call."""

    def __init__(self, pairs: Pairs, config: Configuration, folds: bool) -> None:
        self.pairs = pairs
        self.listed = pairs.relation.entries is not None
        # A list is directed: of one set, a tile's positives are others if its sides are exchanged.
        # So one set with a list counts as two, and no kernel needs two masks.
        self.same = pairs.symmetric
        self._precision, self._padded = config.precision, config.padded
        # float32 rows are scaled once; 16-bit rows would be rounded, so their scales stay apart.
        whole = self._precision.stored == torch.float32 and not self._precision.unit
        self.scaled = self._precision.unit or (pairs.scales.x is not None and not whole)
        known = pairs.relation
        intervals = Intervals(known.pos_begin, known.pos_end, known.self_index)
        self.relation: Intervals | ListedIntervals = intervals
        if known.entries is not None:
            self.relation = ListedIntervals(*intervals, known.entries)
        scale_x = pairs.scales.x
        scale_y = scale_x if pairs.y is None else pairs.scales.y
        self.sets = (
            (pairs.x, scale_x, known.permutation_x, known.valid_x),
            (pairs.other, scale_y, known.permutation_y, known.valid_y),
        )
        # Of 16 bits the scales are folded into what is made of a product.
        self.folded = folds and self._precision.stored == torch.float16 and scale_x is not None
        self.vectors = Vectors(self.same, self.scaled, self.folded)

    @functools.cached_property
    def sides(self) -> tuple[Side, Side]:
        """Both sets, with the vectors of all terms: read after all terms are placed."""
        rows = self._rows(0)
        first = self._side(0, *rows)
        if self.same:
            return first, first
        return first, self._side(1, *(rows if self.pairs.y is None else self._rows(1)))

    def _rows(self, axis: int) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of a set in sorted order, and scales that are not in them."""
        z, scale, order, valid = self.sets[axis]
        rows = z.index_select(0, order)
        if self._precision.unit:
            power = _power_above(z)
            rows *= torch.exp2(-power.index_select(0, order)).to(z.dtype).unsqueeze(1)
            scale = torch.exp2(power) if scale is None else scale * torch.exp2(power)
        elif not self.scaled:
            of_row = None if scale is None else scale.index_select(0, order)
            rows = apply_scale(rows, of_row, torch.float32)
        rows = rows.to(self._precision.stored)
        # An ignored row may hold anything, and 0·NaN is NaN.
        rows = rows.masked_fill_(~valid.index_select(0, order).unsqueeze(1), 0.0)
        if self._padded > z.shape[1]:
            rows = torch.nn.functional.pad(rows, (0, self._padded - z.shape[1]))
        return rows.contiguous(), scale

    def _side(self, axis: int, rows: Tensor, scale: Tensor | None) -> Side:
        z, _, order, valid = self.sets[axis]
        vectors = list(self.vectors.along[axis])
        if self.scaled:
            vectors = [*_in_two_parts(scale), *vectors]
        if vectors:
            stacked = torch.stack([v.float() for v in vectors]).index_select(1, order)
        else:
            stacked = z.new_empty((0, z.shape[0]), dtype=torch.float32)
        return Side(rows, stacked, order, valid.sum(), z.shape[0])

    def numbers(self) -> tuple[float, ...]:
        return tuple(self.vectors.numbers) or (0.0,)


def _power_above(z: Tensor) -> Tensor:
    """Return (n,) float64: the exponent of the power of two above all numbers of a row, or 0."""
    largest = torch.linalg.vector_norm(z, torch.inf, 1, dtype=torch.float32)
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)
    return torch.where(largest.isfinite(), exponent, 0).double()


def _in_two_parts(scale: Any) -> list[Tensor]:
    """Split r into high (1 + e), so that r_i r_j and r_j r_i have the same parts."""
    high = scale.float()
    rest = scale - high.double()
    return [high, torch.where(high == 0, 0.0, rest / torch.where(high == 0, 1.0, high)).float()]


def in_band(band: Tensor, tiles: int, cols: int) -> Tensor:
    """Return (blocks, tiles) which tiles of `cols` columns are in the band of their block."""
    tile = torch.arange(tiles, device=band.device)
    return (tile >= band[:, :1] // cols) & (tile < (band[:, 1:] + cols - 1) // cols)


def list_tiles(
    mask: Tensor | None,
    occupied: Tensor,
    valid_count: Tensor,
    cols: int,
    parts: int,
    occupied_only: bool,
) -> TileList:
    """List the tiles to visit, those in mask (blocks, tiles), in the order of `tile.itinerary`.

    Each of the `parts` begins and ends at the same tiles as without a mask, so that nothing but
    zeros is left out of its sums.

    mask: None: all tiles.  occupied: (blocks, tiles) bool, the tiles in which a pair may be a
    positive, or of a row with itself.
    """
    tile = torch.arange(occupied.shape[1], device=occupied.device)
    tiles = (valid_count + cols - 1) // cols
    exists = tile < tiles
    partial = (occupied | ((tile == tiles - 1) & (valid_count % cols != 0))) & exists
    full = ~partial & exists
    if occupied_only:
        partial, full = occupied & exists, torch.zeros_like(full)
    rank = full.to(torch.uint8).mul_(2).add_(partial)
    if mask is not None:
        rank.mul_(mask != 0)
    # Sort some rows at a time: an argsort takes ten times the memory of its input.
    pieces = rank.split(max(1, _SORTED // max(1, rank.shape[1])))
    order = torch.cat([_by_rank(piece) for piece in pieces])
    counted = torch.stack([(rank == 2).sum(1), (rank != 0).sum(1)], 1)
    if parts == 1:  # the usual case, also of many tiles: no table of tiles by parts
        starts = torch.nn.functional.pad(counted[:, 1:], (1, 0))
    else:
        place = torch.where(
            full, full.cumsum(1) - 1, full.sum(1, keepdim=True) + partial.cumsum(1) - 1
        )
        visits = (full | partial).sum(1, keepdim=True)
        bounds = visits * torch.arange(parts + 1, device=tile.device) // parts
        before = place.unsqueeze(2) < bounds.unsqueeze(1)
        starts = (before & (rank != 0).unsqueeze(2)).sum(1)
    return TileList(order, starts, counted[:, 0].contiguous())


_SORTED = 1 << 20  # tiles


def _by_rank(rank: Tensor) -> Tensor:
    return torch.argsort(rank, dim=1, descending=True, stable=True).to(torch.int32)


def transposed_mask(mask: Tensor, blocks: int, tiles: int, times: int) -> Tensor:
    """Transpose a tile mask of (blocks of owners, tiles of partners) into one of (`blocks` of
    partners, `tiles` of owners). A block is `times` tiles.
    """
    padding = blocks * times - mask.shape[1]
    coarse = torch.nn.functional.pad(mask, (0, padding)).view(mask.shape[0], blocks, times).amax(2)
    return coarse.T.repeat_interleave(times, dim=1)[:, :tiles]


def any_of(masks: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.maximum, masks)
