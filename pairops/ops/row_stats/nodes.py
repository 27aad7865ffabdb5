"""The ops as nodes of torch's graph: statistics, their gradient, and the derivatives of both.

`RowStats` runs the op `gather`, and its backward pass is `_Weigh`, which runs the op `weigh`: an
engine's sweeps, whatever is to be differentiated later. Only where that comes to pass is the
gradient recomputed as differentiable torch, a function of the embeddings and of the *statistics*,
whose own derivatives lead through `RowStats` again: hence differentiable any number of times. (A
`once_differentiable` backward would be silently wrong for gradient penalties.)
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.node import Node, save
from pairops.ops.autograd.recompute import along, by_inputs, recomputed, transposed
from pairops.ops.distributed.allocation import refusing

from .call import Needs, RowStatsCall


class RowStats(Node):
    """A call and the tensors that are given → statistics, and what `weigh` wants besides."""

    @staticmethod
    def run(call: RowStatsCall, *given: Tensor | None) -> tuple[Tensor, ...]:
        return call.gather(given)

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
        _, *flags = ctx.needs_input_grad
        # What has no gradient has a cotangent that nobody reads; zeros would be a launch.
        cotangents = [
            g if g is not None else z if k in call.constant else torch.zeros_like(z)
            for k, (g, z) in enumerate(
                zip(by_outputs[: call.terms], call.statistics(saved), strict=True)
            )
        ]
        run = _Weigh.run if torch.compiler.is_compiling() else _Weigh.of
        gradients = call.by_given(run(call, call.needs(flags), *saved, *cotangents))
        wanted = [g if need else None for g, need in zip(gradients, flags, strict=True)]
        return (None, *wanted)

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


class _Weigh(Node):
    """A call, which gradients it needs, what was given and returned, the cotangents of statistics →
    the gradients by x, by y and by every vector."""

    around_backward = staticmethod(refusing)

    @staticmethod
    def run(call: RowStatsCall, needs: Needs, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return call.weigh(tensors, needs, op=True)

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


def _gradient(call: RowStatsCall, needs: Needs, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """`_Weigh.run` as differentiable torch."""
    return call.weigh(tensors, needs, op=False)


def _by_tangents(call: RowStatsCall, moved: tuple[bool, ...], *tensors: Tensor) -> list[Tensor]:
    """The derivatives of the statistics along tangents of what is moved; tensors: what `RowStats`
    got and returned, then the tangents.

    `_gradient` is linear in the cotangents, with these derivatives as its transpose.
    """
    create = torch.is_grad_enabled()
    count = len(tensors) - sum(moved)
    saved, tangents = tensors[:count], tensors[count:]
    with torch.enable_grad():
        cotangents = [torch.zeros_like(z, requires_grad=True) for z in call.statistics(saved)]
        gradients = call.by_given(_gradient(call, call.needs(moved), *saved, *cotangents))
        along_moved = [g for g, move in zip(gradients, moved, strict=True) if move]
        return transposed(along_moved, tangents, cotangents, create)
