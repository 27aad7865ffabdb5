"""Launches of the CUDA engine: one call of the extension for each pass, and the tensors that the
kernels write.

Every allocation is torch's, addresses are taken afresh at each call, and nothing waits.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings import devices
from pairops.ops.bindings.cuda import Kernels, stream_of
from pairops.ops.bindings.devices import on_device
from pairops.ops.bindings.extension import DTYPES
from pairops.ops.engines.bands import bands
from pairops.ops.engines.weight_parts import two_parts
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term, Wanted

from .plans import CudaPlan, backward_splits, forward_layout


class SoftMean(NamedTuple):
    """A mean over anchors of Σ_k log(1 + exp R_k) / d_k, to be made with the statistics."""

    terms: list[int]
    divisors: list[float]
    slopes: bool  # also its gradient by each of these statistics


class ForwardResult(NamedTuple):
    """The results of a forward pass."""

    values: list[Tensor]
    arguments: list[Tensor]
    tile_masks: Tensor
    mean: Tensor | None
    slopes: list[Tensor]


class CudaCall:
    """What both passes of a call hand to the extension, and the tensors at these addresses, which
    live as long."""

    def __init__(
        self,
        pairs: Pairs,
        kernels: Kernels,
        prepared: Sequence[Tensor],
        plan: CudaPlan,
        rows: Sequence[Term],
        cols: Sequence[Term],
    ) -> None:
        self._pairs, self._kernels, self._plan = pairs, kernels, plan
        x, y = pairs.x, pairs.y
        n = x.shape[0]
        m = n if y is None else y.shape[0]
        self._lengths = n, m
        # Loops and not a function for each, since a small step is mostly calls.
        self._tensors = [z.contiguous() for z in (*prepared, *pairs.relation.tensors())]
        at = [z.data_ptr() for z in self._tensors]
        permutation_x, permutation_y, begin, end, self_index, self._valid_x, self._valid_y = at[-7:]
        # Scales are in two parts, the second after the first.
        of_x = at[0], at[1], at[1] + prepared[1].nbytes // 2, permutation_x, at[2], n
        of_y = band_x = band_y = None
        if y is not None:
            of_y = at[3], at[4], at[4] + prepared[4].nbytes // 2, permutation_y, at[5], m
            # In one set, where a row is among its positives, intervals are bands.
            band_x, band_y = [self._hold(bands(pairs, axis, kernels.rows)) for axis in (0, 1)]
        self._given = (
            kernels.d, kernels.hopper, kernels.panels, pairs.scales.x is not None, of_x, of_y,
            (begin, end, self_index), band_x, band_y,
        )  # fmt: skip
        self._numbers = [
            a
            for term in (*rows, *cols)
            for a in (*term.args, term.above, term.below)
            if type(a) is float
        ]
        self._vectors: list[tuple[int, int]] = []
        if plan.plan.vectors:
            self._vectors = self._of_owners(
                [z for term in (*rows, *cols) for _, z, _ in term.operands()]
            )
        self._device, self._stream = on_device(x), stream_of(x)
        self._processors = devices.processors(x.device)

    def forward(self, mean: SoftMean | None = None) -> ForwardResult:
        pairs, plan, lengths = self._pairs, self._plan, self._lengths
        new, count = pairs.x.new_empty, plan.plan.count
        layout = forward_layout(plan, self._kernels, *lengths, self._processors)
        values = [new(lengths[axis], dtype=torch.float32) for axis in plan.owners]
        arguments: list[Tensor] = []
        attained: list[int | None] = [None] * count
        for k in plan.plan.extremes:
            arguments.append(new(lengths[plan.owners[k]], dtype=torch.int64))
            attained[k] = arguments[-1].data_ptr()
        tile_masks = new(layout.mask_bytes, dtype=torch.uint8)
        at = tile_masks.data_ptr()
        states = loss = summary = None
        if layout.states:
            states = new(layout.states, dtype=torch.float32)
        addresses = [z.data_ptr() for z in values]
        slopes: list[Tensor] = []
        if mean is not None:
            loss = new((), dtype=torch.float32)
            if mean.slopes:
                slopes = [torch.empty_like(values[k]) for k in mean.terms]
            summary = (
                [(addresses[k], divisor) for k, divisor in zip(mean.terms, mean.divisors)],  # noqa: B905
                None if pairs.complete else self._valid_x,
                loss.data_ptr(),
                [z.data_ptr() for z in slopes],
            )
        masks = [None if first is None else at + first for first in layout.masks]
        with self._device:
            self._kernels.module.forward(
                plan.compiled, self._kernels.precision, self._given, self._numbers, self._vectors,
                addresses, attained, masks, None if states is None else states.data_ptr(),
                layout.splits, summary, self._stream,
            )  # fmt: skip
        return ForwardResult(values, arguments, tile_masks, loss, slopes)

    def backward(
        self,
        statistics: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        tile_masks: Tensor | None,
        needs: Wanted,
        factor: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Compute gradients. cotangents: that of a term without gradient is not read.  factor: ()
        what the gradients by x and y are multiplied by; then no argument is a tensor."""
        pairs, plan, kernels, lengths = self._pairs, self._plan, self._kernels, self._lengths
        wanted, d, new = (needs.x, needs.y), kernels.d, pairs.x.new_empty
        rounded = needs.rounded and plan.one_pass
        parts = backward_splits(plan, kernels, *lengths, *wanted, self._processors)
        masks = self._masks(tile_masks)
        gradients: list[list[Tensor]] = [[], []]
        found: dict[tuple[int, int], Tensor] = {}
        passes: list[Any] = []
        sums_of: list[Tensor | None] = []
        for each, splits in zip(plan.passes, parts):  # noqa: B905
            n, embeddings = lengths[each.axis], wanted[each.axis]
            gradient = out = sums = None
            if embeddings:
                out = self._result(each.axis, rounded)
                gradients[each.axis].append(out)
            if each.sums:
                sums = self._new((splits, len(each.sums), n))
            sums_of.append(sums)
            if not n or (out is None and sums is None):
                passes.append(None)
                continue
            if out is not None:
                gradient = out if splits == 1 and not rounded else self._new((splits, n, d))
            passes.append((
                None if gradient is None else gradient.data_ptr(),
                None if sums is None else sums.data_ptr(), splits,
                None if out is None else out.data_ptr(), rounded,
            ))  # fmt: skip
        multiple = None if factor is None else self._hold(factor)
        values, slopes = self._of_owners(statistics), self._of_owners(cotangents)
        with self._device:
            kernels.module.backward(
                plan.compiled, self._weight_precision(), self._given, self._numbers, self._vectors,
                values, slopes, masks, self._scaled(), passes, multiple, self._stream,
            )  # fmt: skip
        for each, splits, sums in zip(plan.passes, parts, sums_of):  # noqa: B905
            if sums is not None:
                for at, argument in enumerate(each.sums):
                    found[argument] = sums[0, at] if splits == 1 else sums[:, at].sum(0)
        dx, dy = [
            functools.reduce(torch.add, some) if some else new(0, dtype=torch.float32)
            for some in gradients
        ]
        return dx, dy, [found[argument] for argument in plan.by_tensors]

    def _masks(self, tile_masks: Tensor | None) -> list[int | None]:
        """Return the address of each term's tile mask, None where it has none."""
        if tile_masks is None or not self._plan.plan.keeping:
            return [None] * self._plan.plan.count
        at = self._hold(tile_masks)
        layout = forward_layout(self._plan, self._kernels, *self._lengths, self._processors)
        return [None if first is None else at + first for first in layout.masks]

    def _weight_precision(self) -> str:
        """Return the precision of weights: "plain" and "fine" share packed rows and tile shapes."""
        return "fine" if two_parts(self._pairs) else self._kernels.precision

    def _result(self, axis: int, rounded: bool) -> Tensor:
        x = self._pairs.x if axis == 0 or self._pairs.y is None else self._pairs.y
        dtype = x.dtype if rounded else torch.float32
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)

    def _scaled(self) -> tuple[Any, ...]:
        """Return both sets as gradients are taken through their scales."""
        x, y, scales, dtype = (
            self._pairs.x,
            self._pairs.y,
            self._pairs.scales,
            DTYPES[self._pairs.x.dtype],
        )
        scale_x = None if scales.x is None else self._hold(scales.x)
        of_x = self._hold(x), dtype, scale_x, self._valid_x
        if y is None:
            return of_x, of_x
        scale_y = None if scales.y is None else self._hold(scales.y)
        return of_x, (self._hold(y), dtype, scale_y, self._valid_y)

    def _of_owners(self, tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Return the address and the stride of each: one value per owner, or one for all."""
        strides = [min(z.stride(0), 1) for z in tensors]
        held = [z.contiguous() if stride else z for z, stride in zip(tensors, strides)]  # noqa: B905
        self._tensors += held
        return [(z.data_ptr(), stride) for z, stride in zip(held, strides)]  # noqa: B905

    def _hold(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        self._tensors.append(self._pairs.x.new_empty(shape, dtype=torch.float32))
        return self._tensors[-1]
