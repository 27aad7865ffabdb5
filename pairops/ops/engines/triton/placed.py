"""Where a term stands in a sweep: whose rows own it, and which vectors and numbers are its."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.term import Term


@dataclass(frozen=True, eq=False)
class Placed:
    """A term and where its owners are: along the rows of a sweep, or across, along its columns."""

    term: Term
    owners: int  # the set that its owners are of: 0, x, or 1, y
    across: bool
    numbers: tuple[int, ...]  # places of its numbers among all numbers
    vectors: tuple[int, ...]  # places of its vectors, windows after arguments, along their axes
    given: tuple[int, ...] = ()  # places of its statistic and its cotangent, for `weigh`

    def changed(self, across: bool) -> "Placed":
        return replace(self, across=across)


def along_rows(placed: Sequence[Placed]) -> list[tuple[int, int]]:
    """The vectors that get their gradient from a sweep, those along its rows: of which term, and
    which argument of it."""
    return [
        (which, k)
        for which, p in enumerate(placed)
        for k, a in enumerate(p.term.args)
        if not isinstance(a, float) and isinstance(a, Partner) == p.across
    ]


class Vectors:
    """The numbers of a call, and the vectors of each set, in the order that sweeps load them."""

    def __init__(self, same: bool, scaled: bool) -> None:
        self.same = same
        self.numbers: list[float] = []
        held = 2 if scaled else 0  # the scales
        self._counts = [held, held]
        self.along: tuple[list[Tensor], list[Tensor]] = ([], [])

    def place(self, term: Term, axis: int, given: Sequence[Tensor] = ()) -> Placed:
        axis = 0 if self.same else axis
        partners = 0 if self.same else 1 - axis
        numbers, vectors = [], []
        for a in term.args:
            if isinstance(a, float):
                numbers.append(len(self.numbers))
                self.numbers.append(a)
            elif isinstance(a, Partner):
                vectors.append(self._add(partners, a.values))
            elif isinstance(a, Tensor):
                vectors.append(self._add(axis, a))
        vectors += [self._add(axis, bound) for bound in term.windows()]
        places = tuple([self._add(axis, v) for v in given])
        return Placed(term, axis, False, tuple(numbers), tuple(vectors), places)

    def _add(self, axis: int, values: Tensor) -> int:
        self.along[axis].append(values)
        self._counts[axis] += 1
        return self._counts[axis] - 1

    def counts(self, axis: int) -> int:
        return self._counts[0 if self.same else axis]
