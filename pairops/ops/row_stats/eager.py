"""The short way of an ordinary eager call: the engine itself, and one node of torch's graph.

Compilers, transforms and whoever differentiates a gradient take the long way, `nodes.py`: there a
call is packed into the arguments of an op, and unpacked again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.autograd.node import in_old_vmap
from pairops.ops.distributed.allocation import refusing
from pairops.ops.engines.engine import Engine
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Relation, Scales
from pairops.ops.pairs.similarity import exactly
from pairops.ops.terms.recipe import pack
from pairops.ops.terms.term import Term

from . import levels
from .backward import by_vector, wanted
from .nodes import RowStatsCall, differentiable_gradient


class _Told(NamedTuple):
    """A call without the tensors that are saved: they are freed with the graph."""

    engine: Engine
    relation: Relation
    scales: Scales
    cache: Cache
    rows: tuple[Term, ...]
    cols: tuple[Term, ...]
    vectors: int
    arguments: int


def statistics(
    pairs: Pairs, rows: tuple[Term, ...], cols: tuple[Term, ...], engine: Engine
) -> tuple[Tensor, ...]:
    """The statistics of terms of similarities, as `row_stats` returns them."""
    vectors: list[Tensor] = []
    for term in rows + cols:
        for a in (*term.args, term.above, term.below):
            if a is not None and type(a) is not float:
                vectors = [z for one in rows + cols for _, z, _ in one.operands()]
    found: tuple[Tensor, ...] = _Eager.apply(  # type: ignore[no-untyped-call]
        pairs, rows, cols, engine, pairs.x, pairs.y, *vectors
    )
    return found


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pairs: Pairs,
        rows: tuple[Term, ...],
        cols: tuple[Term, ...],
        engine: Engine,
        x: Tensor,
        y: Tensor | None,
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        values, arguments, bits = levels.forward(engine, pairs, rows, cols)
        ctx.set_materialize_grads(False)
        constant = [z for z, term in zip(values, rows + cols, strict=True) if not term.grad]
        if constant:
            ctx.mark_non_differentiable(*constant)
        counts = len(vectors), len(arguments)
        told = engine, pairs.relation, pairs.scales, pairs.cache, rows, cols
        ctx.told = _Told(*told, *counts)
        ctx.save_for_backward(x, y, *vectors, *values, *arguments, bits)
        return tuple(values)

    @staticmethod
    @refusing
    def backward(ctx: Any, *by_outputs: Tensor | None) -> tuple[Any, ...]:
        told: _Told = ctx.told
        _, _, _, _, need_x, need_y, *need_vectors = ctx.needs_input_grad
        x, y, *rest = ctx.saved_tensors
        bits = rest[-1]
        vectors, values = rest[: told.vectors], rest[told.vectors : -1 - told.arguments]
        arguments = rest[len(rest) - 1 - told.arguments : -1]
        terms = told.rows + told.cols
        # What has no gradient has a cotangent that nobody reads.
        cotangents = [
            g if g is not None else torch.zeros_like(z) if term.grad else z
            for g, z, term in zip(by_outputs, values, terms, strict=True)
        ]
        pairs = Pairs(x, y, told.relation, told.scales, told.cache)
        if torch.is_grad_enabled() or in_old_vmap():
            recipe, numbers, _ = pack(told.rows, told.cols)
            prepared = told.engine.prepare(pairs)
            call, given = RowStatsCall.of(
                pairs, recipe, numbers, None, vectors, prepared, told.engine.NAME, terms
            )
            needs = [need_x, need_y, *need_vectors]
            needs += [False] * (len(given) - len(needs))
            gradients: Sequence[Any] = differentiable_gradient(
                call, needs, *given, *values, *arguments, bits, *cotangents
            )
        else:
            gradients = _gradients(
                pairs, told, values, arguments, bits, cotangents, need_x, need_y, need_vectors
            )
        flags = need_x, need_y, *need_vectors
        return (
            None, None, None, None,
            *[g if need else None for g, need in zip(gradients, flags, strict=True)],
        )  # fmt: skip


def _gradients(
    pairs: Pairs,
    told: _Told,
    values: Sequence[Tensor],
    arguments: Sequence[Tensor],
    bits: Tensor,
    cotangents: Sequence[Tensor],
    need_x: bool,
    need_y: bool,
    need_vectors: Sequence[bool],
) -> Sequence[Any]:
    terms = told.rows + told.cols
    with exactly(pairs.x.device.type):
        dx, dy, by_term = levels.backward(
            told.engine.NAME, pairs, told.rows, told.cols, values, arguments, bits, cotangents,
            wanted(terms, need_x, need_y, need_vectors),
        )  # fmt: skip
    # Rounded once, when all is added up.
    rounded = [g if g is None else g.to(pairs.x.dtype) for g in (dx, dy)]
    return [*rounded, *by_vector(terms, by_term, need_vectors)] if need_vectors else rounded
