"""Shards: the rows of one rank among those of all, and counts over all ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pairops.ops.distributed.group import Group

from .indexing import arange, first_named, positions_of
from .widths import bounds


@dataclass(frozen=True, eq=False)
class Shards:
    """The rows of x and y that this rank holds, among those of all ranks.

    A row or column of all ranks is counted from those of rank 0 on.
    """

    group: Group
    sizes: tuple[tuple[int, ...], tuple[int, ...]]  # rows of x, and of y, that each rank holds
    keys: tuple[Tensor, Tensor]  # (N,) and (M,) int64: j is a positive of i if theirs are equal
    self_index: Tensor  # (N,) int64: the column of all ranks that row i itself is, or −1
    ignore_index: int | None  # a row or column with this key is left out
    positives: Tensor  # (N,) int64, on all ranks
    others: Tensor  # (N,) int64: how many columns of all ranks a row is compared with
    paired: bool = False  # True: all positives of a row or column lie on its own rank
    width: float | None = None  # with one, keys are numbers, and positives those within it

    @staticmethod
    def of(
        group: Group,
        fingerprint: Mapping[str, str],
        keys: tuple[Tensor, Tensor | None],
        self_index: Tensor | None,
        names: tuple[Tensor, Tensor] | None,
        ignore_index: int | None,
        width: float | None,
    ) -> "Shards":
        """Agree with the other ranks, and count positives over all of them.

        fingerprint: must be the same on all ranks.  keys: the second is None for the same set.
        self_index: (N,) the local column that a row is, or −1.  names: instead of that, ids of
        both sets.
        """
        mine, theirs = keys[0], keys[0] if keys[1] is None else keys[1]
        rows, columns = group.agree(fingerprint, len(mine), len(theirs))
        if names is not None:
            self_index = first_named(names[0], group.rows(names[1], columns, synchronized=True))
        elif self_index is None:
            self_index = torch.full_like(mine, -1, dtype=torch.int64)
        else:
            self_index = torch.where(self_index < 0, -1, self_index + sum(columns[: group.rank]))
        every = group.rows(theirs, columns, synchronized=names is None)
        positives, others = _counts(mine, every, self_index, ignore_index, width)
        return Shards(
            group, (rows, columns), (mine, theirs), self_index, ignore_index, positives, others,
            width=width,
        )  # fmt: skip

    @staticmethod
    def by_index(group: Group, fingerprint: Mapping[str, str], x: Tensor, y: Tensor) -> "Shards":
        """Pair row i of a rank's x with row i of its y, its one positive."""
        rows, columns = group.agree(fingerprint, len(x), len(y))
        key = arange(x) + sum(rows[: group.rank])
        nobody = key.new_full((len(y) - len(x),), -1)
        others = torch.full_like(key, sum(columns))
        return Shards(
            group, (rows, columns), (key, torch.cat([key, nobody])), torch.full_like(key, -1), None,
            torch.ones_like(key), others, paired=True,
        )  # fmt: skip

    def first(self, axis: int) -> int:
        """Return the index of this rank's first row (axis 0) or column (1) among those of all."""
        return sum(self.sizes[axis][: self.group.rank])

    def of_rows(self, index: Tensor) -> "Shards":
        """Return the shards of copies of these local rows."""
        (rows,) = self.group.agree({}, len(index))
        return replace(
            self,
            sizes=(rows, self.sizes[1]),
            keys=(self.keys[0][index], self.keys[1]),
            self_index=self.self_index[index],
            positives=self.positives[index],
            others=self.others[index],
        )

    def by_keys(self, keys: tuple[Tensor, Tensor]) -> "Shards":
        """Return the same rows and columns with other keys; no pair is left out."""
        return replace(
            self, keys=keys, self_index=torch.full_like(self.self_index, -1), ignore_index=None,
            width=None,
        )  # fmt: skip

    def positive_pairs(self) -> tuple[Tensor, Tensor]:
        """List (K,) local rows and their positives, columns of all ranks, by row and then column.

        The host waits for K on a GPU.
        """
        columns, order = torch.sort(self.group.rows(self.keys[1], self.sizes[1]), stable=True)
        first, last = _interval(self.keys[0], columns, self.width)
        last = torch.where(_valid(self.keys[0], self.ignore_index), last, first)
        row, position = positions_of(first, last)
        column = order[position]
        others = column != self.self_index[row]
        return row[others], column[others]


def _interval(key: Tensor, columns: Tensor, width: float | None) -> tuple[Tensor, Tensor]:
    """Return begin and end of the positives of each key among sorted keys of columns."""
    if width is not None:
        return bounds(key, columns, width)
    return torch.searchsorted(columns, key), torch.searchsorted(columns, key, right=True)


def _valid(key: Tensor, ignore_index: int | None) -> Tensor:
    if ignore_index is None:
        return torch.ones_like(key, dtype=torch.bool)
    return key != ignore_index


def _counts(
    key: Tensor,
    columns: Tensor,
    self_index: Tensor,
    ignore_index: int | None,
    width: float | None,
) -> tuple[Tensor, Tensor]:
    """Count (N,) the positives of each row among all columns, and all columns that it is compared
    with; 0 for a row that is left out."""
    if not len(columns):
        return torch.zeros_like(self_index), torch.zeros_like(self_index)
    first, last = _interval(key, columns.sort().values, width)
    self_keys = columns[self_index.clamp(min=0)]
    is_column = (self_index >= 0) & _valid(self_keys, ignore_index)
    near = self_keys == key if width is None else (self_keys - key).abs() <= width
    is_positive = (is_column & near).long()
    valid = _valid(key, ignore_index)
    others = _valid(columns, ignore_index).sum() - is_column.long()
    return (last - first - is_positive) * valid, others * valid
