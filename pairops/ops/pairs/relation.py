"""What relates two sets of rows: who is a positive of whom, scales, and what is made of them once.

None of these is frozen: setting a field of a frozen dataclass is a call, and a training step on a
small batch is mostly calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Relation:
    """Who is a positive of whom, and who is left out. Nobody changes it.

    pos_begin, pos_end and self_index are in sorted order: entry i belongs to row order_x[i] and
    counts positions in order_y.
    """

    permutation_x: Tensor  # (N,) int64: the row at each sorted position
    permutation_y: Tensor  # (M,) int64: the column at each
    pos_begin: Tensor  # (N,) int64: positives are the columns at [pos_begin_i, pos_end_i)
    pos_end: Tensor  # (N,) int64
    self_index: Tensor  # (N,) int64: the position of the column that the row itself is, or −1
    valid_x: Tensor  # (N,) bool: False for an ignored row; those come last in order_x
    valid_y: Tensor  # (M,) bool
    # Is it known, without looking, that no row is ignored, and that all have a positive?
    complete: bool = False
    all_positive: bool = False
    addresses: Any = field(default=None, init=False)  # what the CPU engine makes of these once

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "Relation":
        permutation_x, permutation_y, pos_begin, pos_end, self_index, valid_x, valid_y = tensors
        return Relation(
            permutation_x, permutation_y, pos_begin, pos_end, self_index, valid_x, valid_y
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "addresses": None}  # a copy lies elsewhere

    def tensors(self) -> list[Tensor]:
        """The tensors in their order, as an op takes them; `of` is the inverse."""
        return [
            self.permutation_x, self.permutation_y, self.pos_begin, self.pos_end, self.self_index,
            self.valid_x, self.valid_y,
        ]  # fmt: skip

    def positives(self) -> Tensor:
        """(N,) in the caller's order; a row itself is none, and an ignored row has none."""
        begin, end, self_index = self.pos_begin, self.pos_end, self.self_index
        return self.to_caller(end - begin - ((self_index >= begin) & (self_index < end)).long())

    def partners(self) -> Tensor:
        """(N,) in the caller's order: with how many columns a row is compared."""
        valid = self.valid_y.sum()
        self_counts = (self.self_index >= 0) & (self.self_index < valid)
        return self.to_caller(valid - self_counts.long())

    def to_caller(self, counts: Tensor) -> Tensor:
        """Counts of rows in sorted order, in the caller's; 0 for an ignored row."""
        return torch.empty_like(counts).scatter(0, self.permutation_x, counts) * self.valid_x


@dataclass(eq=False)
class Scales:
    """Inverse norms r: s_ij = r_i r_j <x_i, y_j>. None: dot products. Nobody changes them."""

    x: Tensor | None = None  # (N,) in the widest dtype of the device
    y: Tensor | None = None  # (M,)
    addresses: Any = None  # what the CPU engine makes of these once

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "addresses": None}


@dataclass(eq=False)
class Cache:
    """What was made of some pairs, for every call with them; a copy is empty."""

    # By engine, what it made of the embeddings; "relation": what was made on the way to that.
    prepared: dict[str, list[Tensor]] = field(default_factory=dict)
    # By axis, where a group gathers all rows once: the others' embeddings, keys, and positions.
    gathered: dict[int, list[Tensor]] = field(default_factory=dict)
    positives: Tensor | None = None  # (N,) int64, how many a row has; None: not counted yet
    squares: dict[str, Any] = field(default_factory=dict)  # by distance, without a gradient
    sets: Any = None  # what the CPU engine is told of the embeddings, for its next call
    similarities: Any = None  # those of a small problem, by the CPU engine, if it keeps them

    def __reduce__(self) -> tuple[type["Cache"], tuple[()]]:
        return Cache, ()
