"""Descriptors of CUDA sweeps: addresses and sizes, as csrc/bindings/cuda.cpp reads them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pairops.ops.bindings.cuda import Kernels
from pairops.ops.engines.bands import bands
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import Argument, Between, EarlierAt, Partner, Table
from pairops.ops.terms.recipe import cuda_key
from pairops.ops.terms.term import POS, Term

_FIRST_OPERAND = 2  # the slots before it hold the scale

_Set = tuple[Any, ...]


class CudaTermView(NamedTuple):
    """A term in a sweep whose rows are its owners or, transposed, its partners."""

    term_id: int
    term: Term
    owners: int  # the set of its owners: 0, x, or 1, y
    transposed: bool


class _Slots:
    """The operands along one axis of a sweep; equal ones share a slot."""

    def __init__(self) -> None:
        self.operands: list[tuple[int | None, int, float]] = []

    def add(self, operand: tuple[int | None, int, float]) -> int:
        if operand not in self.operands:
            self.operands.append(operand)
        return _FIRST_OPERAND + self.operands.index(operand)


class Descriptors:
    """A call's pairs by address, and the tensors that must live as long."""

    def __init__(self, pairs: Pairs, kernels: Kernels, prepared: Sequence[Tensor]) -> None:
        self.pairs, self.kernels, self._prepared = pairs, kernels, prepared
        self.tensors: list[Tensor] = []
        known = pairs.relation
        intervals = known.pos_begin, known.pos_end, known.self_index
        self._relation = tuple([self.address(z) for z in intervals])
        self._sets = self._both()

    def _both(self) -> tuple[_Set, _Set]:
        """Return the descriptors of both sets."""
        pairs = self.pairs
        known = pairs.relation
        found = []
        for z, order, at in ((pairs.x, known.permutation_x, 0), (pairs.y, known.permutation_y, 3)):
            if z is not None:
                rows, (high, rest), valid_count = self._prepared[at : at + 3]
                given = [self.address(t) for t in (rows, high, rest, order, valid_count)]
                found.append((*given, z.shape[0]))
        return found[0], found[-1]

    def sweep(
        self,
        axis: int,
        views: Sequence[CudaTermView],
        given: dict[int, tuple[Tensor, Tensor]],
        along: dict[tuple[int, bool, int], int],
        masks_by_term: dict[int, int],
    ) -> tuple[Any, ...]:
        """Return the descriptor of a sweep over the rows of `axis`; see bindings/cuda.cpp."""
        slots = _Slots(), _Slots()  # by rows, by columns
        terms = []
        for view in views:
            term = view.term
            owner = slots[1 if view.transposed else 0]
            partner = slots[0 if view.transposed else 1]
            args = [
                (partner if isinstance(a, Partner) else owner).add(self._operand(a))
                for a in term.args
            ]
            args += [-1] * (2 - len(args))
            rest = [
                -1 if z is None else owner.add(self._operand(z))
                for z in (term.above, term.below, *given.get(view.term_id, (None, None)))
            ]
            by_arg = tuple([along.get((view.term_id, view.transposed, k), -1) for k in range(2)])
            kind = self.kernels.backend.kinds[cuda_key(term)]
            terms.append((
                kind, term.side, view.transposed, (*args, *rest), by_arg,
                masks_by_term.get(view.term_id),
            ))  # fmt: skip
        pairs = self.pairs
        # In one set, where a row is at a position among its positives, the intervals are the band.
        band = None if pairs.y is None else self.address(bands(pairs, axis, self.kernels.rows))
        return (
            self._sets[axis], self._sets[1 - axis], self._relation, band, axis == 1,
            pairs.scales.x is not None, band_only(views),
            self.kernels.panels, slots[0].operands, slots[1].operands, terms,
        )  # fmt: skip

    def _operand(self, a: Argument) -> tuple[int | None, int, float]:
        if isinstance(a, float):
            return None, 0, a
        assert not isinstance(a, (Table, Between, EarlierAt)), "no such term is compiled"
        values = a.values if isinstance(a, Partner) else a
        if values.stride(0) == 0:
            self.tensors.append(values)
            return values.data_ptr(), 0, 0.0
        return self.address(values), 1, 0.0

    def address(self, tensor: Tensor) -> int:
        self.tensors.append(tensor.contiguous())
        return self.tensors[-1].data_ptr()


def band_only(views: Sequence[CudaTermView]) -> bool:
    return all(view.term.side == POS for view in views)
