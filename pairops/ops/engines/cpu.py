"""The sweeps that are compiled ahead of time: tensors are checked here, addresses handed on.

`csrc/recipes.h` lists the terms that are served, in every combination; on a CPU `csrc/cpu/` runs
them, with as many threads as torch has. The results do not depend on the number of threads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.bindings import extension
from pairops.ops.bindings.extension import DTYPES, MISSING
from pairops.ops.bindings.extension import native as _native
from pairops.ops.pairs.indexing import any_above
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Relation
from pairops.ops.terms.arguments import Earlier, EarlierAt, Partner, Table
from pairops.ops.terms.levels import numbered, without_pairs
from pairops.ops.terms.recipe import cpu_key
from pairops.ops.terms.term import Term, Wanted

from .plan import Kind, Plan, plan_of

SERVED: frozenset[str] = frozenset(_native.terms() if _native else ())

NAME = "native"
TAKES_EARLIER = True
DEVICE: str | None = "cpu"

_MOST = 2**31 - 1  # rows: csrc/math/accumulators.h counts columns in 32 bits
_TILE = _native.TILE if _native else 1
_KEPT = 3 << 19  # bytes of similarities, at most, that are kept from sweep to sweep


def missing() -> str | None:
    return MISSING


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    reason = declines_pairs(pairs)
    if reason is not None:
        return reason
    for term in (*rows, *cols):
        if cpu_key(term) not in SERVED:
            return f"no recipe in csrc/recipes.h has the term {cpu_key(term)}"
    return None


def declines_pairs(pairs: Pairs) -> str | None:
    """Why it can serve no call with these pairs, or None."""
    if MISSING is not None:
        return MISSING
    if not pairs.x.is_cpu:
        return f"x is on {pairs.x.device.type}; the native kernels are for the CPU"
    if pairs.scales.x is not None and pairs.scales.x.dtype != torch.float64:
        return "norms are float32; the native kernels read them in float64"
    if any_above(pairs.shape, _MOST):
        return f"there are {max(pairs.shape)} rows; the native kernels count {_MOST} at most"
    return None


def serves(plan: Plan) -> bool:
    """Are all terms of a call compiled?"""
    for kind in plan.kinds:  # noqa: SIM110  (a generator is a call for each)
        if kind.cpu_key not in SERVED:
            return False
    return True


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The bits are (terms that keep bits, row tiles, column tiles), 1 also where the window of one
    set kept a pair of the tile's mirror image."""
    plan = plan_of(rows, cols)
    assert plan is not None, "terms refer to earlier ones"
    return planned_forward(pairs, rows, cols, plan)


def planned_forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], plan: Plan
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`forward` of terms that may refer to earlier ones, all in one call of the extension."""
    call = _Call(pairs)
    n, m = pairs.shape
    tiles = -(-n // _TILE), -(-m // _TILE)
    new = torch.zeros if plan.keeping else torch.empty
    bits = new((plan.keeping, *tiles), dtype=torch.uint8, device="cpu")
    plane, size = bits.data_ptr(), tiles[0] * tiles[1]
    statistics: list[Tensor] = []
    arguments: list[Tensor] = []
    terms: list[Any] = []
    kinds = iter(plan.kinds)
    for axis, owned, owners in ((0, rows, n), (1, cols, m)):
        call.earlier, call.places = {}, []
        for term, kind in zip(owned, kinds):  # noqa: B905  (kinds goes on with the columns)
            value = torch.empty(owners, dtype=call.dtype, device="cpu")
            argument = bit = None
            if kind.keeps_argument:
                arguments.append(torch.empty(owners, dtype=torch.int64, device="cpu"))
                argument = arguments[-1].data_ptr()
            if kind.keeps_bits:
                bit, plane = plane, plane + size
            told = call.term(axis, term, kind, bit)
            address = call.made(term, value)
            terms += ((*told, kind.fill, address, argument),)
            statistics += (value,)
    _native.forward(*call.shared, terms, plan.sweeps, *call.settings)
    for k, fill in plan.arguments:
        if (statistics[k] == fill).any():
            _repair(rows, cols, statistics, arguments)
            break
    return statistics, arguments, bits


def _repair(
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
) -> None:
    """Owners without pairs in an earlier term have none: what was made of it was made of ±inf."""
    rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
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
    plan = plan_of(rows, cols)
    assert plan is not None, "terms refer to earlier ones"
    return planned_backward(pairs, rows, cols, statistics, cotangents, bits, needs, plan)


def planned_backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    bits: Tensor | None,
    needs: Wanted,
    plan: Plan,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`backward` of terms that may refer to earlier ones, which all have pairs. Extremes among them
    are left out."""
    call = _Call(pairs)
    n, m = pairs.shape
    plane = size = 0
    if bits is not None and plan.keeping:
        plane, size = bits.data_ptr(), bits.shape[1] * bits.shape[2]
    gradients: list[Tensor] = []
    terms: list[Any] = []
    k = 0
    for axis, owned in enumerate((rows, cols)):
        call.earlier, call.places = {}, []
        for term in owned:
            kind, bit = plan.kinds[k], None
            if kind.keeps_bits and size:
                bit, plane = plane, plane + size
            if kind.swept:
                slopes: list[int | None] = [None] * kind.arity
                if not kind.of_numbers:
                    flags = None if needs.args is None else needs.args[k]
                    slopes = _slopes(term, axis, (n, m), flags, call.dtype, gradients)
                told = call.term(axis, term, kind, bit)
                of_owners = call.numbers(statistics[k]), call.numbers(cotangents[k])
                terms += ((*told, *of_owners, slopes),)
            if plan.refers:
                call.made(term, statistics[k])
            k += 1
    dx = dy = pairs.x.new_empty(0)
    by_x = by_y = None
    if needs.x:
        dx = torch.zeros(pairs.x.shape, dtype=call.dtype, device="cpu")
        by_x = dx.data_ptr()
    if needs.y and pairs.y is not None:
        dy = torch.zeros(pairs.y.shape, dtype=call.dtype, device="cpu")
        by_y = dy.data_ptr()
    if by_x or by_y or gradients:
        _native.backward(*call.shared, terms, *call.settings, by_x, by_y)
    return dx, dy, gradients


def _slopes(
    term: Term,
    axis: int,
    shape: tuple[int, int],
    flags: Sequence[bool] | None,
    dtype: torch.dtype,
    gradients: list[Tensor],
) -> list[int | None]:
    """Where the gradient by each argument is written, or None; those tensors into `gradients`."""
    found: list[int | None] = []
    wanted = iter([True] * len(term.args) if flags is None else flags)
    for a in term.args:
        found.append(None)
        if not isinstance(a, (Tensor, Partner)):
            continue
        need = next(wanted)
        length = shape[1 - axis if isinstance(a, Partner) else axis]
        gradients.append(torch.zeros(length if need else 0, dtype=dtype, device="cpu"))
        if need:
            found[-1] = gradients[-1].data_ptr()
    return found


def bits_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    n, m = pairs.shape
    keeping = sum(term.keeps_bits for term in (*rows, *cols))
    return keeping, -(-n // _TILE), -(-m // _TILE)


class _Call:
    """Addresses of one call's tensors, and the tensors, which must live as long."""

    def __init__(self, pairs: Pairs) -> None:
        x, y, relation = pairs.x, pairs.y, pairs.relation
        if relation.addresses is None:
            relation.addresses = _addresses(relation)
        _, intervals, order_x, order_y = relation.addresses
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        # The statistics of the earlier terms of the same owners: by term, and in their order.
        self.earlier: dict[Term, tuple[int, int]] = {}
        self.places: list[tuple[int, int]] = []
        self._alive: list[Tensor] = []
        self._same = y is None
        of_x = self._set(x, pairs.scales.x, order_x)
        of_y = None if y is None else self._set(y, pairs.scales.y, order_y)
        self.shared = extension.isa(), of_x, of_y, intervals, self._similarities(pairs)
        # As torch does with its own memory.
        poison = torch._C._get_deterministic_algorithms()
        poison = poison and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        self.settings: tuple[int, bool] = torch.get_num_threads(), poison

    def term(self, axis: int, term: Term, kind: Kind, bit: int | None) -> tuple[Any, ...]:
        """What the extension is told of a term. Of the same set a column is a row."""
        args: Sequence[Any] = term.args
        if not kind.of_numbers:
            args = [a if type(a) is float else self._operand(a) for a in args]
        above = None if term.above is None else self._operand(term.above)
        below = None if term.below is None else self._operand(term.below)
        return kind.cpu_key, axis == 1 and not self._same, args, above, below, bit

    def made(self, term: Term, statistic: Tensor) -> int:
        """The address of a statistic, which later terms may refer to."""
        address = statistic.data_ptr()
        self.earlier[term] = address, 1
        self.places += ((address, 1),)
        return address

    def _operand(self, a: Any) -> tuple[int, int]:
        kind = type(a)
        if kind is Term:
            return self.earlier[a]
        if kind is EarlierAt:
            return self.places[a.place]
        if kind is Earlier:
            return self.earlier[a.term]
        assert kind is not Table, "no such term is served"
        values: Tensor = a.values if kind is Partner else a
        return self.numbers(values)

    def numbers(self, values: Tensor) -> tuple[int, int]:
        """(address, stride) of a vector; a number for all has stride 0."""
        stride = values.stride(0)
        if stride > 1:
            values, stride = values.contiguous(), 1
        self._alive += (values,)
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
        if NAME not in prepared:
            n, m = pairs.shape
            tiles = -(-n // _TILE) * -(-m // _TILE)
            count, kept = tiles * _TILE * _TILE, []
            if 0 < count * self.dtype.itemsize <= _KEPT:
                kept = [
                    torch.empty(count, dtype=self.dtype, device="cpu"),
                    torch.zeros(tiles, dtype=torch.uint8, device="cpu"),
                ]
            prepared[NAME] = kept
        kept = prepared[NAME]
        if not kept:
            return None
        return kept[0].data_ptr(), kept[1].data_ptr()


def _addresses(relation: Relation) -> tuple[Any, ...]:
    """What must live as long; intervals; order and validity of rows, and of columns."""
    alive = [z.contiguous() for z in relation.tensors()]
    order_x, order_y, begin, end, own, valid_x, valid_y = [z.data_ptr() for z in alive]
    return alive, (begin, end, own), (order_x, valid_x), (order_y, valid_y)
