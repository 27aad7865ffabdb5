"""Recomputed functions: derivatives of any order, in either direction, from saved inputs alone.

`torch.utils.checkpoint` does the same for tensors, but leaves dozens of graph nodes per call. These
fragment the heap between tiles of some MiB: the peak of a gradient penalty grows with N² although
no tensor of that size exists.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .node import Node, save

Tile = Callable[..., Sequence[Tensor]]


def recomputed(function: Tile, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Return function(*inputs), a sequence of tensors; its derivatives run `function` again.

    `function` gets plain tensors within any transform, and may differentiate by autograd: in grad
    mode its result must be differentiable.
    """
    result: tuple[Tensor, ...] = _Recomputed.of(function, *inputs)
    return result


class _Recomputed(Node):
    @staticmethod
    def run(function: Tile, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(function(*inputs))

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], _outputs: Any) -> None:
        ctx.function = inputs[0]
        save(ctx, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        return None, *by_inputs(ctx.function, wanted, ctx.saved_tensors, cotangents)

    @staticmethod
    def tangent(
        ctx: Any, saved: list[Any], _: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return along(ctx.function, saved, tangents)


def by_inputs(
    function: Tile,
    wanted: Sequence[bool],
    inputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
) -> list[Tensor | None]:
    """Compute gradients of Σ cotangent·function(*inputs) by the wanted inputs."""
    pullback = partial(_pullback, function, tuple(wanted))
    found = iter(recomputed(pullback, *inputs, *cotangents))
    return [next(found) if want else None for want in wanted]


def along(
    function: Tile, inputs: Sequence[Tensor | None], tangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Compute derivatives of function(*inputs) along the tangents of those that have one; None for
    whole numbers."""
    moved = tuple([t is not None for t in tangents])
    found = recomputed(
        partial(_pushforward, function, moved), *inputs, *[t for t in tangents if t is not None]
    )
    return tuple([t if t.is_floating_point() else None for t in found])


def _leaves(inputs: Sequence[Tensor | None], wanted: Sequence[bool], create: bool) -> list[Any]:
    """Return the inputs as leaves, with grad where it is wanted."""
    # Aliases in grad mode, so that no input is reached through another.
    leaves = [z if z is None else z.view_as(z) if create else z.detach() for z in inputs]
    for leaf, want in zip(leaves, wanted, strict=True):
        if leaf is not None and want and not leaf.requires_grad:
            leaf.requires_grad_()
    return leaves


def _pullback(function: Tile, wanted: Sequence[bool], *given: Tensor) -> list[Tensor]:
    """Compute gradients of Σ cotangent·function(*inputs). given: inputs, cotangents."""
    create = torch.is_grad_enabled()
    inputs, cotangents = given[: len(wanted)], given[len(wanted) :]
    with torch.enable_grad():
        leaves = _leaves(inputs, wanted, create)
        outputs = function(*leaves)
        sought = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        return _gradients(live, sought, create)


def _pushforward(function: Tile, moved: Sequence[bool], *given: Tensor) -> list[Tensor]:
    """Compute derivatives of function(*inputs). given: inputs, tangents of the moved ones.

    Gradients are linear in cotangents, and these derivatives are their transpose.
    """
    create = torch.is_grad_enabled()
    inputs, tangents = given[: len(moved)], given[len(moved) :]
    with torch.enable_grad():
        leaves = _leaves(inputs, moved, create)
        outputs = function(*leaves)
        cotangents = [torch.zeros_like(o, requires_grad=o.requires_grad) for o in outputs]
        live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        sought = [leaf for leaf, move in zip(leaves, moved, strict=True) if move]
        by_leaf = _gradients(live, sought, True)
        found = iter(transposed(by_leaf, tangents, [c for _, c in live], create))
        return [next(found) if c.requires_grad else c for c in cotangents]


def transposed(
    gradients: Sequence[Tensor],
    tangents: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create: bool,
) -> list[Tensor]:
    """Return derivatives along `tangents` of results whose gradients are linear in cotangents."""
    live = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g.requires_grad]
    return _gradients(live, cotangents, create)


def _gradients(
    live: Sequence[tuple[Tensor, Tensor]], sought: Sequence[Tensor], create: bool
) -> list[Tensor]:
    found: Sequence[Tensor | None] = [None] * len(sought)
    if live and sought:
        found = torch.autograd.grad(
            [o for o, _ in live],
            sought,
            [c for _, c in live],
            create_graph=create,
            allow_unused=True,
        )
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, sought, strict=True)]
