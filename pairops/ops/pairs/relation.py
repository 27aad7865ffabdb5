"""Relation of two sets of rows, their scales, and a cache of what is made of both once.

The dataclasses are not frozen: setting a field of a frozen dataclass is a call, and a training step
on a small batch is mostly calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .indexing import positions_of


@dataclass(eq=False)
class Relation:
    """Who is a positive of whom, and who is left out. Nobody changes a relation.

    pos_begin, pos_end and self_index are in sorted order: entry i belongs to row
    permutation_x[i] and counts positions in permutation_y.
    """

    permutation_x: Tensor  # (N,) int64: the row at each sorted position
    permutation_y: Tensor  # (M,) int64: the column at each sorted position
    pos_begin: Tensor  # (N,) int64: positives are the columns at [pos_begin_i, pos_end_i)
    pos_end: Tensor  # (N,) int64
    self_index: Tensor  # (N,) int64: the position of the column that the row itself is, or −1
    valid_x: Tensor  # (N,) bool: False for an ignored row; those come last
    valid_y: Tensor  # (M,) bool
    # True where it is known without looking: no row is ignored; every row has a positive.
    complete: bool = False
    all_positive: bool = False
    overlaps: bool = False  # True: intervals may overlap without being equal
    # (K,) int64: with a list, pos_begin and pos_end count its entries, which are positions. A row's
    # entries ascend, none twice.
    entries: Tensor | None = None
    # (N,) int64: row k is row picked[k] of x; None: the rows are those of x.
    picked: Tensor | None = None
    addresses: Any = field(default=None, init=False)  # of the tensors, for the CPU engine

    @staticmethod
    def of(tensors: Sequence[Tensor], picked: Tensor | None) -> "Relation":
        permutation_x, permutation_y, pos_begin, pos_end, self_index, valid_x, valid_y, *entries = (
            tensors
        )
        relation = Relation(
            permutation_x, permutation_y, pos_begin, pos_end, self_index, valid_x, valid_y
        )
        relation.entries = entries[0] if entries else None
        relation.picked = picked
        return relation

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "addresses": None}  # a copy lies elsewhere

    def tensors(self) -> list[Tensor]:
        """Return the tensors but `picked` in their order, as an op takes them; `of` is the
        inverse."""
        found = [
            self.permutation_x, self.permutation_y, self.pos_begin, self.pos_end, self.self_index,
            self.valid_x, self.valid_y,
        ]  # fmt: skip
        return found if self.entries is None else [*found, self.entries]

    def listed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """List the positives of the rows at these positions: (K,) which of `rows`, and positions of
        columns. The host waits for K on a GPU."""
        assert self.entries is not None, "the relation is a list"
        row, entry = positions_of(self.pos_begin[rows], self.pos_end[rows])
        return row, self.entries[entry]

    def positive(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Tell (R, C) which columns at these positions are positives of the rows at these."""
        if self.entries is None:
            begin, end = (z[rows].unsqueeze(1) for z in (self.pos_begin, self.pos_end))
            return (cols >= begin) & (cols < end)
        place = torch.full_like(self.permutation_y, len(cols))
        place[cols] = torch.arange(len(cols), device=cols.device)
        row, position = self.listed(rows)
        # The last column takes what is in none of these.
        found = torch.zeros(len(rows), len(cols) + 1, dtype=torch.bool, device=rows.device)
        found[row, place[position]] = True
        return found[:, :-1]

    def positives(self) -> Tensor:
        """Count positives (N,), in the caller's order; 0 for an ignored row."""
        begin, end, self_index = self.pos_begin, self.pos_end, self.self_index
        if self.entries is not None:
            return self.to_caller(end - begin)
        return self.to_caller(end - begin - ((self_index >= begin) & (self_index < end)).long())

    def partners(self) -> Tensor:
        """Count the columns that each row (N,) is compared with, in the caller's order."""
        valid = self.valid_y.sum()
        self_counts = (self.self_index >= 0) & (self.self_index < valid)
        return self.to_caller(valid - self_counts.long())

    def to_caller(self, counts: Tensor) -> Tensor:
        """Reorder counts from sorted order to the caller's; 0 for an ignored row."""
        return torch.empty_like(counts).scatter(0, self.permutation_x, counts) * self.valid_x


@dataclass(eq=False)
class Scales:
    """Inverse norms r, s_ij = r_i r_j <x_i, y_j>; None for dot products. Nobody changes them."""

    x: Tensor | None = None  # (N,) in the widest dtype of the device
    y: Tensor | None = None  # (M,)
    addresses: Any = None  # of the tensors, for the CPU engine

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "addresses": None}


@dataclass(eq=False)
class Cache:
    """By-products of some pairs, for every call with them; a copy is empty."""

    # Prepared embeddings by engine; "relation": those packed while labels were sorted.
    prepared: dict[str, list[Tensor]] = field(default_factory=dict)
    # By axis, if a group gathers all rows at once: the others' embeddings, keys, self_index.
    gathered: dict[int, list[Tensor]] = field(default_factory=dict)
    positives: Tensor | None = None  # (N,) int64, counts by row; None: not counted yet
    squares: dict[str, Any] = field(default_factory=dict)  # `Squares` without gradient, by distance
    sets: Any = None  # addresses of the embeddings, for the CPU engine's next call
    similarities: Any = None  # of a small problem, saved by the CPU engine

    def __reduce__(self) -> tuple[type["Cache"], tuple[()]]:
        return Cache, ()
