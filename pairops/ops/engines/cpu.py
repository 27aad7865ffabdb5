"""The sweeps that are compiled ahead of time: tensors are checked here, addresses handed on.

`csrc/recipes.h` lists the terms that are served, in every combination; on a CPU `csrc/cpu/` runs
them, with as many threads as torch has. The results do not depend on the number of threads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings import extension
from pairops.ops.bindings.extension import DTYPES, MISSING
from pairops.ops.bindings.extension import native as _native
from pairops.ops.pairs.indexing import any_above
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Relation
from pairops.ops.terms.arguments import EarlierAt, Partner, Table
from pairops.ops.terms.levels import sweeps, without_pairs
from pairops.ops.terms.recipe import cpu_key
from pairops.ops.terms.term import Term, Wanted

SERVED: frozenset[str] = frozenset(_native.terms() if _native else ())

NAME = "native"
DEVICE: str | None = "cpu"

_MOST = 2**31 - 1  # rows: csrc/math/accumulators.h counts columns in 32 bits
_TILE = _native.TILE if _native else 1
_KEPT = 3 << 19  # bytes of similarities, at most, that are kept from sweep to sweep


class _Known(NamedTuple):
    """What follows from the kind of a term: everything but its numbers and vectors."""

    key: str  # as the extension knows it
    of_numbers: bool  # are all arguments numbers?
    keeps_argument: bool
    keeps_bits: bool
    fill: float


_KINDS: dict[Any, _Known] = {}


def _known(term: Term) -> _Known:
    # A small step is mostly Python: what a term is called is found out once.
    kind = (
        term.gather, term.side, term.function.name, tuple(map(type, term.args)),
        term.above is None, term.below is None, term.grad,
    )  # fmt: skip
    found = _KINDS.get(kind)
    if found is None:
        of_numbers = all(isinstance(a, float) for a in term.args)
        key, fill = cpu_key(term), term.monoid.fill
        found = _Known(key, of_numbers, term.keeps_argument, term.keeps_bits, fill)
        _KINDS[kind] = found
    return found


def missing() -> str | None:
    return MISSING


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    if MISSING is not None:
        return MISSING
    if pairs.x.device.type != "cpu":
        return f"x is on {pairs.x.device.type}; the native kernels are for the CPU"
    if pairs.scales.x is not None and pairs.scales.x.dtype != torch.float64:
        return "norms are float32; the native kernels read them in float64"
    if any_above(pairs.shape, _MOST):
        return f"there are {max(pairs.shape)} rows; the native kernels count {_MOST} at most"
    for term in (*rows, *cols):
        if cpu_key(term) not in SERVED:
            return f"no recipe in csrc/recipes.h has the term {cpu_key(term)}"
    return None


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The bits are (terms that keep bits, row tiles, column tiles), 1 also where the window of one
    set kept a pair of the tile's mirror image."""
    call = _Call(pairs)
    kinds = [_known(term) for term in rows] + [_known(term) for term in cols]
    keeping = 0
    for known in kinds:
        keeping += known.keeps_bits
    (n, m), dtype = pairs.shape, pairs.dtype
    tiles = -(-n // _TILE), -(-m // _TILE)
    bits = (torch.zeros if keeping else torch.empty)((keeping, *tiles), dtype=torch.uint8)
    plane, size = bits.data_ptr(), tiles[0] * tiles[1]
    statistics: list[Tensor] = []
    arguments: list[Tensor] = []
    terms: list[Any] = []
    for owned, axis, owners in ((rows, 0, n), (cols, 1, m)):
        earlier = len(statistics)
        for term in owned:
            known = kinds[len(statistics)]
            value, argument, bit = torch.empty(owners, dtype=dtype), None, None
            if known.keeps_argument:
                arguments.append(torch.empty(owners, dtype=torch.int64))
                argument = arguments[-1].data_ptr()
            if known.keeps_bits:
                bit, plane = plane, plane + size
            told = call.term(axis, term, known, bit, statistics, earlier)
            terms.append((*told, known.fill, value.data_ptr(), argument))
            statistics.append(value)
    _native.gather(*call.shared, terms, sweeps(rows, cols), *call.settings)
    _repair(rows, cols, statistics, arguments)
    return statistics, arguments, bits


def _repair(
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
) -> None:
    """Owners without pairs in an earlier term have none: what was made of it was made of ±inf."""
    index = iter(arguments)
    first = 0
    for owned in (rows, cols):
        for k, term in enumerate(owned, first):
            argument = next(index) if term.grad and term.extreme else None
            missing = without_pairs(term, owned, statistics[first : first + len(owned)])
            if missing is not None:
                statistics[k].masked_fill_(missing, term.monoid.fill)
                if argument is not None:
                    argument.masked_fill_(missing, -1)
        first += len(owned)


def backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    bits: Tensor | None,
    needs: Wanted,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Without a slope by arguments a tile takes less time."""
    same = pairs.y is None
    call = _Call(pairs)
    (n, m), dtype = pairs.shape, pairs.dtype
    plane, size = 0, 0
    if bits is not None:
        plane, size = bits.data_ptr(), bits.shape[1] * bits.shape[2]
    gradients: list[Tensor] = []
    terms: list[Any] = []
    k = 0
    for owned, axis, owners in ((rows, 0, n), (cols, 1, m)):
        for term in owned:
            known, bit = _known(term), None
            if known.keeps_bits and size:
                bit, plane = plane, plane + size
            slopes: list[int | None] = [None] * len(term.args)
            if not known.of_numbers:
                wanted = iter(needs.args[k] if needs.args is not None else [True] * len(term.args))
                for place, a in enumerate(term.args):
                    if isinstance(a, float):
                        continue
                    length = (n + m - owners) if isinstance(a, Partner) else owners
                    need = next(wanted)
                    gradients.append(torch.zeros(length if need else 0, dtype=dtype))
                    if need:
                        slopes[place] = gradients[-1].data_ptr()
            told = call.term(axis, term, known, bit, (), 0)
            of_owners = call.numbers(statistics[k]), call.numbers(cotangents[k])
            terms.append((*told, *of_owners, slopes))
            k += 1
    dx = torch.zeros(pairs.x.shape, dtype=dtype) if needs[0] else pairs.x.new_empty(0)
    dy = (
        torch.zeros(pairs.other.shape, dtype=dtype)
        if needs[1] and not same
        else pairs.other.new_empty(0)
    )
    addresses = [z.data_ptr() if z.dim() == 2 else None for z in (dx, dy)]
    if addresses != [None, None] or any(len(z) for z in gradients):
        _native.weigh(*call.shared, terms, *call.settings, *addresses)
    return dx, dy, gradients


def bits_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    n, m = pairs.shape
    keeping = sum(term.keeps_bits for term in (*rows, *cols))
    return keeping, (n + _TILE - 1) // _TILE, (m + _TILE - 1) // _TILE


class _Call:
    """Addresses of one call's tensors, and the tensors, which must live as long."""

    def __init__(self, pairs: Pairs) -> None:
        x, y = pairs.x, pairs.y
        relation = pairs.relation
        if relation.addresses is None:
            relation.addresses = _addresses(relation)
        _, intervals, order_x, order_y = relation.addresses
        self._alive: list[Tensor] = []
        self._same = y is None
        of_x = self._set(x, pairs.scales.x, order_x)
        of_y = None if y is None else self._set(y, pairs.scales.y, order_y)
        self.shared = extension.isa(), of_x, of_y, intervals, self._similarities(pairs)
        # As torch does with its own memory.
        poison = torch._C._get_deterministic_algorithms()
        poison = poison and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        self.settings = torch.get_num_threads(), poison

    def term(
        self,
        axis: int,
        term: Term,
        known: _Known,
        bit: int | None,
        statistics: Sequence[Tensor],
        earlier: int,
    ) -> tuple[Any, ...]:
        """What the extension is told of a term. Of the same set a column is a row.

        earlier: the index of the first statistic of the same owners.
        """
        args: Sequence[Any] = term.args
        if not known.of_numbers:
            args = [
                a if isinstance(a, float) else self._operand(a, statistics, earlier)
                for a in term.args
            ]
        above = below = None
        if term.above is not None:
            above = self._operand(term.above, statistics, earlier)
        if term.below is not None:
            below = self._operand(term.below, statistics, earlier)
        return known.key, axis == 1 and not self._same, args, above, below, bit

    def _operand(self, a: Any, statistics: Sequence[Tensor], earlier: int) -> tuple[int, int]:
        if isinstance(a, EarlierAt):
            return statistics[earlier + a.place].data_ptr(), 1
        assert not isinstance(a, Table), "no such term is served"
        return self.numbers(a.values if isinstance(a, Partner) else a)

    def numbers(self, values: Tensor) -> tuple[int, int]:
        """(address, stride) of a vector; a number for all has stride 0."""
        stride = values.stride(0)
        if stride > 1:
            values, stride = values.contiguous(), 1
        self._alive.append(values)
        return values.data_ptr(), stride

    def _set(
        self, z: Tensor, scale: Tensor | None, order: tuple[int, int]
    ) -> tuple[int | str | None, ...]:
        if not z.is_contiguous():
            z = z.contiguous()
            self._alive.append(z)
        if scale is not None and not scale.is_contiguous():
            scale = scale.contiguous()
            self._alive.append(scale)
        scales = None if scale is None else scale.data_ptr()
        return z.data_ptr(), DTYPES[z.dtype], *z.shape, scales, *order

    def _similarities(self, pairs: Pairs) -> tuple[int, int] | None:
        """Of a small problem tiles, each computed by the first sweep that needs it, and which of
        them have been: for all sweeps with these pairs."""
        prepared = pairs.cache.prepared
        kept = prepared.get(NAME)
        if kept is None:
            (n, m), dtype = pairs.shape, pairs.dtype
            tiles = -(-n // _TILE) * -(-m // _TILE)
            count, kept = tiles * _TILE * _TILE, []
            if 0 < count * dtype.itemsize <= _KEPT:
                kept = [torch.empty(count, dtype=dtype), torch.zeros(tiles, dtype=torch.uint8)]
            prepared[NAME] = kept
        return (kept[0].data_ptr(), kept[1].data_ptr()) if kept else None


def _addresses(relation: Relation) -> tuple[Any, ...]:
    """What must live as long; intervals; order and validity of rows, and of columns."""
    alive = [z.contiguous() for z in relation.tensors()]
    order_x, order_y, begin, end, own, valid_x, valid_y = [z.data_ptr() for z in alive]
    return alive, (begin, end, own), (order_x, valid_x), (order_y, valid_y)
