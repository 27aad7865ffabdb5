"""Tiles in plain torch: any device, any function, memory O(tile·M), differentiable twice.

Both verbs walk the matrix in tiles of sorted rows and columns:

                 places in order_y →
               ┌──────┬──────┬──────┐    A tile the positive intervals do not touch holds negatives
    places in  │ band │      │      │    only: nothing is masked there, and POS terms skip it.
    order_x    ├──────┼──────┼──────┤    A tile in which a window kept no pair has its bit clear:
       ↓       │ band │ band │      │    that term skips it in `weigh`. Tiles that no term
               ├──────┼──────┼──────┤    visits are not even multiplied.
               │      │      │ band │
               └──────┴──────┴──────┘    merge order: columns left to right, rows top to bottom

On CUDA the intervals and bits are not read back, since that would synchronise: every tile is masked.
`gather` and `weigh` cut the same tiles, so a pair that was mined is weighed; another engine's `gather` may
differ from ours in the last bit of s, and a pair that close to its threshold may flip.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..gathers import State, finite
from ..pairs import Pairs
from ..terms import ALL, POS, Partner, Term

ROWS, COLS = 512, 1024  # of a tile: 2 MiB of fp32 and its temporaries stay in cache
Grads = tuple[Tensor, Tensor, list[Tensor]]


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    return None


def gather(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Statistics of the row terms (N,) and column terms (M,), arguments of extremes, tile bits.

    The bits are uint8 (windowed terms, row tiles, column tiles); 1 where the window kept a pair. On a
    device other than the CPU none are kept: (windowed terms, 0, 0).
    """
    grid = _Grid(pairs)
    terms = [_Placed(term, axis, grid) for axis, side in ((0, rows), (1, cols)) for term in side]
    bits = torch.zeros(bits_shape(pairs, rows, cols), dtype=torch.uint8)
    bit_of = {id(term): bit for bit, term in enumerate(t for t in terms if t.term.keeps_bits)}
    states = [[t.term.monoid.identity(like) for like in grid.blank[t.axis]] for t in terms]

    for a, b in grid.tiles():
        visiting = [(t, mine) for t, mine in zip(terms, states, strict=True) if grid.visits(t, a, b)]
        if not visiting:
            continue
        s = grid.similarity(a, b)
        for t, mine in visiting:
            drop = t.dropped(s, a, b)
            if drop is not None and grid.host:
                if bool(drop.amax() == -torch.inf):
                    continue
                if id(t) in bit_of:
                    bits[bit_of[id(t)], a, b] = 1
            f = _kept(t, t.term.function.value(s, *t.args(a, b)), drop, grid, a, b)
            at = (a, b)[t.axis]
            tile: State = t.term.monoid.of(f, 1 - t.axis, grid.caller[1 - t.axis][(b, a)[t.axis]])
            mine[at] = t.term.monoid.merge(mine[at], tile)

    statistics, arguments = [], []
    for t, mine in zip(terms, states, strict=True):
        monoid = t.term.monoid
        statistics.append(
            grid.unsort([monoid.result(state) for state in mine], t.axis, monoid.fill)
        )
        if t.term.extreme and t.term.grad:
            arguments.append(grid.unsort([monoid.argument(s) for s in mine], t.axis, -1))  # type: ignore[attr-defined]
    return statistics, arguments, bits.to(pairs.x.device)


def weigh(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    bits: Tensor | None,
    needs: tuple[bool, bool],
) -> Grads:
    """Gradients of Σ cotangent·statistic by the scaled rows of x and y, and by every tensor argument.

    Sum and log-sum-exp terms only: an extreme's gradient goes to one pair per row and needs no sweep.
    For the same set, the first gradient is the whole one and the second is empty. All of it is
    differentiable if grad mode is on: tiles are then recomputed, not stored.
    """
    grid = _Grid(pairs)
    terms = [_Placed(term, axis, grid) for axis, side in ((0, rows), (1, cols)) for term in side]
    for t, statistic, cotangent in zip(terms, statistics, cotangents, strict=True):
        t.statistic = grid.cut(finite(statistic), t.axis)
        t.cotangent = grid.cut(cotangent, t.axis)
    if bits is not None and bits.shape[1:].numel() and grid.host:
        for t, kept in zip((t for t in terms if t.term.keeps_bits), bits.tolist(), strict=True):
            t.bits = kept
    wanted = (needs[0], needs[1] or (pairs.y is None and needs[0]))

    sums: dict[Any, Tensor] = {}
    for a, b in grid.tiles():
        visiting = [t for t in terms if grid.visits(t, a, b) and (t.bits is None or t.bits[a][b])]
        if not visiting:
            continue
        if torch.is_grad_enabled():
            parts = checkpoint(
                _weigh_tile, grid, visiting, wanted, a, b, use_reentrant=False, preserve_rng_state=False
            )
        else:
            parts = _weigh_tile(grid, visiting, wanted, a, b)
        for where, part in parts.items():
            sums[where] = sums[where] + part if where in sums else part

    def total(key: Any, axis: int) -> Tensor:
        pieces = [sums.get((key, i)) for i in range(len(grid.blank[axis]))]
        like = grid.blank[axis] if key not in ("x", "y") else grid.embeddings[axis]
        filled = [torch.zeros_like(z) if p is None else p for p, z in zip(pieces, like, strict=True)]
        return grid.unsort(filled, axis, 0.0)

    vectors = [total((id(t), k), axis) for t in terms for k, axis in t.vector_axes()]
    dx = total("x", 0) if wanted[0] else pairs.x.new_empty(0)
    dy = total("y", 1) if wanted[1] else pairs.x.new_empty(0)
    if pairs.y is None and wanted[0]:
        return dx + dy, pairs.x.new_empty(0), vectors
    return dx, dy, vectors


def bits_shape(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> tuple[int, int, int]:
    n, m = pairs.shape
    windowed = sum(term.keeps_bits for term in (*rows, *cols))
    if pairs.x.device.type != "cpu":
        return windowed, 0, 0
    return windowed, -(-n // ROWS), -(-m // COLS)


def _weigh_tile(
    grid: "_Grid", terms: "Sequence[_Placed]", wanted: tuple[bool, bool], a: int, b: int
) -> dict[Any, Tensor]:
    """What one tile adds to the gradients, by destination."""
    s = grid.similarity(a, b)
    weights: Tensor | None = None
    parts: dict[Any, Tensor] = {}
    for t in terms:
        args = t.args(a, b)
        drop = t.dropped(s, a, b)
        at = (a, b)[t.axis]
        share = t.spread(t.cotangent[at])
        if t.term.gather == "lse":
            f = t.term.function.value(s, *args) - t.spread(t.statistic[at])
            share = share * torch.exp(_kept(t, f, drop, grid, a, b))
        else:
            share = _kept(t, share.expand_as(s), drop, grid, a, b)
        slopes = t.term.function.slopes(s, *args)  # type: ignore[misc]
        weight = share * slopes[0]
        weights = weight if weights is None else weights + weight
        for k, axis in t.vector_axes():
            part = (share * slopes[1 + k]).sum(1 - axis)
            parts[(id(t), k), (a, b)[axis]] = part
    assert weights is not None
    if wanted[0]:
        parts["x", a] = weights @ grid.embeddings[1][b]
    if wanted[1]:
        parts["y", b] = weights.T @ grid.embeddings[0][a]
    return parts


def _kept(t: "_Placed", f: Tensor, drop: Tensor | None, grid: "_Grid", a: int, b: int) -> Tensor:
    """`f` with the fill of its gather wherever a pair is not on the side or outside the window."""
    fill = t.term.monoid.fill
    if drop is not None:
        f = torch.where(drop < 0, fill, f) if fill == 0 else f + (drop if fill < 0 else -drop)
    side = grid.mask(t.term.side, a, b)
    return f if side is None else torch.where(side, f, fill)


class _Grid:
    """Scaled embeddings in sorted order, cut in tiles, and what is known of each tile."""

    def __init__(self, pairs: Pairs) -> None:
        n, m = pairs.shape
        self.host = pairs.x.device.type == "cpu"
        self.kept = (
            (int(pairs.keep_x.sum()), int(pairs.keep_y.sum())) if self.host else (n, m)
        )  # ignored rows come last: on the CPU they are cut off
        self.order = pairs.order_x, pairs.order_y
        self.length = n, m
        self.tile = ROWS, COLS
        x = self._scaled(pairs.x, pairs.scale_x, pairs.keep_x, 0, pairs.dtype)
        same = pairs.y is None
        y = x if same else self._scaled(pairs.other, pairs.scale_y, pairs.keep_y, 1, pairs.dtype)
        self.embeddings = x.split(ROWS), y.split(COLS)
        self.place = torch.arange(self.kept[1], device=x.device).split(COLS)
        self.blank = [
            x.new_empty(kept).split(t) for kept, t in zip(self.kept, self.tile, strict=True)
        ]  # the shape of one value per place
        self.caller = [o[:k].split(t) for o, k, t in zip(self.order, self.kept, self.tile, strict=True)]
        self.lo, self.hi, self.own = (
            v[: self.kept[0]].unsqueeze(1).split(ROWS) for v in (pairs.lo, pairs.hi, pairs.own)
        )
        if self.host:
            self.bounds = [
                (int(lo.min()), int(hi.max()), int(own.min()), int(own.max()))
                for lo, hi, own in zip(self.lo, self.hi, self.own, strict=True)
                if len(lo)
            ]
        else:
            self.present = [k[o] for k, o in zip((pairs.keep_x, pairs.keep_y), self.order, strict=True)]
        self._masks: tuple[tuple[int, int], dict[str, Tensor]] = ((-1, -1), {})

    def _scaled(
        self, x: Tensor, scale: Tensor | None, keep: Tensor, axis: int, dtype: torch.dtype
    ) -> Tensor:
        order = self.order[axis][: self.kept[axis]]
        wide = x.index_select(0, order).to(dtype)
        if scale is not None:
            wide = wide * scale.index_select(0, order).unsqueeze(1)
        return wide if self.host else torch.where(keep[order].unsqueeze(1), wide, 0)

    def tiles(self) -> list[tuple[int, int]]:
        rows, cols = (range(len(e)) if k else range(0) for e, k in zip(self.embeddings, self.kept, strict=True))
        return [(a, b) for a in rows for b in cols]

    def similarity(self, a: int, b: int) -> Tensor:
        return self.embeddings[0][a] @ self.embeddings[1][b].T

    def cut(self, values: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Values in the caller's order as one piece per tile."""
        order = self.order[axis][: self.kept[axis]]
        return values.index_select(0, order).split(self.tile[axis])

    def unsort(self, pieces: Sequence[Tensor], axis: int, absent: float) -> Tensor:
        """The inverse of `cut`, with `absent` for ignored rows."""
        joined = torch.cat(list(pieces))
        whole = joined.new_full((self.length[axis], *joined.shape[1:]), absent)
        order = self.order[axis]
        if self.host:
            return whole.index_copy(0, order[: self.kept[axis]], joined)
        present = self.present[axis].view(-1, *[1] * (joined.dim() - 1))
        return whole.index_copy(0, order, torch.where(present, joined, absent))

    def visits(self, t: "_Placed", a: int, b: int) -> bool:
        return t.term.side != POS or not self.host or self._touches(a, b)

    def _touches(self, a: int, b: int) -> bool:
        """Do the positive intervals of row tile a reach column tile b?"""
        lo, hi, _, _ = self.bounds[a]
        return lo < (b + 1) * COLS and hi > b * COLS and lo < hi

    def mask(self, side: str, a: int, b: int) -> Tensor | None:
        """Who is on the side, or None if everybody is."""
        if self.host:
            _, _, first, last = self.bounds[a]
            selves = last >= b * COLS and first < (b + 1) * COLS
            if not (selves or (side != ALL and self._touches(a, b))):
                return None
        if self._masks[0] != (a, b):
            self._masks = (a, b), {}
        masks = self._masks[1]
        if side not in masks:
            masks[side] = self._side(side, a, b)
        return masks[side]

    def _side(self, side: str, a: int, b: int) -> Tensor:
        place = self.place[b]
        mask = place != self.own[a]
        if not self.host:
            rows, cols = self.present[0].split(ROWS)[a], self.present[1].split(COLS)[b]
            mask = mask & rows.unsqueeze(1) & cols
        if side == ALL:
            return mask
        positive = (place >= self.lo[a]) & (place < self.hi[a])
        return mask & (positive if side == POS else ~positive)


class _Placed:
    """A term whose owners are the rows (axis 0) or the columns (axis 1) of a grid."""

    statistic: tuple[Tensor, ...]
    cotangent: tuple[Tensor, ...]
    bits: list[list[int]] | None = None

    def __init__(self, term: Term, axis: int, grid: _Grid) -> None:
        self.term = term
        self.axis = axis
        self._args: list[Any] = []  # a number, or (axis, pieces)
        for argument in term.args:
            if isinstance(argument, Partner):
                self._args.append((1 - axis, grid.cut(argument.values, 1 - axis)))
            elif isinstance(argument, Tensor):
                self._args.append((axis, grid.cut(argument, axis)))
            else:
                self._args.append(argument)
        self._above = None if term.above is None else grid.cut(term.above, axis)
        self._below = None if term.below is None else grid.cut(term.below, axis)

    def vector_axes(self) -> list[tuple[int, int]]:
        """(position among the arguments, axis it varies along) of every tensor argument."""
        return [(k, arg[0]) for k, arg in enumerate(self._args) if isinstance(arg, tuple)]

    def args(self, a: int, b: int) -> list[Any]:
        return [
            arg if not isinstance(arg, tuple) else arg[1][(a, b)[arg[0]]].unsqueeze(1 - arg[0])
            for arg in self._args
        ]

    def spread(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1 - self.axis)

    def dropped(self, s: Tensor, a: int, b: int) -> Tensor | None:
        """0 for a pair inside the window, −inf outside, NaN for a NaN; None without a window.

        threshold() and clamp() rather than a mask: boolean selection is 20 times slower on CPUs.
        """
        if not self.term.windowed:
            return None
        at = (a, b)[self.axis]
        s = s.detach()
        inside: Tensor | None = None
        if self._above is not None:
            inside = s - self.spread(self._above[at])
        if self._below is not None:
            room = self.spread(self._below[at]) - s
            inside = room if inside is None else torch.minimum(inside, room)
        assert inside is not None
        return torch.threshold(inside, 0.0, -torch.inf).clamp_(max=0.0)
