"""Positives within a width of a number: of columns sorted by number they are an interval too.

j is a positive of i exactly if |v_i − v_j| ≤ width as float64 computes it, which is symmetric. A
bound v_i − width is not: its rounding would put a pair on one side for i and on the other for j.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.autograd.node import by_sample
from pairops.ops.bindings.devices import widest_float
from pairops.ops.bindings.schemas import library
from pairops.ops.distributed.allocation import refusing
from pairops.ops.terms.checks import plain_number, shown
from pairops.ops.terms.tensor_checks import check_one_each, check_real, check_storage

from .indexing import inverse_permutation


def width_of(given: object) -> float:
    """Return a width, a finite number that is not negative."""
    width = plain_number("width", given)
    if width < 0:
        raise ValueError(f"width is {shown(given)}; it must be a finite number, 0 or above")
    return width


def numbers(name: str, values: Tensor, owner: str, x: Tensor) -> Tensor:
    """Return real numbers (N,) in the widest dtype on the device of x, one for each of its rows."""
    check_real(name, values)
    check_storage(name, values)
    check_one_each(name, values, owner, x)
    return values.detach().to(x.device, widest_float(x.device)).contiguous()


class Within(NamedTuple):
    """The results of the op `sort_by_number`."""

    rank_x: Tensor  # (N,) int64: the position of each row among the sorted ones
    rank_y: Tensor  # (M,) int64
    pos_begin: Tensor  # (N,) int64, as in `Relation`
    pos_end: Tensor  # (N,) int64


def sort_by_number(values: Tensor, ref_values: Tensor | None, width: float) -> Within:
    """Sort rows by number, NaN last. Infinite numbers and NaN are within no width of any.

    values: (N,).  ref_values: (M,), or None for the same set.
    """
    return Within(*torch.ops.pairops.sort_by_number(values, ref_values, width))


def bounds(rows: Tensor, columns: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return begin and end (N,) of the interval of sorted columns within the width of each row.

    Both ascend where rows do.
    """
    begin = _first(rows, columns, lambda v, c: ~(v - c > width))
    begin = torch.where(rows.isnan(), columns.shape[0], begin)
    end = _first(rows, columns, lambda v, c: (c - v > width) | c.isnan())
    return begin, torch.where(rows.isfinite(), end, begin)


def _first(rows: Tensor, columns: Tensor, reached: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Find (N,) the first column from which on `reached` is true, by bisection."""
    low = torch.zeros_like(rows, dtype=torch.int64)
    high = torch.full_like(low, columns.shape[0])
    for _ in range(int(columns.shape[0]).bit_length()):
        middle = (low + high) // 2
        here = reached(rows, columns[middle.clamp(max=columns.shape[0] - 1)])
        low, high = (
            torch.where(here | (low == high), low, middle + 1),
            torch.where(here, middle, high),
        )
    return low


def _sort_by_number(values: Tensor, ref_values: Tensor | None, width: float) -> list[Tensor]:
    permutation = torch.argsort(values, stable=True)
    rows = columns = values[permutation]
    rank = rank_y = inverse_permutation(permutation)
    if ref_values is not None:
        permutation_y = torch.argsort(ref_values, stable=True)
        columns, rank_y = ref_values[permutation_y], inverse_permutation(permutation_y)
    # The results of an op may not be one another.
    return [rank, rank_y.clone(), *bounds(rows, columns, width)]


def _fake(values: Tensor, ref_values: Tensor | None, _width: float) -> list[Tensor]:
    sets = values, values if ref_values is None else ref_values, values, values
    return [torch.empty_like(z, dtype=torch.int64) for z in sets]


def _sort_batches(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[list[Tensor], list[int]]:
    results, where = by_sample(torch.ops.pairops.sort_by_number, info.batch_size, dims, inputs)
    return list(results), list(where)


library.impl("sort_by_number", refusing(_sort_by_number), "CompositeExplicitAutograd")
torch.library.register_fake("pairops::sort_by_number", _fake)
torch.library.register_vmap("pairops::sort_by_number", _sort_batches)
