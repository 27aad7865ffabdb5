"""Row statistics over the rows of all ranks: two rings of blocks, and one node of the graph.

Rank r owns its rows. In the first ring the others' embeddings and keys come past, and complete the
statistics of rank r's rows, which are monoids. In the second ring they come past once more, with
the statistics of their rows and the gradients by these: the gradient by rank r's rows, as owners
and as partners, is then final. No gradient travels. Two sets take a ring for each set that has
statistics, or a gradient.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.distributed.group import skip_compile
from pairops.ops.engines import ENGINES, Engine, first_use, terms_for_engine
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache
from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.terms.arguments import Between
from pairops.ops.terms.levels import after, sweeps
from pairops.ops.terms.recipe import pack, unpack
from pairops.ops.terms.term import POS, Term, indices

from .backward import by_vector
from .levels import Levels
from .ring_blocks import FORWARD, blocks_of_ring
from .sharded_backward import backward


@skip_compile
def row_stats(
    pairs: Pairs, rows: tuple[Term, ...], cols: tuple[Term, ...], engine: str
) -> tuple[Tensor, ...]:
    """Compute statistics of terms `over` these pairs, and then the indices asked for."""
    if ENGINES[engine].backward is None:
        raise ValueError(
            f"engine {engine!r} cannot serve this call: it weighs no blocks, and a group needs that"
        )
    if pairs.y is None and not (pairs.measure is not None and pairs.measure.directed):
        rows, cols = (*rows, *after(cols, len(rows))), ()  # a column is a row
    learned = [a.grad for term in (*rows, *cols) for a in term.args if isinstance(a, Between)]
    assert pairs.shards is not None, "these pairs have a group"
    if learned:  # it decides who goes through which ring
        pairs.shards.group.agree({"which embeddings of between(...) are learned": str(learned)})
    recipe, numbers, vectors = pack(rows, cols)
    followed = [z is not None and z.requires_grad for z in (pairs.x, pairs.y)]
    first_use.agree(pairs, (recipe, *followed))
    constant = [k for k, term in enumerate((*rows, *cols)) if not term.grad]
    asked = indices((*rows, *cols))
    call = ShardedCall(pairs, recipe, numbers, engine, constant, asked)
    result: tuple[Tensor, ...] = _ShardedRowStats.apply(  # type: ignore[no-untyped-call]
        call, pairs.x, pairs.y, *vectors
    )
    return result


class ShardedCall(NamedTuple):
    """A call without the tensors that have a gradient."""

    pairs: Pairs
    recipe: str
    numbers: list[float]
    engine: str
    constant: list[int]  # the terms that have no gradient
    indices: list[int]  # the arguments that are results


class _ShardedRowStats(torch.autograd.Function):
    """A node that runs both rings; under create_graph it gathers all rows in the backward pass."""

    @staticmethod
    def forward(ctx: Any, call: ShardedCall, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        (x, y, *vectors), pairs = inputs, call.pairs
        assert pairs.shards is not None, "these pairs have a group"
        ctx.piece = pairs.shards.group.another()
        rows, cols = unpack(call.recipe, call.numbers, vectors)
        statistics, arguments = _forward(pairs, rows, cols, call.engine, ctx.piece)
        gathered = [z for every in pairs.cache.gathered.values() for z in every]
        known = [*inputs, *statistics, *arguments]
        ctx.save_for_backward(*known, *gathered)
        ctx.ends = len(inputs), len(inputs) + len(statistics), len(known)
        ctx.gathered = {axis: len(every) for axis, every in pairs.cache.gathered.items()}
        asked = [arguments[k] for k in call.indices]
        ctx.mark_non_differentiable(*[statistics[k] for k in call.constant], *asked)
        # Saved tensors are freed with the graph; attributes of ctx are not.
        empty = x.new_empty(0)
        without_data = replace(pairs, x=empty, y=None if y is None else empty, cache=Cache())
        ctx.call = call._replace(pairs=without_data)
        return (*statistics, *asked)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        saved, call = ctx.saved_tensors, ctx.call
        x, y, *vectors = saved[: ctx.ends[0]]
        statistics, arguments = saved[ctx.ends[0] : ctx.ends[1]], iter(saved[ctx.ends[1] :])
        rest = iter(saved[ctx.ends[2] :])
        gathered = {axis: [next(rest) for _ in range(n)] for axis, n in ctx.gathered.items()}
        cotangents = [
            torch.zeros_like(z) if g is None else g
            for g, z in zip(given[: len(statistics)], statistics, strict=True)
        ]
        rows, cols = unpack(call.recipe, call.numbers, vectors)
        _, *needs = ctx.needs_input_grad
        pairs = replace(call.pairs, x=x, y=y, cache=Cache(gathered=gathered))
        with no_autocast(x.device.type):
            gradients, by_term = backward(
                pairs, rows, cols, statistics, list(arguments), cotangents,
                (call.engine, needs, ctx.piece),
            )  # fmt: skip
        found = [*gradients, *by_vector([*rows, *cols], by_term)]
        wanted = [g if need else None for g, need in zip(found, needs, strict=True)]
        return (None, *wanted)


def _forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], engine: str, piece: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute statistics and arguments by a ring for each axis and level of earlier terms."""
    terms = Levels(rows, cols)
    statistics: list[Any] = [None] * len(terms.every)
    arguments: dict[int, Tensor] = {}
    for some in sweeps(rows, cols):
        for axis in (0, 1):
            mine = [k for k in some if (k >= len(rows)) == (axis == 1)]
            placed = [terms.resolved(k, statistics) for k in mine]
            now = [term for term, _ in placed]
            values, found = _ring_forward(pairs, axis, now, engine, piece)
            terms.take(mine, placed, values, found, statistics, arguments)
    return statistics, [arguments[k] for k in sorted(arguments)]


def _ring_forward(
    pairs: Pairs, axis: int, terms: Sequence[Term], engine: str, piece: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute statistics and arguments of terms of the local rows (axis 0) or columns (1)."""
    if not terms:
        return [], []
    if pairs.y is None and axis == 1:  # a column is a row whose partners are the anchors
        assert pairs.measure is not None, "by a similarity there are terms of rows alone"
        pairs, axis = replace(pairs, measure=pairs.measure.turned()), 0
    assert pairs.shards is not None, "these pairs have a group"
    if pairs.shards.paired and all(term.side == POS for term in terms):
        alone = replace(pairs, shards=None)
        values, arguments = _forward_of(ENGINES[engine], alone, axis, terms)
        first = pairs.shards.first(1 - axis)
        return values, [torch.where(at < 0, -1, at + first) for at in arguments]
    widest = widest_float(pairs.x.device)
    blank = pairs.x.new_empty(pairs.shape[axis], dtype=widest)
    states = [term.monoid.init(blank) for term in terms]
    travelling = [z for term in terms for z in term.tensors("partner")]
    with closing(blocks_of_ring(pairs, axis, travelling, FORWARD, piece)) as blocks:
        for first, block, came in blocks:
            partner_tensors = iter(came)
            placed = [
                term.with_tensors(iter(term.tensors("owner", "window")), partner_tensors)
                for term in terms
            ]
            values, arguments = _forward_of(ENGINES[engine], block, axis, placed)
            found = iter(arguments)
            for k, (term, value) in enumerate(zip(terms, values, strict=True)):
                argument = None
                if term.keeps_argument:
                    argument = next(found)
                    argument = torch.where(argument < 0, -1, argument + first)
                state = term.monoid.from_statistic(value.to(widest), argument)
                states[k] = term.monoid.merge(states[k], state)
    merged = zip(terms, states, strict=True)
    arguments = [t.monoid.argument(state) for t, state in merged if t.keeps_argument]  # type: ignore[attr-defined]
    return [
        term.monoid.finalize(state).to(pairs.dtype)
        for term, state in zip(terms, states, strict=True)
    ], arguments


def _forward_of(
    engine: Engine, pairs: Pairs, axis: int, terms: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor]]:
    """Run `forward` on terms of rows (axis 0) or columns (1)."""
    of_axis: tuple[Sequence[Term], Sequence[Term]] = (terms, ()) if axis == 0 else ((), terms)
    values, arguments, _ = engine.forward(pairs, *terms_for_engine(engine, pairs, *of_axis))
    return values, arguments
