"""Addresses of one call's tensors, as the extension takes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.bindings import extension
from pairops.ops.bindings.extension import DTYPES
from pairops.ops.bindings.extension import native as _native
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Relation, Scales
from pairops.ops.terms.term import Term

from .plan import Plan

TILE = _native.TILE if _native else 1
MOST_BYTES = 3 << 19  # of similarities, at most, that are saved from sweep to sweep


class CpuCall:
    """Arguments of both passes, and the tensors at their addresses, which must live as long."""

    def __init__(
        self,
        pairs: Pairs,
        rows: Sequence[Term],
        cols: Sequence[Term],
        plan: Plan,
        dtype: torch.dtype,
    ) -> None:
        x, y, relation, scales, cache = pairs.x, pairs.y, pairs.relation, pairs.scales, pairs.cache
        self._tensors: tuple[Any, ...] = ()
        if relation.addresses is None:
            relation.addresses = _of_relation(relation)
        if scales.addresses is None:
            scales.addresses = _of_scales(scales)
        # Another thread may do the same at the same time: this call holds what it took.
        saved, sets = cache.similarities, cache.sets
        if saved is None:
            saved = cache.similarities = _similarities(x, y, dtype)
        tensors, similarities = saved
        _, intervals, permutation_x, permutation_y = relation.addresses
        _, scale_x, scale_y = scales.addresses
        given: Any
        if sets is None:
            given = self._set(x), None if y is None else self._set(y)
        else:  # once, since the cache may outlive the embeddings
            *given, self._tensors = sets
            cache.sets = None
        self._tensors += tensors
        of_x = *given[0], scale_x, *permutation_x
        of_y: Any = None
        if y is not None:
            of_y = (*given[1], scale_y, *permutation_y)
        elif relation.entries is not None or plan.has_product:
            of_y = of_x  # neither a list nor a product is symmetric, so one set counts as two
        self.counts_as_two = y is None and of_y is not None
        measure = pairs.measure
        compared = None if measure is None else (measure.name, measure.anchors == 1)
        numbers = [
            a
            for term in (*rows, *cols)
            for a in (*term.args, term.above, term.below)
            if type(a) is float
        ]
        vectors = []
        if not plan.short:
            operands = [z for term in (*rows, *cols) for _, z, _ in term.operands()]
            if plan.has_product:
                operands = [z.contiguous() if z.dim() == 2 else z for z in operands]
                self._tensors += tuple(operands)
            vectors = [
                (z.data_ptr(), (0, *z.stride())[-1] if z.dim() < 2 else z.shape[1])
                for z in operands
            ]
        self.shared = (
            extension.isa(), of_x, of_y, compared, intervals, similarities, numbers, vectors,
        )  # fmt: skip
        # Poison results as torch poisons its own uninitialised memory.
        poison = torch._C._get_deterministic_algorithms()
        poison = poison and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        self.settings = torch.get_num_threads(), poison

    def _set(self, z: Tensor) -> tuple[int | str, ...]:
        if not z.is_contiguous():
            z = z.contiguous()
            self._tensors += (z,)
        return z.data_ptr(), DTYPES[z.dtype], *z.shape


def _of_relation(relation: Relation) -> tuple[Any, ...]:
    """Return tensors to hold; intervals; permutation and validity of rows, and of columns."""
    tensors = [z.contiguous() for z in relation.tensors()]
    permutation_x, permutation_y, begin, end, self_index, valid_x, valid_y, *entries = [
        z.data_ptr() for z in tensors
    ]
    intervals = begin, end, self_index, entries[0] if entries else None
    return tensors, intervals, (permutation_x, valid_x), (permutation_y, valid_y)


def _of_scales(scales: Scales) -> tuple[Any, ...]:
    tensors = [None if z is None else z.contiguous() for z in (scales.x, scales.y)]
    return tensors, *[None if z is None else z.data_ptr() for z in tensors]


def _similarities(x: Tensor, y: Tensor | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """Allocate the tiles of a small problem, and flags for those that are known; return both, and
    their addresses. The first sweep that needs a tile computes it."""
    n = x.shape[0]
    m = n if y is None else y.shape[0]
    tiles = -(-n // TILE) * -(-m // TILE)
    count = tiles * TILE * TILE
    if not 0 < count * dtype.itemsize <= MOST_BYTES:
        return (), None
    values = torch.empty(count, dtype=dtype, device="cpu")
    known = torch.zeros(tiles, dtype=torch.uint8, device="cpu")
    return (values, known), (values.data_ptr(), known.data_ptr())
