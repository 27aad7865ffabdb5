"""Nodes of torch's graph around the ops: statistics, their gradient, and derivatives of both.

`RowStats` runs the op `row_stats`, and its backward pass is `_RowStatsBackward`, which runs the op
`row_stats_backward`, an engine's sweeps. Only if the gradient is itself differentiated is it
recomputed as differentiable torch, a function of the embeddings and of the *statistics*, whose
derivatives lead through `RowStats` again: hence differentiable any number of times.
(A `once_differentiable` backward would be silently wrong for gradient penalties.)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.autograd.node import Node, save
from pairops.ops.autograd.recompute import along, by_inputs, recomputed, transposed
from pairops.ops.distributed.allocation import refusing
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term

from . import bodies


class RowStatsCall(NamedTuple):
    """A call without its tensors, and the number of tensors of each kind.

    torch follows a tensor only as a separate argument, so all tensors of a call are in one row: x,
    y, vectors, scale_x, scale_y, traced, picked, prepared, relation, which are `given`; then the
    results of the op `row_stats`, statistics, arguments, tile masks; then cotangents. Nothing but
    this class knows that order.
    """

    measure: str  # the key of the distance of the pairs
    recipe: str
    numbers: list[float]
    engine: str
    constant: tuple[int, ...]  # the terms that have no gradient
    terms: int
    vectors: int
    prepared: int
    given: int

    @staticmethod
    def of(
        pairs: Pairs,
        recipe: str,
        numbers: list[float],
        traced: Tensor | None,
        vectors: Sequence[Tensor],
        prepared: Sequence[Tensor],
        engine: str,
        terms: Sequence[Term],
    ) -> tuple["RowStatsCall", tuple[Tensor | None, ...]]:
        """Return the call, and the row of given tensors."""
        given = (
            pairs.x, pairs.y, *vectors, pairs.scales.x, pairs.scales.y, traced,
            pairs.relation.picked, *prepared, *pairs.relation.tensors(),
        )  # fmt: skip
        constant = tuple([k for k, term in enumerate(terms) if not term.grad])
        counts = len(terms), len(vectors), len(prepared), len(given)
        measure = "" if pairs.measure is None else pairs.measure.key
        return RowStatsCall(measure, recipe, numbers, engine, constant, *counts), given

    def forward(self, row: Sequence[Any]) -> tuple[Tensor, ...]:
        """Run the op on a row of given tensors; return its results in a row."""
        statistics, arguments, tile_masks = torch.ops.pairops.row_stats(*self._inputs(row))
        return (*statistics, *arguments, tile_masks)

    def backward(self, row: Sequence[Any], needs: Sequence[bool], run: Any) -> tuple[Tensor, ...]:
        """Compute gradients by x, y and vectors, empty where not needed, from a row of everything.

        needs: one flag per given tensor.  run: the op, or the same as differentiable torch.
        """
        results = row[self.given :]
        statistics, cotangents = results[: self.terms], results[-self.terms :]
        *arguments, tile_masks = results[self.terms : -self.terms]
        need_x, need_y, *rest = needs
        dx, dy, dvectors = run(
            *self._inputs(row), statistics, arguments, tile_masks, cotangents,
            need_x, need_y, rest[: self.vectors],
        )  # fmt: skip
        return (dx, dy, *dvectors)

    def _inputs(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return the arguments that both ops share, in the order of their schemas."""
        x, y, *rest = row[: self.given]
        vectors = rest[: self.vectors]
        scale_x, scale_y, traced, picked, *rest = rest[self.vectors :]
        prepared, relation = rest[: self.prepared], rest[self.prepared :]
        return (
            x, y, scale_x, scale_y, relation, picked, self.measure, prepared, vectors,
            self.numbers, self.recipe, self.engine, traced,
        )  # fmt: skip

    def statistics(self, row: Sequence[Any]) -> Sequence[Tensor]:
        """Return the statistics in a row of given and returned tensors."""
        return row[self.given : self.given + self.terms]

    def by_given(self, gradients: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
        """Return the gradient by each given tensor, None where it is not needed."""
        every = [*gradients, *[None] * (self.given - len(gradients))]
        return [g if need else None for g, need in zip(every, needs, strict=True)]


class RowStats(Node):
    """A node: a call and its given tensors → statistics, and the rest that a gradient needs."""

    @staticmethod
    def run(call: RowStatsCall, *given: Tensor | None) -> tuple[Tensor, ...]:
        return call.forward(given)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        ctx.call, *given = inputs
        ctx.set_materialize_grads(False)
        constant = [outputs[k] for k in ctx.call.constant]
        ctx.mark_non_differentiable(*constant, *outputs[ctx.call.terms :])
        save(ctx, *given, *outputs)

    @staticmethod
    def backward(ctx: Any, *by_outputs: Tensor | None) -> tuple[Any, ...]:
        call, saved = ctx.call, ctx.saved_tensors
        _, *needs = ctx.needs_input_grad
        of_statistics = zip(by_outputs[: call.terms], call.statistics(saved), strict=True)
        # The cotangent of a constant is never read; zeros would be a launch.
        cotangents = [
            g if g is not None else z if k in call.constant else torch.zeros_like(z)
            for k, (g, z) in enumerate(of_statistics)
        ]
        run = _RowStatsBackward.run if torch.compiler.is_compiling() else _RowStatsBackward.of
        gradients = call.by_given(run(call, needs, *saved, *cotangents), needs)
        return None, *gradients

    @staticmethod
    def tangent(
        ctx: Any, saved: list[Any], _: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        call = ctx.call
        others = len(saved) - call.given - call.terms
        if len(call.constant) == call.terms:
            return tuple([None] * (call.terms + others))
        moved = tuple([t is not None for t in tangents])
        found = recomputed(
            partial(_by_tangents, call, moved), *saved, *[t for t in tangents if t is not None]
        )
        constant = [None if k in call.constant else t for k, t in enumerate(found)]
        return (*constant, *[None] * others)


class _RowStatsBackward(Node):
    """A node: a call, flags of needed gradients, given and returned tensors, cotangents → gradients
    by x, by y and by every vector."""

    around_backward = staticmethod(refusing)

    @staticmethod
    def run(
        call: RowStatsCall, needs: Sequence[bool], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        return call.backward(tensors, needs, torch.ops.pairops.row_stats_backward)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], _outputs: Any) -> None:
        call, needs, *tensors = inputs
        ctx.gradient = partial(_gradient, call, needs)
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        _, _, *wanted = ctx.needs_input_grad
        return None, None, *by_inputs(ctx.gradient, wanted, ctx.saved_tensors, cotangents)

    @staticmethod
    def tangent(
        ctx: Any, saved: list[Any], _call: None, _needs: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return along(ctx.gradient, saved, tangents)


def differentiable_gradient(
    call: RowStatsCall, needs: Sequence[bool], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """Compute the gradients of a call from given and returned tensors and cotangents."""
    found: tuple[Tensor, ...] = _RowStatsBackward.of(call, needs, *tensors)
    return found


def _gradient(
    call: RowStatsCall, needs: Sequence[bool], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """Compute `_RowStatsBackward.run` as differentiable torch."""
    return call.backward(tensors, needs, bodies.backward)


def _by_tangents(call: RowStatsCall, moved: tuple[bool, ...], *tensors: Tensor) -> list[Tensor]:
    """Compute derivatives of the statistics along tangents of the moved tensors.

    tensors: those that `RowStats` got and returned, then the tangents.

    `_gradient` is linear in the cotangents, with these derivatives as its transpose.
    """
    create = torch.is_grad_enabled()
    count = len(tensors) - sum(moved)
    saved, tangents = tensors[:count], tensors[count:]
    with torch.enable_grad():
        cotangents = [torch.zeros_like(z, requires_grad=True) for z in call.statistics(saved)]
        gradients = call.by_given(_gradient(call, moved, *saved, *cotangents), moved)
        along_moved = [g for g in gradients if g is not None]
        return transposed(along_moved, tangents, cotangents, create)
