"""Launches of the chunked path: a product, a kernel, and products of weights for each chunk."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings.devices import on_device

from . import codegen
from .codegen import Sweep
from .kernels import accumulators
from .kernels import chunk as chunk_kernels
from .kernels.accumulators import INTERPRETED
from .launch import Found, TritonCall, static
from .operands import Side, TritonTermView

_ROOM = 48 << 20  # bytes of s and of weights at a time
_TILE = (64, 64) if INTERPRETED else (16, 128)
_PEAK = 15  # the largest weight of a chunk is brought below 2^_PEAK; float16 ends at 2^16


class Chunk(NamedTuple):
    """A chunk as `kernels/chunk.py` sees it, along its rows or, transposed, along its columns."""

    s: Tensor
    first_i: int
    many_i: int
    stride_i: int
    first_j: int
    many_j: int
    stride_j: int

    def along(self, axis: int) -> "Chunk":
        if axis == 0:
            return self
        return Chunk(
            self.s, self.first_j, self.many_j, self.stride_j,
            self.first_i, self.many_i, self.stride_i,
        )  # fmt: skip


class Chunked(TritonCall):
    """A call whose similarities `torch.mm` multiplies, a chunk of rows at a time."""

    def forward(self, placed: Sequence[TritonTermView]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute statistics and arguments of all terms."""
        terms_by_axis = [[p for p in placed if p.owners == axis] for axis in (0, 1)]
        sweeps_of = [
            codegen.forward(terms, **self._facts(axis)) if terms else None
            for axis, terms in enumerate(terms_by_axis)
        ]
        results = self.blank(placed)
        n, m = self.pairs.shape
        if not (n and m):
            return results.of(placed)
        # A row is whole in its chunk; a column's state goes on from chunk to chunk.
        states = [
            self._init_states(terms, axis) if terms else None
            for axis, terms in enumerate(terms_by_axis)
        ]
        with on_device(self.pairs.x):
            for chunk in self._chunks():
                for axis, (sweep, state) in enumerate(zip(sweeps_of, states, strict=True)):
                    if sweep is None:
                        continue
                    init, visit, merge, _ = sweep.functions
                    functions = {"INIT": init, "VISIT": visit, "MERGE": merge}
                    self._run(chunk_kernels.forward, axis, chunk, sweep, state, **functions)
            for axis, (sweep, state) in enumerate(zip(sweeps_of, states, strict=True)):
                if sweep is not None and state is not None:
                    self.finalize_states(axis, terms_by_axis[axis], sweep, state, results)
        return results.of(placed)

    def backward(
        self, placed: Sequence[TritonTermView], wanted: tuple[bool, bool]
    ) -> tuple[tuple[Tensor, Tensor], Found]:
        """Compute gradients by both sets, empty where they are not wanted, and by every vector."""
        nothing = self.pairs.x.new_empty(0, dtype=torch.float32)
        n, m = self.pairs.shape
        device = self.pairs.x.device
        along = []  # for each set: the sweep of its rows' gradients, and its vectors
        for axis in (0,) if self.same else (0, 1):
            views = self._views(axis, placed)
            weights = axis == 0 and any(wanted)
            sweep = codegen.backward(views, embeddings=weights, **self._facts(axis))
            along.append((sweep, self.where(views, len(placed))))
        totals = [
            torch.zeros((length, self.config.padded), device=device) if want else nothing
            for want, length in zip(wanted, (n, m), strict=True)
        ]
        sums = [
            torch.zeros((len(where), self.pairs.shape[axis]), device=device)
            for axis, (_, where) in enumerate(along)
        ]
        if n and m and (any(wanted) or any(where for _, where in along)):
            with on_device(self.pairs.x):
                for chunk in self._chunks():
                    for axis in reversed(range(len(along))):  # rows last: they overwrite s
                        sweep, where = along[axis]
                        if sweep.facts.embeddings:
                            self._multiply(chunk, sweep, sums[axis], totals)
                        elif where:
                            self._weights(axis, chunk, sweep, None, [chunk.s], sums[axis])
        gradients = [
            self._finished(axis, total) if want else nothing
            for axis, (total, want) in enumerate(zip(totals, wanted, strict=True))
        ]
        found = {
            at: sums[axis][k] for axis, (_, where) in enumerate(along) for k, at in enumerate(where)
        }
        return (gradients[0], gradients[1]), found

    def _init_states(self, placed: Sequence[TritonTermView], axis: int) -> Tensor:
        """Return states without pairs (1, numbers per row, rows)."""
        slots: list[Tensor] = []
        n = self.pairs.shape[axis]
        for p in placed:
            slots.append(torch.full((n,), p.term.monoid.neutral, device=self.pairs.x.device))
            if p.term.keeps_argument:
                nowhere = torch.full_like(slots[-1], accumulators.NOWHERE.value, dtype=torch.int32)
                slots.append(nowhere.view(torch.float32))
            elif not p.term.extreme:
                slots.append(torch.zeros_like(slots[-1]))
        return torch.stack(slots).unsqueeze(0)

    def _chunk_rows(self) -> int:
        n, m = self.pairs.shape
        if self.pairs.x.device.type == "cpu":
            return max(1, min(n, 48))
        rows = _ROOM // (8 * max(m, 1))
        return max(1, min(n, max(16, rows // 128 * 128 if rows >= 128 else rows)))

    def _chunks(self) -> Iterator[Chunk]:
        rows = self._chunk_rows()
        x, y = (side.embeddings for side in self.operands.sides)
        n, m = self.pairs.shape
        for begin in range(0, n, rows):
            s = product(x[begin : begin + rows], y.T)
            yield Chunk(s, begin, len(s), m, 0, m, 1)

    def _run(
        self, kernel: Any, axis: int, chunk: Chunk, sweep: Sweep, *more: Any, **meta: Any
    ) -> None:
        rows, cols = self.operands.sides[axis], self.operands.sides[1 - axis]
        transposed = chunk.along(axis)
        kernel[(transposed.many_i + _TILE[0] - 1) // _TILE[0],](
            rows, cols, self.operands.relation, transposed, self.operands.numbers(), *more,
            F=static(sweep.facts), R=_TILE[0], C=_TILE[1], **meta, **self.config.options,
        )  # fmt: skip

    def _weights(
        self,
        axis: int,
        chunk: Chunk,
        sweep: Sweep,
        times: Tensor | None,
        into: Sequence[Tensor],
        sums: Tensor,
    ) -> None:
        self._run(
            chunk_kernels.backward, axis, chunk, sweep, sums if times is None else times,
            into[0], into[-1], sums,
            VISIT=sweep.functions[0], P=static(self.config.precision),
        )  # fmt: skip

    def _multiply(self, chunk: Chunk, sweep: Sweep, sums: Tensor, totals: Sequence[Tensor]) -> None:
        """Add a chunk's weights times embeddings to the gradients, in sorted order."""
        x, y = (side.embeddings for side in self.operands.sides)
        chunk_rows = slice(chunk.first_i, chunk.first_i + chunk.many_i)
        precision = self.config.precision
        pieces = [chunk.s]
        times = None
        if precision.fit:
            programs = (chunk.many_i + _TILE[0] - 1) // _TILE[0]
            largest = chunk.s.new_empty(programs)
            self._run(
                chunk_kernels.largest_weight, 0, chunk, sweep, largest, VISIT=sweep.functions[0]
            )
            times = _unit(torch.where(largest.isfinite(), largest, 0.0).amax())
            pieces = [
                torch.empty_like(chunk.s, dtype=torch.float16) for _ in range(1 + precision.fine)
            ]
        self._weights(0, chunk, sweep, times, pieces, sums)
        for piece in reversed(pieces):  # the smaller part first
            if totals[0].dim() == 2:
                totals[0][chunk_rows] += _in_units(product(piece, y), times)
            if totals[1].dim() == 2:
                totals[1].add_(_in_units(product(piece.T, x[chunk_rows]), times))

    def _finished(self, axis: int, total: Tensor) -> Tensor:
        """Return the gradient by a set, in the caller's order and through its scale."""
        side: Side = self.operands.sides[axis]
        if self.operands.scaled:
            r = side.vectors[0]
            total *= torch.where(r == 0, 0.0, 1 / r).unsqueeze(1)
        gradient = torch.empty_like(total).index_copy(0, side.order, total)
        d = self.pairs.x.shape[1]
        with on_device(self.pairs.x):
            return self._normalize_backward(axis, gradient[:, :d].contiguous().unsqueeze(0))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b in float32, whatever their dtype."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _unit(largest: Tensor) -> Tensor:
    """Return the power of two that brings `largest` into the middle of float16's range."""
    return torch.exp2((_PEAK - torch.frexp(largest).exponent).clamp(-126, 126).float())


def _in_units(value: Tensor, times: Tensor | None) -> Tensor:
    """Return `value`, which may be overwritten, in units of 1 / times."""
    return value if times is None else value.div_(times)
