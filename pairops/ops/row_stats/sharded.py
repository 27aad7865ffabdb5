"""Row statistics over the rows of all ranks: two rings of blocks, and one node of the graph.

Rank r owns its rows. In the first ring the others' embeddings and keys come past, and the
statistics of its own rows, which are monoids, are completed. In the second ring they come past once
more, with the statistics of their rows and the gradients by these: what rank r's rows get as owners
and as partners is then known here, and their gradient is final. No gradient travels. Two sets take
a ring for each that has statistics, or a gradient.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.distributed.allocation import refusing
from pairops.ops.distributed.group import untraced
from pairops.ops.engines import ENGINES
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache
from pairops.ops.pairs.similarity import exactly
from pairops.ops.terms.levels import passes, sweeps
from pairops.ops.terms.recipe import pack, unpack
from pairops.ops.terms.term import POS, Term, Wanted

from .backward import by_vector, of_terms
from .levels import Levels
from .ring_blocks import GATHER, WEIGH, passing, within


@untraced
def taken(
    pairs: Pairs, rows: tuple[Term, ...], cols: tuple[Term, ...], engine: str
) -> tuple[Tensor, ...]:
    """The statistics of terms of similarities, as `row_stats` returns them."""
    if ENGINES[engine].backward is None:
        raise ValueError(
            f"engine {engine!r} cannot serve this call: it weighs no blocks, and a group needs that"
        )
    if pairs.y is None:  # a column is a row
        rows, cols = (*rows, *cols), ()
    recipe, numbers, vectors = pack(rows, cols)
    constant = [k for k, term in enumerate((*rows, *cols)) if not term.grad]
    call = ShardedCall(pairs, recipe, numbers, engine, constant)
    result: tuple[Tensor, ...] = _Taken.apply(  # type: ignore[no-untyped-call]
        call, pairs.x, pairs.y, *vectors
    )
    return result


class ShardedCall(NamedTuple):
    """A call, but for the tensors that have a gradient."""

    pairs: Pairs
    recipe: str
    numbers: list[float]
    engine: str
    constant: list[int]  # the terms that have no gradient


class _Taken(torch.autograd.Function):
    """Both rings. Under create_graph the backward pass gathers all rows instead, differentiably."""

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
        ctx.mark_non_differentiable(*[statistics[k] for k in call.constant])
        # What is saved is freed with the graph; what is kept here is not.
        empty = x.new_empty(0)
        kept = replace(pairs, x=empty, y=None if y is None else empty, cache=Cache())
        ctx.call = call._replace(pairs=kept)
        return tuple(statistics)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        saved, call = ctx.saved_tensors, ctx.call
        x, y, *vectors = saved[: ctx.ends[0]]
        statistics, arguments = saved[ctx.ends[0] : ctx.ends[1]], iter(saved[ctx.ends[1] :])
        rest = iter(saved[ctx.ends[2] :])
        gathered = {axis: [next(rest) for _ in range(n)] for axis, n in ctx.gathered.items()}
        cotangents = [
            torch.zeros_like(z) if g is None else g for g, z in zip(given, statistics, strict=True)
        ]
        rows, cols = unpack(call.recipe, call.numbers, vectors)
        _, *needs = ctx.needs_input_grad
        pairs = replace(call.pairs, x=x, y=y, cache=Cache(gathered=gathered))
        with exactly(x.device.type):
            gradients, by_term = _backward(
                pairs, rows, cols, statistics, list(arguments), cotangents,
                (call.engine, needs, ctx.piece),
            )  # fmt: skip
        found = [*gradients, *by_vector([*rows, *cols], by_term)]
        wanted = [g if need else None for g, need in zip(found, needs, strict=True)]
        return (None, *wanted)


class _Owned(NamedTuple):
    """A term with what its owners know."""

    term: Term
    statistic: Tensor
    cotangent: Tensor
    argument: Tensor | None  # who attained an extreme

    def tensors(self) -> list[Tensor]:
        """One row for each owner; what travels with them, and is taken apart in this order."""
        known = [self.statistic, self.cotangent]
        return [
            *self.term.tensors("owner", "window"),
            *known,
            *([] if self.argument is None else [self.argument]),
        ]


def _forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], engine: str, piece: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Statistics and arguments of all terms: a ring for each axis and level of earlier terms."""
    terms = Levels(rows, cols)
    statistics: list[Any] = [None] * len(terms.every)
    arguments: dict[int, Tensor] = {}
    for some in sweeps(rows, cols):
        for axis in (0, 1):
            mine = [k for k in some if (k >= len(rows)) == (axis == 1)]
            placed = [terms.resolved(k, statistics) for k in mine]
            now = [term for term, _ in placed]
            values, found = _gather(pairs, axis, now, engine, piece)
            terms.take(mine, placed, values, found, statistics, arguments)
    return statistics, [arguments[k] for k in sorted(arguments)]


def _gather(
    pairs: Pairs, axis: int, terms: Sequence[Term], engine: str, piece: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Statistics and arguments of terms whose owners are the local rows (axis 0) or columns (1)."""
    if not terms:
        return [], []
    assert pairs.shards is not None, "these pairs have a group"
    if pairs.shards.paired and all(term.side == POS for term in terms):
        alone = replace(pairs, shards=None)
        of_axis = (terms, ()) if axis == 0 else ((), terms)
        values, arguments, _ = ENGINES[engine].forward(alone, *of_axis)
        first = pairs.shards.first(1 - axis)
        return values, [torch.where(at < 0, -1, at + first) for at in arguments]
    wide = widest_float(pairs.x.device)
    blank = pairs.x.new_empty(pairs.shape[axis], dtype=wide)
    states = [term.monoid.identity(blank) for term in terms]
    travelling = [z for term in terms for z in term.tensors("partner")]
    with closing(passing(pairs, axis, travelling, GATHER, piece)) as blocks:
        for first, block, came in blocks:
            met = iter(came)
            placed = [term.between(iter(term.tensors("owner", "window")), met) for term in terms]
            values, arguments, _ = ENGINES[engine].forward(
                block, *((placed, []) if axis == 0 else ([], placed))
            )
            found = iter(arguments)
            for k, (term, value) in enumerate(zip(terms, values, strict=True)):
                argument = None
                if term.keeps_argument:
                    argument = next(found)
                    argument = torch.where(argument < 0, -1, argument + first)
                state = term.monoid.again(value.to(wide), argument)
                states[k] = term.monoid.merge(states[k], state)
    merged = zip(terms, states, strict=True)
    arguments = [t.monoid.argument(state) for t, state in merged if t.keeps_argument]  # type: ignore[attr-defined]
    return [
        term.monoid.result(state).to(pairs.dtype) for term, state in zip(terms, states, strict=True)
    ], arguments


@refusing
def _backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    cotangents: list[Tensor],
    how: tuple[str, Sequence[bool], int],
) -> tuple[list[Tensor | None], dict[int, list[Tensor]]]:
    """Gradients by x and y, and by the tensors of each term. how: the engine, which gradients are
    needed, the piece of the call."""
    terms = Levels(rows, cols)
    index = iter(arguments)
    argument = {k: next(index) for k, term in enumerate(terms.every) if term.keeps_argument}
    gradients: list[Tensor | None] = [None, None]
    by_term: dict[int, list[Tensor]] = {}
    for some in passes(rows, cols):
        swept = [terms.swept(k, statistics, cotangents) for k in some]
        owned = [
            _Owned(term, z, g, argument.get(k)) for k, (term, z, g) in zip(some, swept, strict=True)
        ]
        first_column = sum(k < len(rows) for k in some)
        found, slopes = _weigh(pairs, owned, first_column, *how)
        for axis, one in enumerate(found):
            before = gradients[axis]
            gradients[axis] = one if before is None or one is None else before + one
        for place, k in enumerate(some):
            by_term[k] = terms.pass_on(k, slopes.get(place, ()), cotangents)
    return gradients, by_term


def _weigh(
    pairs: Pairs,
    owned: Sequence[_Owned],
    rows: int,
    engine: str,
    needs: Sequence[bool],
    piece: int,
) -> tuple[list[Tensor | None], dict[int, list[Tensor]]]:
    """Gradients by x and y, and by the vectors of each term. rows: how many terms are of rows."""
    active = [k for k, known in enumerate(owned) if known.term.grad]
    of_axis = [[k for k in active if k < rows], [k for k in active if k >= rows]]
    by_term = {
        k: [torch.zeros_like(z) for _, z, has_grad in owned[k].term.operands() if has_grad]
        for k in active
    }
    gradients: list[Tensor | None] = [None, None]
    any_vector = any(by_term.values())  # not who needs a gradient, on which ranks might differ
    for axis in (0, 1):
        if not (needs[axis] or any_vector) or (axis == 1 and pairs.y is None):
            continue
        mine, theirs = of_axis[axis], of_axis[1 - axis]
        if pairs.y is None:  # a row meets the others as owner and as partner of the same terms
            theirs = mine
        gradients[axis] = _weigh_local(
            pairs, axis, (mine, theirs), owned, engine, needs[axis], by_term, piece
        )
    return gradients, by_term


def _weigh_local(
    pairs: Pairs,
    axis: int,
    terms: tuple[list[int], list[int]],
    owned: Sequence[_Owned],
    engine: str,
    need: bool,
    by_term: dict[int, list[Tensor]],
    piece: int,
) -> Tensor | None:
    """The gradient by the local rows (axis 0) or columns (1), in their dtype; into `by_term` that
    of every vector which has one value for each of them.

    terms: those that the local ones own, and those that the others own.
    """
    mine, theirs = terms
    local = pairs.x if axis == 0 else pairs.other
    assert pairs.shards is not None, "these pairs have a group"
    last = pairs.shards.first(axis) + len(local)
    total: Tensor | None = None
    travelling = [z for k in mine for z in owned[k].term.tensors("partner")]
    travelling += [z for k in theirs for z in owned[k].tensors()]
    with closing(passing(pairs, axis, travelling, WEIGH, piece)) as blocks:
        for first, block, came in blocks:
            rest = iter(came)
            here = [
                _Owned(
                    known.term.between(iter(known.term.tensors("owner", "window")), rest),
                    known.statistic,
                    known.cotangent,
                    within(known.argument, first, first + block.shape[1 - axis]),
                )
                for known in (owned[k] for k in mine)
            ]
            there = []
            for known in (owned[k] for k in theirs):
                term = known.term.between(rest, iter(known.term.tensors("partner")))
                statistic, cotangent = next(rest), next(rest)
                argument = next(rest) if known.argument is not None else None
                argument = within(argument, last - len(local), last)
                there.append(_Owned(term, statistic, cotangent, argument))
            both = (here, there) if axis == 0 else (there, here)
            every = [*both[0], *both[1]]
            *by_set, vectors = of_terms(
                block,
                [known.term for known in both[0]],
                [known.term for known in both[1]],
                engine,
                [known.statistic for known in every],
                [known.argument for known in every if known.argument is not None],
                None,
                [known.cotangent for known in every],
                Wanted(need and axis == 0, need and axis == 1),
            )
            of_others = [block.other if axis == 0 else block.x, *came]
            found = by_set[axis]
            if found is not None:  # in grad mode there is one block
                total = _joined(found, of_others) if total is None else total.add_(found)
            of_mine, of_theirs = [(k, True) for k in mine], [(k, False) for k in theirs]
            order = [*of_mine, *of_theirs] if axis == 0 else [*of_theirs, *of_mine]
            for place, (k, is_mine) in enumerate(order):
                roles = [role for role, _, has_grad in owned[k].term.operands() if has_grad]
                for v, (gradient, role) in enumerate(zip(vectors[place], roles, strict=True)):
                    if (role == "owner") == is_mine:
                        by_term[k][v] = by_term[k][v] + _joined(gradient, of_others)
            del by_set, found  # or it would still be there when that of the next block is made
    return None if total is None else total.to(local.dtype)


def _joined(gradient: Tensor, others: Sequence[Tensor]) -> Tensor:
    """`gradient`, in grad mode as a function of `others`, whatever it was made of.

    Without a pair nothing was made of what was gathered, and this rank would not come to the sum
    over the ranks that its gradient is.
    """
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = _Joined.apply(gradient, *others)  # type: ignore[no-untyped-call]
    return result


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *others: Tensor) -> Tensor:
        ctx.shapes = [(z.shape, z.dtype) for z in others]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        zeros = [g.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        return g, *[z if need else None for z, need in zip(zeros, needs, strict=True)]
