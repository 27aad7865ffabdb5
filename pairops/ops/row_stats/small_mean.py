"""The mean loss of a small batch on a CPU: statistics, mean and slopes in one node of the graph.

A small step is mostly Python and nodes. The tensors saved in the forward pass, similarities among
them, are of at most 512 × 512 pairs. A gradient that is not the first ordinary one is computed by
the way that large batches take.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops import engines
from pairops.ops.autograd.node import transformed
from pairops.ops.autograd.recompute import by_inputs
from pairops.ops.distributed.allocation import if_refused
from pairops.ops.engines import cpu_engine
from pairops.ops.engines.plan import Plan, plan_at_once
from pairops.ops.pairs.distances import Measure
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Relation, Scales
from pairops.ops.terms.term import BY_SETS, Term

from .op import row_stats, watching
from .pieces import Piece, mean_of

_Terms = tuple[Term, ...]


class _SavedMean(NamedTuple):
    plan: Plan
    relation: Relation
    scales: Scales
    measure: Measure | None
    similarities: list[Any]  # as in `eager`
    rows: _Terms
    cols: _Terms
    pieces: Sequence[Piece]
    whole: bool

    def pairs(self, x: Tensor, y: Tensor | None, cache: Cache) -> Pairs:
        return Pairs(x, y, self.relation, self.scales, cache, True, self.measure)


def small_mean(pairs: Pairs, rows: _Terms, cols: _Terms, pieces: Sequence[Piece]) -> Tensor | None:
    """Return the mean over all anchors of the sum of pieces; None: take the long way."""
    x, y, relation = pairs.x, pairs.y, pairs.relation
    if watching.calls is not None:  # a record of calls needs statistics
        return None
    n = x.shape[0]
    m = n if y is None else y.shape[0]
    if not relation.complete or (cols and m != n) or not 0 < n * m <= cpu_engine.SMALL:
        return None
    place: dict[Term, int] = {}
    for k, term in enumerate(rows + cols):
        place[term] = k
    encoded: list[Any] = []
    for shape, plus, minus, offset, weight in pieces:
        if type(offset) is not float or type(weight) is not float:
            return None
        encoded += ((shape, place[plus], -1 if minus is None else place[minus], offset, weight),)
    plan = plan_at_once(engines.asked_for(), pairs, rows, cols)
    if plan is None:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or (y is not None and y.requires_grad)):
        mean: Tensor = _SmallMean.apply(pairs, rows, cols, pieces, plan, encoded, x, y)  # type: ignore[no-untyped-call]
        return mean
    made = cpu_engine.planned_forward(pairs, rows, cols, plan)
    return cpu_engine.mean(encoded, n, made.every, pairs.positives())[0]


class _SmallMean(torch.autograd.Function):
    """A node: pairs, terms, pieces, a plan, x, y → the mean."""

    @staticmethod
    def forward(
        ctx: Any,
        pairs: Pairs,
        rows: _Terms,
        cols: _Terms,
        pieces: Sequence[Piece],
        plan: Plan,
        encoded: list[Any],
        x: Tensor,
        y: Tensor | None,
    ) -> Tensor:
        every, _, arguments, tile_masks, whole = cpu_engine.planned_forward(pairs, rows, cols, plan)
        mean, slopes = cpu_engine.mean(encoded, x.shape[0], every, pairs.positives())
        shared = pairs.relation, pairs.scales, pairs.measure, [pairs.cache.similarities]
        ctx.saved = _SavedMean(plan, *shared, rows, cols, pieces, whole)
        ctx.save_for_backward(x, y, tile_masks, every, slopes, *arguments)
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        saved: _SavedMean = ctx.saved
        _, _, _, _, _, _, need_x, need_y = ctx.needs_input_grad
        x, y, tile_masks, every, slopes, *arguments = ctx.saved_tensors
        plan, cache = saved.plan, Cache(similarities=saved.similarities[0])
        saved.similarities[0] = None
        pairs = saved.pairs(x, y, cache)
        try:
            again = torch.is_grad_enabled() or transformed((gradient,))
            if again or not saved.whole or (plan.extremes and not plan.few):
                dx, dy = _once_more(saved, pairs, gradient, need_x, need_y)
            else:
                # A saved tensor may have been packed, and come back with any stride.
                slopes = slopes.contiguous()
                cotangents = slopes if gradient.item() == 1 else slopes * gradient
                dx, dy, _ = cpu_engine.planned_backward(
                    pairs, saved.rows, saved.cols, (every,), arguments, cotangents, tile_masks,
                    BY_SETS[need_x, need_y], plan,
                )  # fmt: skip
                if every.dtype != x.dtype:
                    dx, dy = [None if g is None else g.to(x.dtype) for g in (dx, dy)]
        except RuntimeError as error:
            if_refused(error)
            raise
        return None, None, None, None, None, None, dx if need_x else None, dy if need_y else None


def _once_more(
    saved: _SavedMean, pairs: Pairs, gradient: Tensor, need_x: bool, need_y: bool
) -> list[Tensor | None]:
    """Compute gradients the way of large batches, for any further derivative."""

    # A graph made here would hold the similarities as long as it lives.
    similarities = None if torch.is_grad_enabled() else pairs.cache.similarities

    def mean(x: Tensor, y: Tensor | None) -> tuple[Tensor]:
        again = saved.pairs(x, y, Cache(similarities=similarities))
        with engines.engine(cpu_engine.NAME):
            values = row_stats(again, *saved.rows, cols=saved.cols)
        by_term = dict(zip(saved.rows + saved.cols, values, strict=True))
        return (mean_of(saved.pieces, by_term, again),)

    return by_inputs(mean, (need_x, need_y), (pairs.x, pairs.y), (gradient,))
