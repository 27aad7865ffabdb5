"""The mean loss of a small batch on a CPU: statistics, mean and slopes in one node of the graph.

A small step is mostly Python and nodes. The tensors saved in the forward pass, similarities among
them, are of at most 512 × 512 pairs. A gradient that is not the first ordinary one is computed by
the way that large batches take.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops import engines
from pairops.ops.autograd.node import followed_by_autograd_alone, transformed
from pairops.ops.autograd.recompute import by_inputs
from pairops.ops.distributed.allocation import if_refused
from pairops.ops.engines import cpu_engine
from pairops.ops.engines.plan import Plan, plan_at_once
from pairops.ops.pairs.distances import Measure
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Relation, Scales
from pairops.ops.terms.levels import numbered
from pairops.ops.terms.term import BY_SETS, Earlier, Term

from .backward import wanted
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
    scalars: tuple[Tensor, ...]
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
    plan = plan_at_once(engines.asked_for(), pairs, rows, cols, short=False)
    if plan is None:
        return None
    scalars = () if plan.short else _scalars(rows + cols, pairs)
    if scalars is None:
        return None
    followed = x.requires_grad or (y is not None and y.requires_grad)
    followed = followed or (len(scalars) > 0 and any(z.requires_grad for z in scalars))
    if followed and torch.is_grad_enabled():
        mean: Tensor = _SmallMean.apply(  # type: ignore[no-untyped-call]
            pairs, rows, cols, pieces, plan, encoded, scalars, x, y, *scalars
        )
        return mean
    made = cpu_engine.planned_forward(pairs, rows, cols, plan)
    return cpu_engine.mean(encoded, n, made.every, pairs.positives())[0]


def _scalars(terms: _Terms, pairs: Pairs) -> tuple[Tensor, ...] | None:
    """Return the tensors among the arguments, if each is one number for all owners; else None."""
    found: list[Tensor] = []
    for term in terms:
        if isinstance(term.above, Tensor) or isinstance(term.below, Tensor):
            return None
        for a in term.args:
            if type(a) is float or isinstance(a, (Term, Earlier)):
                continue
            number = isinstance(a, Tensor) and not a.dim() and a.dtype == pairs.dtype and a.is_cpu
            if not number or a.is_neg():  # whose sign is yet to be turned
                return None
            if all(a is not z for z in found):
                found.append(a)
    return tuple(found) if followed_by_autograd_alone(pairs.x, pairs.y, found) else None


class _SmallMean(torch.autograd.Function):
    """A node: pairs, terms, pieces, a plan, x, y, the terms' scalars → the mean."""

    @staticmethod
    def forward(
        ctx: Any,
        pairs: Pairs,
        rows: _Terms,
        cols: _Terms,
        pieces: Sequence[Piece],
        plan: Plan,
        encoded: list[Any],
        scalars: tuple[Tensor, ...],
        x: Tensor,
        y: Tensor | None,
        *_scalars: Tensor,
    ) -> Tensor:
        every, _, arguments, tile_masks, whole = cpu_engine.planned_forward(pairs, rows, cols, plan)
        mean, slopes = cpu_engine.mean(encoded, x.shape[0], every, pairs.positives())
        shared = pairs.relation, pairs.scales, pairs.measure, [pairs.cache.similarities]
        ctx.saved = _SavedMean(plan, *shared, rows, cols, pieces, scalars, whole)
        ctx.save_for_backward(x, y, tile_masks, every, slopes, *scalars, *arguments)
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        saved: _SavedMean = ctx.saved
        _, _, _, _, _, _, _, need_x, need_y, *need_scalars = ctx.needs_input_grad
        x, y, tile_masks, every, slopes, *arguments = ctx.saved_tensors
        scalars: list[Tensor] = []
        by_scalar: Sequence[Tensor | None] = ()
        if saved.scalars:
            count = len(saved.scalars)
            scalars, arguments = arguments[:count], arguments[count:]
        plan, cache = saved.plan, Cache(similarities=saved.similarities[0])
        saved.similarities[0] = None
        pairs = saved.pairs(x, y, cache)
        try:
            again = torch.is_grad_enabled() or transformed((gradient,))
            if again or not saved.whole or (plan.extremes and not plan.few):
                needs = need_x, need_y, *need_scalars
                dx, dy, *by_scalar = _once_more(saved, pairs, gradient, needs, scalars)
            else:
                # A saved tensor may have been packed, and come back with any stride.
                slopes = slopes.contiguous()
                cotangents = slopes if gradient.item() == 1 else slopes * gradient
                needed = BY_SETS[need_x, need_y]
                if scalars and not any(need_scalars):
                    terms = saved.rows + saved.cols
                    needed = wanted(terms, need_x, need_y, itertools.repeat(False))
                dx, dy, by_owner = cpu_engine.planned_backward(
                    pairs, saved.rows, saved.cols, (every,), arguments, cotangents, tile_masks,
                    needed, plan,
                )  # fmt: skip
                if by_owner:
                    by_scalar = _summed(saved, by_owner)
                if every.dtype != x.dtype:
                    dx, dy = [None if g is None else g.to(x.dtype) for g in (dx, dy)]
        except RuntimeError as error:
            if_refused(error)
            raise
        found = [dx if need_x else None, dy if need_y else None]
        if scalars:
            found += [g if need else None for g, need in zip(by_scalar, need_scalars, strict=True)]
        return None, None, None, None, None, None, None, *found


def _summed(saved: _SavedMean, by_owner: Sequence[Tensor]) -> list[Tensor]:
    """Sum gradients by every tensor argument of the terms over owners, for each scalar."""
    given = [a for term in saved.rows + saved.cols for a in term.args if isinstance(a, Tensor)]
    return [
        torch.cat([g for a, g in zip(given, by_owner, strict=True) if a is scalar]).sum()
        for scalar in saved.scalars
    ]


def _once_more(
    saved: _SavedMean,
    pairs: Pairs,
    gradient: Tensor,
    needs: Sequence[bool],
    scalars: Sequence[Tensor],
) -> list[Tensor | None]:
    """Compute gradients the way of large batches, for any further derivative."""

    # A graph made here would hold the similarities as long as it lives.
    similarities = None if torch.is_grad_enabled() else pairs.cache.similarities

    def mean(x: Tensor, y: Tensor | None, *scalars: Tensor) -> tuple[Tensor]:
        again = saved.pairs(x, y, Cache(similarities=similarities))
        rows, cols = saved.rows, saved.cols
        if scalars:
            instead = dict(zip(map(id, saved.scalars), scalars, strict=True))
            rows, cols = (
                tuple([_with(instead, term) for term in numbered(*given)])
                for given in ((rows, cols, "rows"), (cols, rows, "cols"))
            )
        with engines.engine(cpu_engine.NAME):
            values = row_stats(again, *rows, cols=cols)
        by_term = dict(zip(saved.rows + saved.cols, values, strict=True))
        return (mean_of(saved.pieces, by_term, again),)

    return by_inputs(mean, needs, (pairs.x, pairs.y, *scalars), (gradient,))


def _with(instead: dict[int, Tensor], term: Term) -> Term:
    """Return the term with other scalars among its arguments."""
    return term.with_tensors(iter([instead[id(z)] for z in term.tensors("owner")]), iter(()))
