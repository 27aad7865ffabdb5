"""The ops as nodes of torch's graph: statistics, their gradient, and the derivatives of both.

`RowStats` runs the op `gather`, and its backward pass is `_Weigh`, which runs the op `weigh`: an
engine's sweeps, whatever is to be differentiated later. Only where that comes to pass is the
gradient recomputed as differentiable torch, a function of the embeddings and of the *statistics*,
whose own derivatives lead through `RowStats` again: hence differentiable any number of times. (A
`once_differentiable` backward would be silently wrong for gradient penalties.)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.node import Node, save
from pairops.ops.autograd.recompute import along, by_inputs, recomputed, transposed
from pairops.ops.distributed.allocation import refusing
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import exactly

from .backward import weigh

FIXED = 12  # tensors before those that are prepared: sets, scales, numbers, Pairs.relation()


def read(
    call: Sequence[Any], *, fake: bool = False
) -> tuple[Pairs, list[Tensor], list[float], str, str]:
    """The arguments that both ops share: pairs, vectors, numbers, recipe, engine.

    fake: there are no values, so numbers that a graph computes are taken for 0.
    """
    x, y, scale_x, scale_y, relation, prepared, vectors, numbers, recipe, engine, traced = call[:11]
    if traced is not None:
        numbers = [0.0] * traced.shape[0] if fake else traced.tolist()
    pairs = Pairs(x, y, scale_x, scale_y, *relation)
    pairs.prepared[engine] = prepared
    return pairs, vectors, numbers, recipe, engine


def weighed(*call: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The op `weigh`; in grad mode differentiable."""
    statistics, arguments, bits, cotangents, *needs = call[11:]
    with exactly(call[0].device.type):
        return weigh(*read(call), statistics, arguments, bits, cotangents, *needs)


class RowStats(Node):
    """(numbers, recipe, engine), terms without gradient, how many terms there are and how many
    tensors are prepared; x, y, scales, traced numbers, relation, prepared, vectors → statistics,
    and what `weigh` wants besides: arguments of extremes, tile bits."""

    @staticmethod
    def run(
        call: tuple[list[float], str, str],
        _constant: tuple[int, ...],
        _terms: int,
        prepared: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        statistics, arguments, bits = torch.ops.pairops.gather(*_shared(call, tensors, prepared))
        return (*statistics, *arguments, bits)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.constant, ctx.terms, ctx.prepared, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[outputs[k] for k in ctx.constant], *outputs[ctx.terms :])
        ctx.given = len(tensors)
        save(ctx, *tensors, *outputs)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        statistics = saved[ctx.given : ctx.given + ctx.terms]
        needs = ctx.needs_input_grad[4:]
        # What has no gradient has a cotangent that nobody reads; zeros would be a launch.
        cotangents = [
            g if g is not None else z if k in ctx.constant else torch.zeros_like(z)
            for k, (g, z) in enumerate(zip(given[: ctx.terms], statistics, strict=True))
        ]
        run = _Weigh.run if torch.compiler.is_compiling() else _Weigh.of
        told = ctx.call, ctx.given, ctx.terms, ctx.prepared
        of_vectors = needs[FIXED + ctx.prepared :]
        dx, dy, *dvectors = run((*told, needs[0], needs[1], of_vectors), *saved, *cotangents)
        gradients = [dx, dy, *[None] * (FIXED - 2 + ctx.prepared), *dvectors]
        wanted = [g if need else None for g, need in zip(gradients, needs, strict=True)]
        return (None, None, None, None, *wanted)

    @staticmethod
    def tangent(ctx: Any, saved: list[Any], *given: Any) -> tuple[Tensor | None, ...]:
        tangents, others = given[4:], len(saved) - ctx.given - ctx.terms
        if len(ctx.constant) == ctx.terms:
            return tuple([None] * (ctx.terms + others))
        moved = tuple([t is not None for t in tangents])
        needs = moved[0], moved[1], moved[FIXED + ctx.prepared :]
        gradient = partial(_gradient, (ctx.call, ctx.given, ctx.terms, ctx.prepared, *needs))
        found = recomputed(
            partial(_by_tangents, gradient, moved, ctx.terms),
            *saved,
            *[t for t in tangents if t is not None],
        )
        constant = [None if k in ctx.constant else t for k, t in enumerate(found)]
        return (*constant, *[None] * others)


class _Weigh(Node):
    """What `RowStats` was called with; its tensors and outputs, the gradients by its statistics →
    the gradients by x, by y and by every vector."""

    around_backward = staticmethod(refusing)

    @staticmethod
    def run(told: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        dx, dy, dvectors = torch.ops.pairops.weigh(*_of_weigh(told, tensors))
        return (dx, dy, *dvectors)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], _outputs: Any) -> None:
        ctx.told, *tensors = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[1:]
        gradient = partial(_gradient, ctx.told)
        return None, *by_inputs(gradient, wanted, ctx.saved_tensors, cotangents)

    @staticmethod
    def tangent(
        ctx: Any, saved: list[Any], _: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return along(partial(_gradient, ctx.told), saved, tangents)


def _gradient(told: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """`_Weigh.run` as differentiable torch."""
    dx, dy, dvectors = weighed(*_of_weigh(told, tensors))
    return (dx, dy, *dvectors)


def _by_tangents(
    gradient: Any, moved: tuple[bool, ...], terms: int, *given: Tensor
) -> list[Tensor]:
    """The derivatives of the statistics along tangents of what is moved; given: what `RowStats`
    got and returned, then the tangents.

    `gradient` is linear in the cotangents, with these derivatives as its transpose.
    """
    create = torch.is_grad_enabled()
    count = len(given) - sum(moved)
    saved, tangents = given[:count], given[count:]
    with torch.enable_grad():
        cotangents = [
            torch.zeros_like(z, requires_grad=True) for z in saved[len(moved) : len(moved) + terms]
        ]
        dx, dy, *dvectors = gradient(*saved, *cotangents)
        first = len(moved) - len(dvectors)
        gradients = {0: dx, 1: dy, **dict(enumerate(dvectors, first))}
        along_moved = [gradients[k] for k, move in enumerate(moved) if move]
        return transposed(along_moved, tangents, cotangents, create)


def _shared(
    call: tuple[list[float], str, str], tensors: Sequence[Any], prepared: int
) -> tuple[Any, ...]:
    """The arguments of either op, in their order."""
    end = FIXED + prepared
    lists = tensors[5:FIXED], tensors[FIXED:end], tensors[end:]
    return (*tensors[:4], *lists, *call, tensors[4])


def _of_weigh(told: tuple[Any, ...], tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of the op."""
    call, given, terms, prepared, *needs = told
    bits = len(tensors) - terms - 1
    shared = _shared(call, tensors[:given], prepared)
    statistics, arguments = tensors[given : given + terms], tensors[given + terms : bits]
    return (
        *shared, statistics, arguments, tensors[bits], tensors[bits + 1 :], *needs
    )  # fmt: skip
