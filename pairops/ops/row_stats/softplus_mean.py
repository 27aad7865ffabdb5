"""The mean of losses that are sums of log(1 + exp R).

Where the CUDA engine made the statistics it is one kernel, and one for the gradient: at some
hundred rows a step costs what its launches cost, and in torch these are a dozen each way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings.devices import on_device
from pairops.ops.pairs.pairs import Pairs

_library = torch.library.Library("pairops", "FRAGMENT")
_library.define(
    "soft_mean(Tensor[] statistics, float[] divisors, Tensor? keep) -> (Tensor loss, Tensor count)"
)
_library.define(
    "soft_mean_slopes(Tensor gradient, Tensor count, Tensor[] statistics, float[] divisors, "
    "Tensor? keep) -> Tensor[] cotangents"
)


def softplus_mean_serves(pairs: Pairs, statistics: Sequence[Tensor]) -> bool:
    """Did the CUDA engine make these statistics, and are they few and float32?"""
    return (
        "cuda" in pairs.prepared
        and len(statistics) <= cuda_kernels.KERNELS.MOST_STATISTICS
        and all(statistic.dtype == torch.float32 for statistic in statistics)
    )


def softplus_mean(pairs: Pairs, statistics: Sequence[Tensor], divisors: Sequence[float]) -> Tensor:
    """The mean over anchors that are not ignored of Σ_k log(1 + exp R_k) / d_k."""
    keep = None if pairs.complete else pairs.keep_x
    mean: Tensor = _SoftMean.apply(divisors, keep, *statistics)  # type: ignore[no-untyped-call]
    return mean


class _SoftMean(torch.autograd.Function):
    """The ops as one node. Under create_graph its backward pass is differentiable torch."""

    @staticmethod
    def forward(
        ctx: Any, divisors: list[float], keep: Tensor | None, *statistics: Tensor
    ) -> Tensor:
        loss, count = torch.ops.pairops.soft_mean(statistics, divisors, keep)
        ctx.save_for_backward(count, keep, *statistics)
        ctx.divisors = divisors
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count, keep, *statistics = ctx.saved_tensors
        run = _slopes if torch.is_grad_enabled() else torch.ops.pairops.soft_mean_slopes
        return None, None, *run(gradient, count, statistics, ctx.divisors, keep)


def _slopes(
    gradient: Tensor,
    count: Tensor,
    statistics: Sequence[Tensor],
    divisors: Sequence[float],
    keep: Tensor | None,
) -> list[Tensor]:
    share = gradient / count
    result = []
    for statistic, divisor in zip(statistics, divisors, strict=True):
        if keep is None:
            result.append(share / divisor * torch.sigmoid(statistic))
        else:  # of a row that is not kept no derivative is NaN, whatever it holds
            slope = torch.sigmoid(torch.where(keep, statistic, -torch.inf))
            result.append(torch.where(keep, share / divisor * slope, 0))
    return result


def _told(
    statistics: Sequence[Tensor], divisors: Sequence[float], keep: Tensor | None
) -> tuple[list[tuple[int, float]], int | None, list[Tensor]]:
    """Addresses, and what must live as long."""
    alive = [statistic.contiguous() for statistic in statistics]
    given = [(z.data_ptr(), divisor) for z, divisor in zip(alive, divisors, strict=True)]
    if keep is None:
        return given, None, alive
    alive.append(keep.contiguous())
    return given, alive[-1].data_ptr(), alive


def _soft_mean_op(
    statistics: Sequence[Tensor], divisors: Sequence[float], keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    first = statistics[0]
    loss, count = _soft_mean_fake(statistics)
    given, kept, _alive = _told(statistics, divisors, keep)
    with on_device(first):
        cuda_kernels.KERNELS.soft_mean(
            given, kept, first.shape[0],
            loss.data_ptr(), count.data_ptr(), cuda_kernels.stream_of(first),
        )  # fmt: skip
    return loss, count


def _soft_mean_slopes_op(
    gradient: Tensor,
    count: Tensor,
    statistics: Sequence[Tensor],
    divisors: Sequence[float],
    keep: Tensor | None,
) -> list[Tensor]:
    first = statistics[0]
    cotangents = _like(statistics)
    given, kept, _alive = _told(statistics, divisors, keep)
    with on_device(first):
        cuda_kernels.KERNELS.soft_mean_slopes(
            gradient.data_ptr(), count.data_ptr(), given,
            kept, first.shape[0],
            [z.data_ptr() for z in cotangents], cuda_kernels.stream_of(first),
        )  # fmt: skip
    return cotangents


def _like(statistics: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(z, memory_format=torch.contiguous_format) for z in statistics]


def _soft_mean_fake(statistics: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    return statistics[0].new_empty(()), statistics[0].new_empty(())


_library.impl("soft_mean", _soft_mean_op, "CompositeExplicitAutograd")
_library.impl("soft_mean_slopes", _soft_mean_slopes_op, "CompositeExplicitAutograd")
torch.library.register_fake("pairops::soft_mean", _soft_mean_fake)
torch.library.register_fake(
    "pairops::soft_mean_slopes",
    lambda _gradient, _count, statistics, *_: _like(statistics),
)
