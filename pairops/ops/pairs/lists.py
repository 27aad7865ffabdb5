"""Positives by list: pairs (row, column), any number of each row's, sorted by row and column."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.terms.tensor_checks import check_integers, readable

from .checks import as_index


class Listed(NamedTuple):
    """A list as `Relation` has it, in the caller's order of rows and columns."""

    begin: Tensor  # (N,) int64: the positives of row i are entries[begin_i : end_i]
    end: Tensor  # (N,) int64
    entries: Tensor  # (K,) int64, columns


def sort_list(rows: Tensor, cols: Tensor, shape: tuple[int, int], self_index: Tensor) -> Listed:
    """Sort pairs, each once, without a row's own pair; nothing is read back.

    rows, cols: (K,) int64 in range.  self_index: (N,) the column that a row is, or −1.
    """
    n, m = shape
    nobody = n * m
    # Where nobody could look, a pair out of range is none.
    outside = (rows < 0) | (rows >= n) | (cols < 0) | (cols >= m)
    rows = torch.where(outside, 0, rows)
    itself = self_index[rows] == cols if n else outside
    key = torch.where(outside | itself, nobody, rows * m + cols).sort().values
    again = torch.zeros_like(key, dtype=torch.bool)
    again[1:] = key[1:] == key[:-1]
    key = torch.where(again, nobody, key).sort().values
    first = torch.arange(n, device=key.device) * m
    begin, end = torch.searchsorted(key, first), torch.searchsorted(key, first + m)
    return Listed(begin, end, key % max(m, 1))


def checked_list(
    given: tuple[Any, Any], shape: tuple[int, int], self_index: Tensor, names: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Return rows and columns as int64. Where they can be read without waiting, those out of range
    are refused, and a row's own pair."""
    for name, values, count in zip(names, given, shape, strict=True):
        check_integers(name, values, "(K,)")
        if values.ndim != 1:
            raise ValueError(f"{name} has shape {tuple(values.shape)}; it must be (K,)")
        if values.numel() and readable(values):
            values = as_index(values)
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= count:
                raise ValueError(
                    f"{name} go from {low} to {high}; they must be from 0 to {count - 1}, since "
                    f"there are {count} {'rows of x' if name == names[0] else 'references'}"
                )
    rows, cols = (as_index(z.to(self_index.device)) for z in given)
    if rows.shape != cols.shape:
        raise ValueError(
            f"{names[1]} has {len(cols)} entries and {names[0]} {len(rows)}; they must have as many"
        )
    if readable(rows):
        itself = (self_index[rows] == cols).nonzero()
        if len(itself):
            k = int(itself[0])
            raise ValueError(
                f"{names[0]} and {names[1]} have the pair ({int(rows[k])}, {int(cols[k])}) of a "
                "row with itself; it must not be in the list, or exclude_self must be False"
            )
    return rows, cols
