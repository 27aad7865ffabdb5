"""Similarities of embeddings: norms, scales, and a product that autocast leaves alone."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.node import Node, save
from pairops.ops.bindings.devices import widest_float
from pairops.ops.distributed.allocation import refusing


def no_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autocast; it costs nothing where autocast is off already."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


# By dtype: the bound below which squares can be summed, and the power of two that shrinks others.
_SUMMED = {torch.float32: (2.0**50, 2.0**-76), torch.float64: (2.0**498, 2.0**-524)}


def shrinking(rows: Tensor) -> Tensor:
    """Return (N,) 1, or for a row whose squares may overflow a power of two that prevents it."""
    bound, power = _SUMMED[rows.dtype]
    huge = (rows.detach().abs() > bound).any(1)
    return torch.where(huge, rows.new_full((), power), 1.0)


def inverse_norm(x: Tensor) -> Tensor:
    """Return (N,) 1/‖x_i‖ in the widest dtype; 0, with zero gradient, for a norm below 1e-12."""
    # Unlike vector_norm it has derivatives of any order at 0 too.
    rows, factor = _summable(x)
    square = (rows * rows).sum(1)
    vanishes = square < 1e-24
    inverse = torch.where(vanishes, 0.0, 1 / torch.where(vanishes, 1.0, square).sqrt())
    return inverse if factor is None else inverse * factor


def constant_inverse_norm(x: Tensor) -> Tensor:
    """Return `inverse_norm` without derivatives, a few rows at a time: vector_norm copies rows."""
    pieces = []
    for some in x.split(1024):
        rows, factor = _summable(some)
        norm = torch.linalg.vector_norm(rows, dim=1)
        inverse = torch.where(norm < 1e-12, 0.0, 1 / norm)
        pieces.append(inverse if factor is None else inverse * factor)
    return torch.cat(pieces)


def _summable(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return rows in the widest dtype, times `shrinking`, and that factor, or None if it is 1."""
    rows = x.to(widest_float(x.device))
    if torch.finfo(x.dtype).max <= _SUMMED[rows.dtype][0]:
        return rows, None
    factor = shrinking(rows)
    return rows * factor.unsqueeze(1), factor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in the dtype of statistics, so that gradients are summed before one rounding."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def apply_scale(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return rows (N, D) whose dot products are the similarities, in the dtype of statistics.

    They are rounded once: the rounding of a scale would be an error common to a whole row of
    similarities, which a loss multiplies by its sharpness, and that of a gradient by the scale one
    along the row, beside which a gradient may be small.
    """
    return x.to(dtype) if scale is None else (x * scale.unsqueeze(1)).to(dtype)


def normalize_backward(g: Tensor, x: Tensor, scale: Tensor | None, keep: Tensor) -> Tensor:
    """Return dx = r (g − x̂ <x̂, g>) from the gradient g (N, D) by x̂ = r x; 0 for an ignored row.

    A NaN or Inf in a row always reaches its gradient: a dot product's is finite where slopes are
    constant.
    """
    # An ignored row may hold anything, and 0·NaN is NaN. Names are used again, to free memory.
    rows = torch.where(keep.unsqueeze(1), x, 0).to(g.dtype)
    if scale is None:
        dx = g + 0.0 * rows
    else:
        r = scale.to(g.dtype).unsqueeze(1)
        rows = r * rows
        dx = g - rows * (rows * g).sum(1, keepdim=True)
        # Where rows nearly coincide, g is almost along them, and so is its rounding.
        dx = dx - rows * (rows * dx).sum(1, keepdim=True)
        dx = r * dx
    return torch.where(keep.unsqueeze(1), dx, 0.0)


class _Product(Node):
    """x @ y.T in the precision of its operands, in every derivative too, also where a backward pass
    is run or traced under autocast."""

    around_backward = staticmethod(refusing)

    @staticmethod
    def run(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return x @ y.T

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        by_x = product(g, y.T) if ctx.needs_input_grad[0] else None
        return by_x, product(g.T, x.T) if ctx.needs_input_grad[1] else None

    @staticmethod
    def tangent(
        _ctx: Any, saved: list[Any], along_x: Tensor | None, along_y: Tensor | None
    ) -> Tensor:
        x, y = saved
        moved = [None if along_x is None else product(along_x, y)]
        moved.append(None if along_y is None else product(x, along_y))
        return sum(z for z in moved if z is not None)  # type: ignore[return-value]


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return x @ y.T, whatever autocast says."""
    # torch.compile refuses the same tensor twice among the inputs of a node.
    result: Tensor = _Product.of(x, y.view_as(y))
    return result
