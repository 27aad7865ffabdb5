"""Launches of CUDA sweeps: the terms of each, its parts, and the tensors of its results."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pairops.ops.bindings import devices
from pairops.ops.bindings.cuda import Kernels, stream_of
from pairops.ops.bindings.devices import on_device
from pairops.ops.bindings.extension import DTYPES
from pairops.ops.engines.weight_parts import two_parts
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.term import Term, Wanted

from .descriptors import CudaTermView, Descriptors, band_only


class CudaCall:
    def __init__(self, pairs: Pairs, kernels: Kernels, prepared: Sequence[Tensor]) -> None:
        self.pairs, self.kernels = pairs, kernels
        self.same = pairs.y is None
        self._descriptors = Descriptors(pairs, kernels, prepared)
        x = pairs.x
        self._device, self._stream = on_device(x), stream_of(x)

    def forward(
        self, rows: Sequence[Term], cols: Sequence[Term], tile_masks: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        views = self._owning(rows, cols)
        new = self.pairs.x.new_empty
        values = [new(self.pairs.shape[r.owners], dtype=torch.float32) for r in views]
        arguments = [
            new(self.pairs.shape[r.owners], dtype=torch.int64) if r.term.keeps_argument else None
            for r in views
        ]
        masks_by_term = self._masks_by_term(views, tile_masks)
        with self._device:
            for axis in (0,) if self.same else (0, 1):
                if self.pairs.shape[axis]:
                    for group in self._groups([r for r in views if r.owners == axis], 1):
                        self._forward(axis, group, values, arguments, masks_by_term)
        return values, [a for a in arguments if a is not None]

    def backward(
        self,
        rows: Sequence[Term],
        cols: Sequence[Term],
        statistics: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        tile_masks: Tensor | None,
        needs: Wanted,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        views = self._owning(rows, cols)
        masks_by_term = {} if tile_masks is None else self._masks_by_term(views, tile_masks)
        given = list(zip(statistics, cotangents, strict=True))
        gradients: list[list[Tensor]] = [[], []]
        found: dict[tuple[int, int], Tensor] = {}
        groups = self._groups(views, 2 if self.same else 1)
        if len(groups) > 1:  # gradients are added up first
            needs = needs._replace(rounded=False)
        with self._device:
            for axis in (0,) if self.same else (0, 1):
                for group in groups:
                    gradient, sums = self._backward(
                        axis, group, given, masks_by_term, (needs.x, needs.y)[axis], needs.rounded
                    )
                    gradients[axis].append(gradient)
                    found |= sums
        empty = self.pairs.x.new_empty(0)
        dx, dy = (functools.reduce(torch.add, some) if some else empty for some in gradients)
        return dx, dy, self._in_order(views, found)

    def _groups(self, views: Sequence[CudaTermView], times: int) -> list[list[CudaTermView]]:
        """Group terms into sweeps, as many as a kernel's parameters hold in `times` views each."""
        groups: list[list[CudaTermView]] = []
        room = operands = 0
        for view in views:
            needed = times * (len(view.term.args) + len(view.term.windows()) + 2)
            if room < times or operands < needed:
                groups.append([])
                room, operands = self.kernels.module.MOST_TERMS, self.kernels.module.MOST_OPERANDS
            groups[-1].append(view)
            room, operands = room - times, operands - needed
        return groups

    def _owning(self, rows: Sequence[Term], cols: Sequence[Term]) -> list[CudaTermView]:
        """Return the owner view of every term. In one set a column is a row."""
        owners = [0] * len(rows) + [0 if self.same else 1] * len(cols)
        placed = zip((*rows, *cols), owners, strict=True)
        return [CudaTermView(k, term, axis, False) for k, (term, axis) in enumerate(placed)]

    def _masks_by_term(self, views: Sequence[CudaTermView], tile_masks: Tensor) -> dict[int, int]:
        """Return the address of the tile mask of each term that has one."""
        masks_by_term, at = {}, self._descriptors.address(tile_masks)
        for view in views:
            if view.term.has_tile_mask:
                masks_by_term[view.term_id] = at
                blocks, tiles = self.kernels.grid(*self._lengths(view.owners))
                at += blocks * tiles
        return masks_by_term

    def _lengths(self, axis: int) -> tuple[int, int]:
        return self.pairs.shape[axis], self.pairs.shape[1 - axis]

    def _forward(
        self,
        axis: int,
        group: list[CudaTermView],
        values: list[Tensor],
        arguments: list[Tensor | None],
        masks_by_term: dict[int, int],
    ) -> None:
        n, _ = self._lengths(axis)
        numbers = 2 * len(group)
        splits = self._splits(axis, group, 1, 4 * numbers * n)
        states = None
        if splits > 1:
            states = self._new((splits, numbers, n)).data_ptr()
        outputs = []
        for view in group:
            argument = arguments[view.term_id]
            outputs.append((
                values[view.term_id].data_ptr(),
                None if argument is None else argument.data_ptr(),
                masks_by_term.get(view.term_id),
            ))  # fmt: skip
        sweep = self._descriptors.sweep(axis, group, {}, {}, {})
        kernels = self.kernels
        kernels.module.forward(
            sweep, states, outputs, kernels.precision, kernels.d, kernels.hopper, splits,
            self._stream,
        )  # fmt: skip

    def _backward(
        self,
        axis: int,
        group: Sequence[CudaTermView],
        given: Sequence[tuple[Tensor, Tensor]],
        masks_by_term: dict[int, int],
        embeddings: bool,
        rounded: bool,
    ) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
        """Compute the gradient by the rows of `axis`, and those by arguments along them."""
        n, _ = self._lengths(axis)
        d, kernels = self.kernels.d, self.kernels
        views = [view._replace(transposed=view.owners != axis) for view in group]
        if self.same:
            views += [view._replace(transposed=True) for view in views]
        if not all(view.term_id in masks_by_term for view in group):
            masks_by_term = {}  # visit all tiles, whatever the others' masks say
        along: dict[tuple[int, bool, int], int] = {}  # by view and argument
        for view in views:
            for k, a in enumerate(view.term.args):
                if not isinstance(a, float) and isinstance(a, Partner) == view.transposed:
                    along[view.term_id, view.transposed, k] = len(along)
        nothing = self.pairs.x.new_empty(0, dtype=torch.float32)
        if not (embeddings or along):
            return nothing, {}
        if not n:
            by_vector = {(term_id, k): self._new((0,)) for term_id, _, k in along}
            return self._new((0, d)) if embeddings else nothing, by_vector
        slices = -(-d // kernels.slice) if embeddings else 1
        splits = self._splits(axis, views, slices, 4 * n * (d if embeddings else len(along)))
        gradient = self._new((splits, n, d)) if embeddings else nothing
        sums = self._new((splits, len(along), n))
        sweep = self._descriptors.sweep(axis, views, dict(enumerate(given)), along, masks_by_term)
        kernels.module.backward(
            sweep, gradient.data_ptr() if embeddings else None, sums.data_ptr(), len(along),
            bool(masks_by_term), self._weight_precision(), d, kernels.hopper, splits, self._stream,
        )  # fmt: skip
        if embeddings:
            gradient = self._normalize_backward(axis, gradient, rounded)
        by_vector = {
            (term_id, k): sums[0, at] if splits == 1 else sums[:, at].sum(0)
            for (term_id, _, k), at in along.items()
        }
        return gradient, by_vector

    def _weight_precision(self) -> str:
        """Return the precision of weights: "plain" and "fine" share packed rows and tile shapes."""
        return "fine" if two_parts(self.pairs) else self.kernels.precision

    def _in_order(
        self, views: Sequence[CudaTermView], found: dict[tuple[int, int], Tensor]
    ) -> list[Tensor]:
        return [
            found[view.term_id, k]
            for view in views
            for k, a in enumerate(view.term.args)
            if not isinstance(a, float)
        ]

    def _normalize_backward(self, axis: int, gradient: Tensor, rounded: bool) -> Tensor:
        pairs = self.pairs
        x, scale, valid = (
            (pairs.x, pairs.scales.x, pairs.relation.valid_x),
            (pairs.other, pairs.scales.y, pairs.relation.valid_y),
        )[axis]
        splits, n, d = gradient.shape
        if rounded:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        else:
            out = gradient[0] if splits == 1 else self._new((n, d))
        address = self._descriptors.address
        self.kernels.module.scale(
            gradient.data_ptr(), address(x), DTYPES[x.dtype],
            None if scale is None else address(scale), address(valid), n, d, splits,
            out.data_ptr(), rounded, self._stream,
        )  # fmt: skip
        return out

    def _splits(
        self, axis: int, views: Sequence[CudaTermView], slices: int, bytes_each: int
    ) -> int:
        if band_only(views):  # the width is unknown here; most bands have a few tiles
            return 1
        blocks, tiles = self.kernels.grid(*self._lengths(axis))
        at_a_time = devices.processors(self.pairs.x.device) * self.kernels.blocks_of_a_processor
        return devices.splits(blocks * slices, tiles, at_a_time, bytes_each)

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        self._descriptors.tensors.append(self.pairs.x.new_empty(shape, dtype=torch.float32))
        return self._descriptors.tensors[-1]
