"""One call of `row_stats` as nodes of torch's graph see it: what they are told, and its tensors.

torch follows a tensor only as an argument of its own, so those of a call stand in one row. Which is
which is known here and nowhere else.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs

from . import bodies


class RowStatsCall(NamedTuple):
    """What a call says besides tensors, and how many tensors of each kind it has.

    The row: x, y, vectors, scale_x, scale_y, traced, prepared, relation; these are `given`. Then
    what the op `gather` returned: statistics, arguments, bits. Then the cotangents.
    """

    recipe: str
    numbers: list[float]
    engine: str
    constant: tuple[int, ...]  # the terms that have no gradient
    terms: int
    vectors: int
    prepared: int
    given: int

    def gather(self, tensors: Sequence[Any]) -> tuple[Tensor, ...]:
        """Run the op on what is given; its results in a row."""
        statistics, arguments, bits = torch.ops.pairops.gather(*self._inputs(tensors))
        return (*statistics, *arguments, bits)

    def weigh(self, tensors: Sequence[Any], needs: "Needs", op: bool) -> tuple[Tensor, ...]:
        """The gradients by x, y and the vectors, empty where not needed. op: by the op, else as
        differentiable torch."""
        results = tensors[self.given :]
        rest = results[self.terms : -self.terms]
        run = torch.ops.pairops.weigh if op else bodies.weigh
        dx, dy, dvectors = run(
            *self._inputs(tensors),
            results[: self.terms], rest[:-1], rest[-1], results[-self.terms :],
            needs.x, needs.y, needs.vectors,
        )  # fmt: skip
        return (dx, dy, *dvectors)

    def _inputs(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments that both ops share, as their schemas name them."""
        x, y, *rest = tensors[: self.given]
        vectors = rest[: self.vectors]
        scale_x, scale_y, traced, *rest = rest[self.vectors :]
        prepared, relation = rest[: self.prepared], rest[self.prepared :]
        return (
            x, y, scale_x, scale_y, relation, prepared, vectors,
            self.numbers, self.recipe, self.engine, traced,
        )  # fmt: skip

    def needs(self, flags: Sequence[bool]) -> "Needs":
        """Of a flag for each tensor that is given those that a gradient may need."""
        x, y, *rest = flags
        return Needs(x, y, rest[: self.vectors])

    def statistics(self, tensors: Sequence[Any]) -> Sequence[Tensor]:
        """Those of a row that begins with what is given."""
        return tensors[self.given : self.given + self.terms]

    def by_given(self, gradients: Sequence[Any]) -> list[Any]:
        """What `weigh` returned, for each tensor that is given; None for those without."""
        return [*gradients, *[None] * (self.given - len(gradients))]


class Needs(NamedTuple):
    """Which gradients are needed."""

    x: bool
    y: bool
    vectors: Sequence[bool]


def call_of(
    pairs: Pairs,
    recipe: str,
    numbers: list[float],
    traced: Tensor | None,
    vectors: Sequence[Tensor],
    prepared: Sequence[Tensor],
    engine: str,
    constant: Iterable[int],
    terms: int,
) -> tuple[RowStatsCall, tuple[Tensor | None, ...]]:
    """The call, and the row of what is given."""
    given = (
        pairs.x, pairs.y, *vectors, pairs.scales.x, pairs.scales.y, traced,
        *prepared, *pairs.relation.tensors(),
    )  # fmt: skip
    counts = terms, len(vectors), len(prepared), len(given)
    return RowStatsCall(recipe, numbers, engine, tuple(constant), *counts), given
