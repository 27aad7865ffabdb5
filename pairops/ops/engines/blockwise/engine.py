"""Tiles in plain torch: any device, any function, memory O(tile·M), differentiable twice.

Both passes walk the matrix in tiles of sorted rows and columns:

                 positions in y →
               ┌──────┬──────┬──────┐    A tile outside of the band is full: it holds negatives
    positions  │ band │      │      │    only, nothing is masked there, and POS terms skip it.
    in x       ├──────┼──────┼──────┤    A tile without a pair inside a term's window is 0 in
       ↓       │ band │ band │      │    its tile mask: that term's backward skips it. Tiles that
               ├──────┼──────┼──────┤    no term visits are not even multiplied.
               │      │      │ band │
               └──────┴──────┴──────┘    merge order: columns left to right, rows top to bottom

On CUDA intervals and tile masks are not read back, since that would synchronise: every tile is
partial. `forward` and `backward` cut the same tiles, so a pair that was mined has its weight;
another engine's `forward` may differ from ours in the last bit of s, and a pair that close to its
threshold may flip.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.recompute import recomputed
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import normalize_backward, product
from pairops.ops.terms.accumulators import Extreme, finite
from pairops.ops.terms.term import Term, Wanted

from . import grid as tiles
from .grid import Grid, Tile, TiledTerm, counts

NAME = "blockwise"
TAKES_EARLIER = "nowhere"
TAKES_DISTANCES = False
TAKES_LISTS = True
DEVICE: str | None = None


def missing() -> str | None:
    return None


def declines(*_call: object) -> str | None:
    return None


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute statistics; tile masks are (terms that have one, row tiles, column tiles)."""
    grid = Grid(pairs)
    terms = grid.place(rows, cols)
    tile_masks = torch.zeros(
        tile_masks_shape(pairs, rows, cols), dtype=torch.uint8, device=pairs.x.device
    )
    bit = dict(zip([t for t in terms if t.term.has_tile_mask], tile_masks, strict=True))
    states = {t: [t.term.monoid.init(blank) for blank in grid.blank[t.axis]] for t in terms}

    for tile in grid.tiles():
        visiting = [t for t in terms if t.visits(tile)]
        if not visiting:
            continue
        s = grid.similarity(tile)
        for t in visiting:
            drop = t.dropped(s, tile)
            if drop is not None and grid.host:
                if bool(drop.amax() == -torch.inf):
                    continue
                if t in bit:
                    bit[t][tile] = 1
            f = t.term.value(s, *t.args(tile, t.pieces(tile)))
            f = _selected(t, f, drop, tile, t.term.monoid.neutral)
            owner, partner = tile[t.axis], tile[1 - t.axis]
            seen = t.term.monoid.from_tile(f, 1 - t.axis, grid.caller[1 - t.axis][partner])
            states[t][owner] = t.term.monoid.merge(states[t][owner], seen)

    statistics, arguments = [], []
    for t in terms:
        monoid = t.term.monoid
        results = [monoid.finalize(state) for state in states[t]]
        statistics.append(grid.unsort(results, t.axis, monoid.neutral))
        if isinstance(monoid, Extreme) and monoid.with_argument:
            positions = [monoid.argument(state) for state in states[t]]
            arguments.append(grid.unsort(positions, t.axis, -1))
    return statistics, arguments, tile_masks


def backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tile_masks: Tensor | None,
    needs: Wanted,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute gradients; in grad mode all of it is differentiable, and tiles are recomputed."""
    grid = Grid(pairs)
    terms = grid.place(rows, cols)
    for t, statistic, cotangent in zip(terms, statistics, cotangents, strict=True):
        t.given = grid.cut(cotangent, t.axis), grid.cut(finite(statistic), t.axis)
    if tile_masks is not None and grid.host:
        for t, mask in zip(
            [t for t in terms if t.term.has_tile_mask], tile_masks.tolist(), strict=True
        ):
            t.tile_mask = mask
    if needs.args is not None:
        for t, flags in zip(terms, needs.args, strict=True):
            t.wanted = flags
    same = pairs.y is None
    embeddings = needs[0], needs[0] if same else needs[1]

    # The axis and the pieces of everything that gets a gradient: x, y, every tensor argument.
    axes, like, vectors = [0, 1], [*grid.embeddings], {}
    for t in terms:
        sloping = t.slope_operands()
        vectors[t] = range(len(axes), len(axes) + len(sloping))
        axes += [operand.axis for operand in sloping]
        like += [operand.pieces for operand in sloping]
    sums: list[dict[int, Tensor]] = [{} for _ in axes]
    run = recomputed if torch.is_grad_enabled() else _call
    for tile in grid.tiles():
        visiting = [t for t in terms if t.visits(tile) and t.active(tile)]
        if not visiting:
            continue
        operands = [v for t in visiting for v in t.operands(tile)]
        x, y = grid.embeddings[0][tile[0]], grid.embeddings[1][tile[1]]
        parts = run(partial(_tile_backward, visiting, embeddings, tile), x, y, *operands)
        slots = [k for k in (0, 1) if embeddings[k]] + [k for t in visiting for k in vectors[t]]
        for k, part in zip(slots, parts, strict=True):
            mine, here = sums[k], tile[axes[k]]
            mine[here] = mine[here] + part if here in mine else part

    def whole(k: int) -> Tensor:
        pieces = [
            sums[k][i] if i in sums[k] else torch.zeros_like(z) for i, z in enumerate(like[k])
        ]
        return grid.unsort(pieces, axes[k], 0.0)

    dx, dy = (whole(k) if needed else pairs.x.new_empty(0) for k, needed in enumerate(embeddings))
    dx = dx + dy if same else dx
    if needs[0]:
        dx = normalize_backward(dx, pairs.x, pairs.scales.x, pairs.relation.valid_x)
    if needs[1] and not same:
        dy = normalize_backward(dy, pairs.other, pairs.scales.y, pairs.relation.valid_y)
    by_vector: list[Tensor] = []
    for t in terms:
        found = iter(vectors[t])
        for wanted in [True] * len(vectors[t]) if t.wanted is None else t.wanted:
            by_vector.append(whole(next(found)) if wanted else pairs.x.new_empty(0))
    return dx, dy, by_vector


def _call(function: Callable[..., list[Tensor]], *inputs: Tensor) -> list[Tensor]:
    return function(*inputs)


def tile_masks_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    """Return the shape; its last two extents are 0 where masks could not be read back."""
    keeping = sum(term.has_tile_mask for term in (*rows, *cols))
    return (keeping, *counts(pairs)) if tiles.readable(pairs.x) else (keeping, 0, 0)


def _tile_backward(
    terms: Sequence[TiledTerm],
    needs: tuple[bool, bool],
    tile: Tile,
    x: Tensor,
    y: Tensor,
    *given: Tensor,
) -> list[Tensor]:
    """Return what one tile adds to the gradients: by x and y if needed, by every tensor argument.

    given: the operands of the terms, one term after the other.
    """
    s = product(x, y)
    weights = torch.zeros((), dtype=s.dtype, device=s.device)
    by_vector: list[Tensor] = []
    operands = iter(given)
    for t in terms:
        cotangent, statistic = next(operands), next(operands)
        pieces = [next(operands) for _ in t.pieces(tile)]
        args = t.args(tile, pieces)
        drop = t.dropped(s, tile)
        share = t.spread(cotangent).expand_as(s)
        seen = s
        if torch.is_grad_enabled():
            seen, args = _of_pairs(t, s, args, drop, tile)
        if t.term.statistic == "lse":
            f = t.term.value(seen, *args) - t.spread(statistic)
            share = share * torch.exp(_selected(t, f, drop, tile, -torch.inf))
        slope, *slopes = t.term.slopes(seen, *args)
        # Select once more: a slope may be infinite or NaN where there is no pair.
        unused = drop if t.term.statistic == "sum" or not t.finite else None
        weights = weights + _selected(t, share * slope, unused, tile, 0.0)
        by_argument = partial(_by_argument, t, share, slopes, unused, tile)
        by_vector += t.gradients(pieces, by_argument)
    by_embeddings = [product(weights, y.T)] if needs[0] else []
    if needs[1]:
        by_embeddings.append(product(weights.T, x.T))
    return by_embeddings + by_vector


def _by_argument(
    t: TiledTerm, share: Tensor, slopes: list[Any], unused: Tensor | None, tile: Tile, k: int
) -> Tensor:
    """Return the weights of a tile's pairs by the k-th argument."""
    return _selected(t, share * slopes[k], unused, tile, 0.0)


def _of_pairs(
    t: TiledTerm, s: Tensor, args: list[Any], drop: Tensor | None, tile: Tile
) -> tuple[Tensor, list[Any]]:
    """Replace similarities and arguments of pairs that do not count by 0 and 1.

    A slope's own slope may be infinite there, and 0·inf is NaN: no gradient may lead there.
    """
    selected = t.side(tile)
    if drop is not None:
        inside = ~(drop < 0)
        selected = inside if selected is None else selected & inside
    if selected is None:
        return s, args
    chosen = [torch.where(selected, a, 1) if isinstance(a, Tensor) else a for a in args]
    return torch.where(selected, s, 0), chosen


def _selected(t: TiledTerm, f: Tensor, drop: Tensor | None, tile: Tile, fill: float) -> Tensor:
    """Replace `f` by `fill` wherever a pair is outside the window or not on the side."""
    if drop is not None and fill != 0 and t.finite:
        f = f + (drop if fill < 0 else -drop)  # several times faster on CPUs than to select
    elif drop is not None:
        f = torch.where(drop < 0, fill, f)
    side = t.side(tile)
    return f if side is None else torch.where(side, f, fill)
