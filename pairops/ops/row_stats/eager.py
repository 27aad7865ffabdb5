"""The short way of an ordinary eager call: the engine itself, in one node of torch's graph.

Compilers, transforms and derivatives of gradients take the long way, `nodes.py`: there a call is
packed into the arguments of an op, and unpacked again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops import engines
from pairops.ops.autograd.node import followed_by_autograd_alone, transformed
from pairops.ops.distributed.allocation import refusing
from pairops.ops.engines import cpu_engine
from pairops.ops.engines.plan import Plan, plan_at_once, plan_of, serves
from pairops.ops.engines.protocol import Engine
from pairops.ops.pairs.distances import Measure
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Relation, Scales
from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.terms.levels import numbered
from pairops.ops.terms.recipe import pack
from pairops.ops.terms.term import BY_SETS, Term, indices

from . import picked_rows
from .backward import by_vector, wanted
from .nodes import RowStatsCall, differentiable_gradient

_Terms = tuple[Term, ...]


class _SavedCall(NamedTuple):
    """A call without its saved tensors, which are freed with the graph."""

    engine: Engine
    plan: Plan | None  # None: one pass back does not make the whole gradient
    relation: Relation
    scales: Scales
    measure: Measure | None
    cached: list[Any]  # similarities and squared norms, until a pass takes them
    rows: _Terms
    cols: _Terms
    arguments: int
    prepared: int  # the number of saved tensors that the engine prepared
    whole: bool  # True: each earlier term that is an argument found a pair of every owner

    def pairs(self, x: Tensor, y: Tensor | None, cache: Cache) -> Pairs:
        return Pairs(x, y, self.relation, self.scales, cache, measure=self.measure)


def at_once(pairs: Pairs, rows: _Terms, cols: _Terms) -> tuple[Any, ...] | None:
    """Compute what `row_stats` returns by the CPU engine, if it has compiled the terms; None: take
    the long way."""
    plan = plan_at_once(engines.asked_for(), pairs, rows, cols, short=False)
    if plan is None:
        return None
    x, y = pairs.x, pairs.y
    tensors: list[Tensor] = []
    if not plan.short:
        rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
        rows, cols = final(pairs, rows, cols)
        tensors = [z for term in (*rows, *cols) for _, z, _ in term.operands()]
        plan = plan_of(rows, cols)  # now numpy's numbers are floats, and windows tensors
        if plan is None or not serves(plan) or not followed_by_autograd_alone(x, y, tensors):
            return None
    followed = x.requires_grad or (y is not None and y.requires_grad)
    followed = followed or any(z.requires_grad for z in tensors)
    if followed and torch.is_grad_enabled():
        found: tuple[Tensor, ...] = _Eager.apply(  # type: ignore[no-untyped-call]
            pairs, rows, cols, cpu_engine, plan, x, y, *tensors
        )
        return found if not plan.indices else joined(rows + cols, found)
    made = cpu_engine.planned_forward(pairs, rows, cols, plan)
    values = tuple(made.every.split(made.sizes))
    if not plan.indices:
        return values
    return joined(rows + cols, (*values, *[made.arguments[k] for k in plan.indices]))


def joined(terms: _Terms, results: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Join statistics with the indices that follow them."""
    index = iter(results[len(terms) :])
    return tuple([(z, next(index)) if t.index else z for t, z in zip(terms, results)])  # noqa: B905


def final(pairs: Pairs, rows: _Terms, cols: _Terms) -> tuple[_Terms, _Terms]:
    """Number terms, `over` these pairs; ValueError if one of their tensors is on another device."""
    n, m = pairs.shape
    kind = pairs.dtype, pairs.x.device
    rows = tuple([term.over(n, m, *kind) for term in rows])
    cols = tuple([term.over(m, n, *kind) for term in cols])
    for term in (*rows, *cols):
        for _, z, _ in term.operands():
            if z.device != pairs.x.device:
                raise ValueError(
                    f"an argument or window of {term.function.name} is on {z.device}; "
                    f"it must be on {pairs.x.device}, as x is"
                )
    return rows, cols


def statistics(
    pairs: Pairs, rows: _Terms, cols: _Terms, engine: Engine, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Compute statistics of final terms, with these tensors, and then the indices asked for."""
    found: tuple[Tensor, ...] = _Eager.apply(  # type: ignore[no-untyped-call]
        pairs, rows, cols, engine, None, pairs.x, pairs.y, *tensors
    )
    return found


class _Eager(torch.autograd.Function):
    """A node: pairs, terms, engine, plan, x, y and the tensors of the terms → statistics, and then
    the indices asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        pairs: Pairs,
        rows: _Terms,
        cols: _Terms,
        engine: Engine,
        plan: Plan | None,
        x: Tensor,
        y: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        values: Sequence[Tensor]
        tile_masks: Tensor | None
        if plan is None:
            values, arguments, tile_masks = picked_rows.forward(engine, pairs, rows, cols)
            prepared = picked_rows.prepare(engine, pairs)
            constant = [k for k, term in enumerate(rows + cols) if not term.grad]
            asked = indices(rows + cols)
            whole = False
        else:
            every, sizes, arguments, tile_masks, whole = cpu_engine.planned_forward(
                pairs, rows, cols, plan
            )
            values = torch.split_with_sizes(every, sizes)
            prepared, constant, asked = [], plan.constant, plan.indices
        ctx.set_materialize_grads(False)
        results = (*values, *[arguments[k] for k in asked]) if asked else tuple(values)
        if constant or asked:
            fixed = [values[k] for k in constant]
            ctx.mark_non_differentiable(*fixed, *results[len(values) :])
        cache = [pairs.cache.similarities, pairs.cache.squares]
        cached = pairs.relation, pairs.scales, pairs.measure, cache
        counts = len(arguments), len(prepared)
        ctx.saved = _SavedCall(engine, plan, *cached, rows, cols, *counts, whole)
        ctx.save_for_backward(x, y, tile_masks, *prepared, *values, *arguments, *tensors)
        return results

    @staticmethod
    @refusing
    def backward(ctx: Any, *by_outputs: Tensor | None) -> tuple[Any, ...]:
        saved: _SavedCall = ctx.saved
        _, _, _, _, _, *needs = ctx.needs_input_grad
        x, y, tile_masks, *rest = ctx.saved_tensors
        similarities, squares = saved.cached
        plan, cache = saved.plan, Cache(similarities=similarities, squares=squares)
        by_outputs = by_outputs[: len(saved.rows) + len(saved.cols)]
        # A second pass back computes them again: whether the graph is freed is unknown here.
        saved.cached[:] = None, {}
        if saved.prepared:
            cache.prepared = {saved.engine.NAME: rest[: saved.prepared]}
            rest = rest[saved.prepared :]
        pairs = saved.pairs(x, y, cache)
        again = torch.is_grad_enabled() or transformed(by_outputs)
        if plan is not None and saved.whole and not again and (plan.few or not plan.extremes):
            values, arguments = rest[: plan.count], rest[plan.count :][: saved.arguments]
            cotangents = _cotangents(by_outputs, values, plan)
            terms = saved.rows + saved.cols
            needed = (
                BY_SETS[needs[0], needs[1]]
                if plan.short
                else wanted(terms, needs[0], needs[1], needs[2:])
            )
            dx, dy, slopes = cpu_engine.planned_backward(
                pairs,
                saved.rows,
                saved.cols,
                values,
                arguments,
                cotangents,
                tile_masks,
                needed,
                plan,
            )
            if values[0].dtype != x.dtype:
                dx, dy = [None if g is None else g.to(x.dtype) for g in (dx, dy)]
            gradients: Sequence[Any] = (dx, dy)
            if not plan.short:
                slope = iter(slopes)
                operands = [z for term in terms for z in term.operands()]
                gradients = dx, dy, *[next(slope) if z.has_grad else None for z in operands]
        else:
            gradients = _by_the_long_way(pairs, saved, by_outputs, tile_masks, rest, needs, again)
        found = [g if need else None for g, need in zip(gradients, needs)]  # noqa: B905
        return (None, None, None, None, None, *found)


def _cotangents(
    given: Sequence[Tensor | None], values: Sequence[Tensor], plan: Plan
) -> list[Tensor]:
    """Return cotangents, zeros for an unused statistic; those of constants are never read."""
    found = [values[0] if g is None else g for g in given]
    for k, g in enumerate(given):
        if g is None and k not in plan.constant:
            found[k] = torch.zeros_like(values[k])
    return found


def _by_the_long_way(
    pairs: Pairs,
    saved: _SavedCall,
    by_outputs: Sequence[Tensor | None],
    tile_masks: Tensor | None,
    rest: list[Tensor],
    needs: Sequence[bool],
    again: bool,
) -> Sequence[Any]:
    """Compute gradients level by level; `again`: differentiably, or for several cotangents.

    rest: statistics, arguments of extremes, tensors of the terms.
    """
    rows = numbered(saved.rows, saved.cols, "rows")
    cols = numbered(saved.cols, saved.rows, "cols")
    values, rest = rest[: len(rows + cols)], rest[len(rows + cols) :]
    arguments, tensors = rest[: saved.arguments], rest[saved.arguments :]
    if saved.plan is not None and saved.plan.short:  # whose windows may be numbers
        rows, cols = final(pairs, rows, cols)
        tensors = [z for term in (*rows, *cols) for _, z, _ in term.operands()]
        needs = [*needs, *[False] * len(tensors)]
    terms = rows + cols
    if tile_masks is None:
        shape = engines.tile_masks_shape(saved.engine, pairs, rows, cols)
        tile_masks = values[0].new_empty(shape, dtype=torch.uint8)
    # The cotangent of a constant is never read.
    cotangents = [
        g if g is not None else torch.zeros_like(z) if term.grad else z
        for g, z, term in zip(by_outputs, values, terms, strict=True)
    ]
    if again:
        recipe, numbers, _ = pack(rows, cols)
        prepared = picked_rows.prepare(saved.engine, pairs)
        call, given = RowStatsCall.of(
            pairs, recipe, numbers, None, tensors, prepared, saved.engine.NAME, terms
        )
        flags = [*needs, *[False] * (len(given) - len(needs))]
        return differentiable_gradient(
            call, flags, *given, *values, *arguments, tile_masks, *cotangents
        )
    with no_autocast(pairs.x.device.type):
        dx, dy, by_term = picked_rows.backward(
            saved.engine.NAME, pairs, rows, cols, values, arguments, tile_masks, cotangents,
            wanted(terms, needs[0], needs[1], needs[2:]),
        )  # fmt: skip
    # Round once, when all is added up.
    gradients = [g if g is None else g.to(pairs.x.dtype) for g in (dx, dy)]
    return [*gradients, *by_vector(terms, by_term, needs[2:])]
