"""The mean of losses that are sums of log(1 + exp R).

It is one kernel, and one for the gradient, where the CUDA engine made the statistics: at some
hundred rows a step costs as much as its launches, and torch makes a dozen each way.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.node import Node, save
from pairops.ops.autograd.recompute import along, by_inputs
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings.devices import on_device
from pairops.ops.bindings.schemas import library
from pairops.ops.engines import cuda_engine
from pairops.ops.pairs.pairs import Pairs


def softplus_mean_serves(pairs: Pairs, parts: Sequence[tuple[Tensor, float | Tensor]]) -> bool:
    """Return whether the CUDA engine made these statistics, and they are few and float32.

    parts: each statistic with its divisor, which must be a number."""
    return (
        cuda_engine.NAME in pairs.cache.prepared
        and len(parts) <= cuda_kernels.installed().module.MOST_STATISTICS
        and all(z.dtype == torch.float32 and not isinstance(d, Tensor) for z, d in parts)
    )


def softplus_mean(pairs: Pairs, statistics: Sequence[Tensor], divisors: Sequence[float]) -> Tensor:
    """Return the mean of Σ_k log(1 + exp R_k) / d_k over the anchors that are not ignored."""
    valid = None if pairs.complete else pairs.relation.valid_x
    mean: Tensor = _SoftMean.of(divisors, valid, *statistics)[0]
    return mean


class _SoftMean(Node):
    """A node of the first op: the mean, and the number of rows that count."""

    @staticmethod
    def run(
        divisors: Sequence[float], valid: Tensor | None, *statistics: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, count = torch.ops.pairops.soft_mean(statistics, divisors, valid)
        return loss, count

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        ctx.divisors, *tensors = inputs
        ctx.set_materialize_grads(False)  # zeros for the count would be a launch
        ctx.mark_non_differentiable(outputs[1])
        save(ctx, outputs[1], *tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _count: Tensor) -> tuple[Tensor | None, ...]:
        run = _Slopes.run if torch.compiler.is_compiling() else _Slopes.of
        return None, None, *run(ctx.divisors, gradient, *ctx.saved_tensors)

    @staticmethod
    def tangent(
        ctx: Any, saved: list[Any], _divisors: None, _keep: None, *tangents: Tensor | None
    ) -> tuple[Tensor, None]:
        count, valid, *statistics = saved
        by_each = _slopes(ctx.divisors, torch.ones_like(count), count, valid, *statistics)
        moved = zip(by_each, tangents, strict=True)
        return torch.stack([(g * t).sum() for g, t in moved if t is not None]).sum(), None


class _Slopes(Node):
    """A node of the second op: the gradient by each statistic."""

    @staticmethod
    def run(divisors: Sequence[float], *tensors: Any) -> tuple[Tensor, ...]:
        gradient, count, valid, *statistics = tensors
        given = gradient, count, statistics, divisors, valid
        return tuple(torch.ops.pairops.soft_mean_slopes(*given))

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], _outputs: Any) -> None:
        ctx.formula = partial(_slopes, inputs[0])
        save(ctx, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[1:]
        return None, *by_inputs(ctx.formula, wanted, ctx.saved_tensors, cotangents)

    @staticmethod
    def tangent(
        ctx: Any, saved: list[Any], _divisors: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return along(ctx.formula, saved, tangents)


def _slopes(
    divisors: Sequence[float],
    gradient: Tensor,
    count: Tensor,
    valid: Tensor | None,
    *statistics: Tensor,
) -> list[Tensor]:
    """Compute `_Slopes.run` as differentiable torch."""
    share = gradient / count
    result = []
    for statistic, divisor in zip(statistics, divisors, strict=True):
        if valid is None:
            result.append(share / divisor * torch.sigmoid(statistic))
        else:  # an ignored row may hold anything, but no derivative of it is NaN
            slope = torch.sigmoid(torch.where(valid, statistic, -torch.inf))
            result.append(torch.where(valid, share / divisor * slope, 0))
    return result


def _addresses(
    statistics: Sequence[Tensor], divisors: Sequence[float], valid: Tensor | None
) -> tuple[list[tuple[int, float]], int | None, list[Tensor]]:
    """Return addresses, and the tensors that must live as long."""
    tensors = [statistic.contiguous() for statistic in statistics]
    given = [(z.data_ptr(), divisor) for z, divisor in zip(tensors, divisors, strict=True)]
    if valid is None:
        return given, None, tensors
    tensors.append(valid.contiguous())
    return given, tensors[-1].data_ptr(), tensors


def _soft_mean_op(
    statistics: Sequence[Tensor], divisors: Sequence[float], valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    first = statistics[0]
    loss, count = _soft_mean_fake(statistics)
    given, valid_address, _tensors = _addresses(statistics, divisors, valid)
    with on_device(first):
        cuda_kernels.installed().module.soft_mean(
            given, valid_address, first.shape[0],
            loss.data_ptr(), count.data_ptr(), cuda_kernels.stream_of(first),
        )  # fmt: skip
    return loss, count


def _soft_mean_slopes_op(
    gradient: Tensor,
    count: Tensor,
    statistics: Sequence[Tensor],
    divisors: Sequence[float],
    valid: Tensor | None,
) -> list[Tensor]:
    first = statistics[0]
    cotangents = _like(statistics)
    given, valid_address, _tensors = _addresses(statistics, divisors, valid)
    with on_device(first):
        cuda_kernels.installed().module.soft_mean_slopes(
            gradient.data_ptr(), count.data_ptr(), given,
            valid_address, first.shape[0],
            [z.data_ptr() for z in cotangents], cuda_kernels.stream_of(first),
        )  # fmt: skip
    return cotangents


def _like(statistics: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(z, memory_format=torch.contiguous_format) for z in statistics]


def _soft_mean_fake(statistics: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    return statistics[0].new_empty(()), statistics[0].new_empty(())


library.impl("soft_mean", _soft_mean_op, "CompositeExplicitAutograd")
library.impl("soft_mean_slopes", _soft_mean_slopes_op, "CompositeExplicitAutograd")
torch.library.register_fake("pairops::soft_mean", _soft_mean_fake)
torch.library.register_fake(
    "pairops::soft_mean_slopes",
    lambda _gradient, _count, statistics, *_: _like(statistics),
)
