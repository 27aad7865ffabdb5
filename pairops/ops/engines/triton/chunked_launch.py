"""Launches of the chunked path: for each chunk a product, a kernel, and products of weights.

All buffers are allocated before the first chunk, and nothing asks the device, so that a CUDA graph
can capture a call. Gradients are summed in place.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.bindings.devices import on_device, processors
from pairops.ops.engines.bands import bands
from pairops.ops.engines.weight_parts import two_parts
from pairops.ops.pairs.pairs import Pairs

from . import codegen, weight_bounds
from .chunks import TILE, Chunk, Extent, extent, parts, pitch
from .codegen import Sweep
from .compile_time import static
from .kernels import accumulators
from .kernels import chunk as chunk_kernels
from .kernels.accumulators import INTERPRETED
from .launch import Found, TritonCall
from .operands import Side, TritonTermView
from .tile_configs import Configuration

_TILE = (32, 64) if INTERPRETED else TILE
_INTERPRETED = Extent(32, 64)  # rows and columns of a chunk, so that small calls have several


class Chunked(TritonCall):
    """A call whose similarities `torch.mm` multiplies, a chunk of rows and columns at a time."""

    def __init__(self, pairs: Pairs, config: Configuration) -> None:
        super().__init__(pairs, config)
        sizes = extent(*pairs.shape, config.precision, two_parts(pairs))
        if INTERPRETED:
            sizes = Extent(*map(min, pairs.shape, _INTERPRETED))
        self.extent = sizes

    def forward(self, placed: Sequence[TritonTermView]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute statistics and arguments of all terms."""
        terms_by_axis = [[p for p in placed if p.owners == axis] for axis in (0, 1)]
        sweeps_of = [
            codegen.forward(terms, **self._facts(axis)) if terms else None
            for axis, terms in enumerate(terms_by_axis)
        ]
        results = self.blank(placed)
        if not all(self.pairs.shape):
            return results.of(placed)
        # A state goes on from chunk to chunk.
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
        self,
        placed: Sequence[TritonTermView],
        cotangents: Sequence[Tensor],
        wanted: tuple[bool, bool],
    ) -> tuple[tuple[Tensor, Tensor], Found]:
        """Compute gradients by both sets, empty where they are not wanted, and by every vector."""
        # Sorted copies are made before there are sums, for their making takes memory too.
        device = self.operands.sides[0].embeddings.device
        along = []  # for each set: the sweep of its rows' gradients, and its vectors
        for axis in (0,) if self.same else (0, 1):
            views = self._views(axis, placed)
            weights = axis == 0 and any(wanted)
            sweep = codegen.backward(views, embeddings=weights, **self._facts(axis))
            along.append((sweep, self.where(views, len(placed))))
        totals = [
            torch.zeros((length if want else 0, self.config.padded), device=device)
            for want, length in zip(wanted, self.pairs.shape, strict=True)
        ]
        sums = [
            torch.zeros((self._parts[axis], len(where), self.pairs.shape[axis]), device=device)
            for axis, (_, where) in enumerate(along)
        ]
        units: Tensor | None = None
        if all(self.pairs.shape) and (any(wanted) or any(where for _, where in along)):
            with on_device(self.pairs.x):
                sweeps = [(sweep, bool(where)) for sweep, where in along]
                if any(wanted) and self.config.fit:
                    units = self._units(placed, cotangents, sweeps[0][0], wanted)
                self._add_chunks(sweeps, units, totals, sums, by_columns=not wanted[0])
        gradients = []
        for axis, want in enumerate(wanted):
            total = totals.pop(0)  # so that no more than one is there twice
            gradients.append(self._finished(axis, total, units) if want else total.view(-1))
        found = {
            at: sums[axis][:, k].sum(0)
            for axis, (_, where) in enumerate(along)
            for k, at in enumerate(where)
        }
        return (gradients[0], gradients[1]), found

    def _add_chunks(
        self,
        sweeps: Sequence[tuple[Sweep, bool]],  # along each axis; whether vectors have gradients
        units: Tensor | None,
        totals: Sequence[Tensor],
        sums: Sequence[Tensor],
        by_columns: bool,
    ) -> None:
        """Add the gradients of all chunks. The outer sums are moved once, and the inner ones once
        for each outer chunk."""
        weights = self._room_of_weights() if sweeps[0][0].facts.embeddings else []
        for chunk in self._chunks(by_columns):
            for axis in reversed(range(len(sweeps))):  # rows last: they overwrite s
                sweep, by_vector = sweeps[axis]
                if sweep.facts.embeddings:
                    self._multiply(chunk, sweep, units, weights, sums[axis], totals)
                elif by_vector:
                    self._write_weights(axis, chunk, sweep, None, [chunk.s], sums[axis])

    def _init_states(self, placed: Sequence[TritonTermView], axis: int) -> Tensor:
        """Return states without pairs (parts, numbers per row, rows)."""
        slots: list[Tensor] = []
        n = self.pairs.shape[axis]
        for p in placed:
            slots.append(torch.full((n,), p.term.monoid.neutral, device=self.pairs.x.device))
            if p.term.keeps_argument:
                nowhere = torch.full_like(slots[-1], accumulators.NOWHERE.value, dtype=torch.int32)
                slots.append(nowhere.view(torch.float32))
            elif not p.term.extreme:
                slots.append(torch.zeros_like(slots[-1]))
        return torch.stack(slots).expand(self._parts[axis], -1, -1).contiguous()

    @functools.cached_property
    def _parts(self) -> tuple[int, int]:
        """How many programs share a block of rows, and one of columns, of a chunk."""
        several = processors(self.pairs.x.device)
        n, m = self.pairs.shape
        rows, cols = self.extent
        return parts(rows, cols, several, 4 * n, _TILE), parts(cols, rows, several, 4 * m, _TILE)

    @functools.cached_property
    def _bands(self) -> tuple[Tensor, Tensor]:
        """The bands of positives of each block of rows, and of columns."""
        if self.operands.listed:
            return (self.pairs.relation.pos_begin,) * 2  # not read
        rows = bands(self.pairs, 0, _TILE[0])
        return rows, rows if self.same else bands(self.pairs, 1, _TILE[0])

    def _chunks(self, by_columns: bool = False) -> Iterator[Chunk]:
        x, y = (side.embeddings for side in self.operands.sides)
        apart = pitch(self.extent.cols)
        room = torch.empty((self.extent.rows, apart), device=x.device)
        rows, cols = (
            range(0, k, step) for k, step in zip(self.pairs.shape, self.extent, strict=True)
        )
        corners = [(i, j) for i in rows for j in cols]
        if by_columns:
            corners.sort(key=lambda corner: corner[1])
        for i, j in corners:
            a, b = x[i : i + self.extent.rows], y[j : j + self.extent.cols]
            s = room[: len(a), : len(b)]
            multiply(a, b.T, s)
            yield Chunk(s, i, len(a), apart, j, len(b), 1)

    def _run(
        self, kernel: Any, axis: int, chunk: Chunk, sweep: Sweep, *more: Any, **meta: Any
    ) -> None:
        rows, cols = self.operands.sides[axis], self.operands.sides[1 - axis]
        turned = chunk.along(axis)
        kernel[(turned.many_i + _TILE[0] - 1) // _TILE[0], self._parts[axis]](
            rows, cols, self.operands.relation, self._bands[axis], turned, self.operands.numbers(),
            *more,
            F=static(sweep.facts), R=_TILE[0], C=_TILE[1], **meta, **self.config.options,
        )  # fmt: skip

    def _write_weights(
        self,
        axis: int,
        chunk: Chunk,
        sweep: Sweep,
        units: Tensor | None,
        into: Sequence[Tensor],
        sums: Tensor,
    ) -> None:
        self._run(
            chunk_kernels.backward, axis, chunk, sweep, sums if units is None else units,
            into[0], into[-1], sums,
            VISIT=sweep.functions[0], P=static(self.config.precision),
        )  # fmt: skip

    def _room_of_weights(self) -> list[Tensor]:
        """Allocate the parts of a chunk's weights, the larger one first; none in float32, which
        take the place of s."""
        shape = self.extent.rows, pitch(self.extent.cols)
        count = 1 + self.config.precision.fine if self.config.fit else 0
        return [self.pairs.x.new_empty(shape, dtype=torch.float16) for _ in range(count)]

    def _units(
        self,
        placed: Sequence[TritonTermView],
        cotangents: Sequence[Tensor],
        sweep: Sweep,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        """Return the unit of each row's weights (N,), in sorted order; one of all rows if weights
        are also added up by columns."""
        rows, cols = self.operands.sides
        if weight_bounds.known(placed):
            bound = weight_bounds.by_row(placed, cotangents, self.same)
            bound = bound.float().expand(rows.n).index_select(0, rows.order)
            # Rows that are ignored may hold anything.
            of_rows, of_cols = (
                torch.where(torch.arange(z.n, device=bound.device) < z.valid_count, z.vectors[0], 0)
                for z in (rows, cols)
            )
            bound = bound * of_rows * weight_bounds.largest(of_cols)
        else:
            largest = torch.zeros((self._parts[0], rows.n), device=rows.vectors.device)
            for chunk in self._chunks():
                self._run(
                    chunk_kernels.largest_weight, 0, chunk, sweep, largest, VISIT=sweep.functions[0]
                )
            bound = largest.amax(0)
        units = weight_bounds.units(bound)
        return units.amin().expand(rows.n).contiguous() if wanted[1] else units

    def _multiply(
        self,
        chunk: Chunk,
        sweep: Sweep,
        units: Tensor | None,
        room: Sequence[Tensor],
        sums: Tensor,
        totals: Sequence[Tensor],
    ) -> None:
        """Add a chunk's weights times embeddings to the gradients, in sorted order."""
        x, y = (side.embeddings for side in self.operands.sides)
        weights = [z[: chunk.many_i, : chunk.many_j] for z in room] or [chunk.s]
        self._write_weights(0, chunk, sweep, units, weights, sums)
        for part in reversed(weights):  # the smaller one first
            if len(totals[0]):
                add_product(totals[0][chunk.rows], part, y[chunk.cols])
            if len(totals[1]):
                add_product(totals[1][chunk.cols], part.T, x[chunk.rows])

    def _finished(self, axis: int, total: Tensor, units: Tensor | None) -> Tensor:
        """Return the gradient by a set, in the caller's order and through its scale."""
        side: Side = self.operands.sides[axis]
        if self.operands.scaled:
            r = side.vectors[0]
            factor = torch.where(r == 0, 0.0, 1 / r)
            if units is not None:  # columns have the unit of all rows
                factor /= units if axis == 0 else units[:1]
            total *= factor.unsqueeze(1)
        gradient = torch.empty_like(total).index_copy_(0, side.order, total)
        d = self.pairs.x.shape[1]
        with on_device(self.pairs.x):
            return self._normalize_backward(axis, gradient[:, :d].contiguous().unsqueeze(0))


def multiply(a: Tensor, b: Tensor, into: Tensor) -> None:
    """Write a b in float32, whatever their dtype."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=into)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=into)
    else:
        torch.mm(a.float(), b.float(), out=into)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b in float32, whatever their dtype, in place."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
