"""Arguments of a term, cut into tiles: the value of each in a tile, and the gradients by it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pairops.ops.pairs.similarity import product

Pieces = tuple[Tensor, ...]  # one for each tile of an axis


class TiledOperand(NamedTuple):
    """A tensor of an argument, by which a tile may be differentiated."""

    axis: int  # 0: it has an entry for each row of the grid, 1: for each column
    pieces: Pieces
    has_grad: bool


class TiledArgument(Protocol):
    operands: Sequence[TiledOperand]

    def value(self, tile: tuple[int, int], pieces: Sequence[Tensor], /) -> Any:
        """Return the argument, shaped to be combined with a tile of similarities.

        pieces: those of the operands.
        """

    def gradients(
        self, weights: Tensor, pieces: Sequence[Tensor], wanted: Sequence[bool], /
    ) -> list[Tensor]:
        """Return the wanted gradients by the operands. weights: (rows, columns) by the value."""


class TiledNumber:
    operands: Sequence[TiledOperand] = ()

    def __init__(self, number: float) -> None:
        self._number = number

    def value(self, _tile: tuple[int, int], _pieces: Sequence[Tensor]) -> float:
        return self._number

    def gradients(self, *_: object) -> list[Tensor]:
        return []


class TiledVector:
    """One value for each row (axis 0) or column (axis 1)."""

    def __init__(self, axis: int, pieces: Pieces) -> None:
        self.operands: Sequence[TiledOperand] = [TiledOperand(axis, pieces, True)]
        self._reduced = 1 - axis

    def value(self, _tile: tuple[int, int], pieces: Sequence[Tensor]) -> Tensor:
        return pieces[0].unsqueeze(self._reduced)

    def gradients(
        self, weights: Tensor, _pieces: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor]:
        return [weights.sum(self._reduced)] if wanted[0] else []


class TiledTable:
    """A value for each pair of classes; owners are the rows (axis 0) or the columns (axis 1)."""

    operands: Sequence[TiledOperand] = ()

    def __init__(self, values: Tensor, owners: Pieces, partners: Pieces, axis: int) -> None:
        self._values, self._owners, self._partners, self._axis = values, owners, partners, axis

    def value(self, tile: tuple[int, int], _pieces: Sequence[Tensor]) -> Tensor:
        owners, partners = self._owners[tile[self._axis]], self._partners[tile[1 - self._axis]]
        found = self._values.index_select(0, owners).index_select(1, partners)
        return found if self._axis == 0 else found.T

    def gradients(self, *_: object) -> list[Tensor]:
        return []


class TiledProduct:
    """The products of further embeddings; owners are the rows (axis 0) or the columns (axis 1)."""

    def __init__(self, owners: Pieces, partners: Pieces, axis: int, has_grad: bool) -> None:
        self.operands: Sequence[TiledOperand] = [
            TiledOperand(axis, owners, has_grad),
            TiledOperand(1 - axis, partners, has_grad),
        ]

    def value(self, _tile: tuple[int, int], pieces: Sequence[Tensor]) -> Tensor:
        by_axis = pieces if self.operands[0].axis == 0 else pieces[::-1]
        return product(by_axis[0], by_axis[1])

    def gradients(
        self, weights: Tensor, pieces: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor]:
        return [
            product(weights if operand.axis == 0 else weights.T, other.T)
            for operand, other, want in zip(self.operands, pieces[::-1], wanted, strict=True)
            if want
        ]
