"""Rows picked and summed by index in an order that is the same in every run; permutations."""

from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.node import Node, save
from pairops.ops.distributed.allocation import refusing


def add_rows(like: Tensor, at: Tensor, rows: Tensor) -> Tensor:
    """Sum rows by destination into as many rows as `like` has.

    index_add is deterministic on the CPU and atomic on CUDA; accumulating index_put is the reverse.
    """
    zeros = torch.zeros_like(like)
    if like.device.type == "cpu":
        return zeros.index_add(0, at, rows)
    return zeros.index_put((at,), rows, accumulate=True)


def pick_rows(x: Tensor, at: Tensor) -> Tensor:
    """Return x[at], whose gradient is summed by `add_rows`."""
    result: Tensor = _Pick.of(x, at)
    return result


def any_above(lengths: tuple[int, int], most: int) -> bool:
    """Return whether one of the two is above `most`.

    torch.compile may know a number of positive pairs only when the graph runs; the graph then
    raises if the number is above."""
    if torch.compiler.is_compiling():
        for length in lengths:
            torch._check(length <= most)
        return False
    return max(lengths) > most


def arange(x: Tensor) -> Tensor:
    """Return (N,) the indices of the rows."""
    return torch.arange(x.shape[0], device=x.device)


def inverse_permutation(order: Tensor) -> Tensor:
    """Return the position of each index in `order`."""
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def positions_of(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """List the positions of intervals [begin, end): (K,) which interval has each, and the position.

    The host waits for K on a GPU.
    """
    count = end - begin
    which = torch.repeat_interleave(count)
    first = begin - (count.cumsum(0) - count)
    return which, first.index_select(0, which) + arange(which)


def first_named(names: Tensor, others: Tensor) -> Tensor:
    """Return (N,) the index of the first of `others` (M,) with the same name, or −1."""
    if not len(others):
        return torch.full_like(names, -1)
    ordered, index = torch.sort(others, stable=True)
    position = torch.searchsorted(ordered, names).clamp(max=len(others) - 1)
    return torch.where(ordered[position] == names, index[position], -1)


class _Pick(Node):
    around_backward = staticmethod(refusing)

    @staticmethod
    def run(x: Tensor, at: Tensor) -> Tensor:
        return x.index_select(0, at)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        save(ctx, inputs[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        return add_rows(g.new_empty(ctx.shape), at, g), None

    @staticmethod
    def tangent(_ctx: Any, saved: list[Any], along_x: Tensor, _at: None) -> Tensor:
        return pick_rows(along_x, saved[0])
