"""Differentiable any number of times, and nothing kept but the inputs.

`torch.utils.checkpoint` does the same for tensors, but leaves dozens of graph nodes per call.
Between tiles of some MiB these break up the heap: the peak of a gradient penalty then grew with N²
although nothing of that size was alive.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Tile = Callable[..., Sequence[Tensor]]


def recomputed(function: Tile, *inputs: Tensor) -> tuple[Tensor, ...]:
    """function(*inputs), a sequence of tensors; its backward pass runs it again."""
    result: tuple[Tensor, ...] = _Recomputed.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Tile, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return tuple(function(*inputs))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        pullback = partial(_pullback, ctx.function, wanted)
        run = partial(recomputed, pullback) if torch.is_grad_enabled() else pullback
        found = iter(run(*inputs, *cotangents))
        return (None, *[next(found) if want else None for want in wanted])


def _pullback(function: Tile, wanted: Sequence[bool], *given: Tensor) -> list[Tensor]:
    """Gradients of Σ cotangent·function(*inputs) by what is wanted; given: inputs, cotangents."""
    create = torch.is_grad_enabled()
    inputs, cotangents = given[: len(wanted)], given[len(wanted) :]
    with torch.enable_grad():
        # In grad mode aliases, so that no input is reached through another.
        leaves = [z.view_as(z) if create else z.detach() for z in inputs]
        for leaf, want in zip(leaves, wanted, strict=True):
            if want and not leaf.requires_grad:
                leaf.requires_grad_()
        outputs = function(*leaves)
        sought = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in live],
            sought,
            [c for _, c in live],
            create_graph=create,
            allow_unused=True,
        )
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, sought, strict=True)]
