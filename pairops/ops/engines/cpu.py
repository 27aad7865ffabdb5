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
from pairops.ops.terms.recipe import cpu_key
from pairops.ops.terms.term import Partner, Table, Term, Wanted

SERVED: frozenset[str] = frozenset(_native.terms() if _native else ())

NAME = "native"
DEVICE: str | None = "cpu"

_MOST = 2**31 - 1  # rows: csrc/math/accumulators.h counts columns in 32 bits


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
    bits = torch.zeros(bits_shape(pairs, rows, cols), dtype=torch.uint8)
    plane = iter(bits)
    statistics, arguments, terms = [], [], []
    for axis, term in [(0, term) for term in rows] + [(1, term) for term in cols]:
        owners = pairs.shape[axis]
        value = torch.full((owners,), term.monoid.fill, dtype=pairs.dtype)
        statistics.append(value)
        argument = None
        if term.keeps_argument:
            arguments.append(torch.full((owners,), -1, dtype=torch.int64))
            argument = arguments[-1].data_ptr()
        bit = next(plane) if term.keeps_bits else None
        terms.append((*call.term(axis, term, bit), value.data_ptr(), argument))
    _native.gather(*call.shared, terms, *call.settings)
    return statistics, arguments, bits


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
    plane = iter(() if bits is None else bits)
    gradients: list[Tensor] = []
    terms = []
    placed = [(0, term) for term in rows] + [(1, term) for term in cols]
    for k, (axis, term) in enumerate(placed):
        bit = next(plane, None) if term.keeps_bits else None
        wanted = iter(needs.args[k] if needs.args is not None else [True] * len(term.args))
        slopes: list[int | None] = []
        for a in term.args:
            slopes.append(None)
            if isinstance(a, float):
                continue
            along = 1 - axis if isinstance(a, Partner) else axis
            need = next(wanted)
            gradients.append(torch.zeros(pairs.shape[along] if need else 0, dtype=pairs.dtype))
            if need:
                slopes[-1] = gradients[-1].data_ptr()
        given = call.numbers(statistics[k]), call.numbers(cotangents[k]), slopes
        terms.append((*call.term(axis, term, bit), *given))
    dx, dy = (
        torch.zeros(z.shape, dtype=pairs.dtype) if needed else z.new_empty(0)
        for z, needed in ((pairs.x, needs[0]), (pairs.other, needs[1] and not same))
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
    tile = _native.TILE
    return keeping, (n + tile - 1) // tile, (m + tile - 1) // tile


class _Call:
    """Addresses of one call's tensors, and the tensors, which must live as long."""

    def __init__(self, pairs: Pairs) -> None:
        self._alive: list[Tensor] = []
        self._same = pairs.y is None
        x = self._set(pairs.x, pairs.scales.x, pairs.relation.order_x, pairs.relation.valid_x)
        y = None
        if pairs.y is not None:
            y = self._set(pairs.y, pairs.scales.y, pairs.relation.order_y, pairs.relation.valid_y)
        known = pairs.relation
        intervals = known.pos_begin, known.pos_end, known.self_index
        relation = tuple([self._address(z) for z in intervals])
        self.shared = extension.isa(), x, y, relation
        # As torch does with its own memory.
        poison = torch.are_deterministic_algorithms_enabled()
        poison = poison and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        self.settings = torch.get_num_threads(), poison

    def term(self, axis: int, term: Term, bits: Tensor | None) -> tuple[Any, ...]:
        """What the extension is told of a term. Of the same set a column is a row."""
        args = [
            a if isinstance(a, float) else self.numbers(a.values if isinstance(a, Partner) else a)
            for a in term.args
            if not isinstance(a, Table)  # no such term is served
        ]
        windows = [None if z is None else self.numbers(z) for z in (term.above, term.below)]
        by_column = axis == 1 and not self._same
        return cpu_key(term), by_column, args, *windows, None if bits is None else bits.data_ptr()

    def numbers(self, values: Tensor) -> tuple[int, int]:
        """(address, stride) of a vector; a number for all has stride 0."""
        if values.stride(0) != 0:
            return self._address(values), 1
        self._alive.append(values)
        return values.data_ptr(), 0

    def _set(
        self, z: Tensor, scale: Tensor | None, order: Tensor, keep: Tensor
    ) -> tuple[int | str | None, ...]:
        scales = None if scale is None else self._address(scale)
        shape = DTYPES[z.dtype], z.shape[0], z.shape[1]
        return self._address(z), *shape, scales, self._address(order), self._address(keep)

    def _address(self, tensor: Tensor) -> int:
        self._alive.append(tensor.contiguous())
        return self._alive[-1].data_ptr()
