"""Rows sorted by label, their positives and their scales, in one op.

Sorted by label, the positives of a row are an interval of positions. `pairops::sort_by_label` is
one op, because a training step is mostly small: in torch these are two dozen calls, and each costs
more than the sorting of a few hundred labels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.autograd.node import by_sample
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension, packing
from pairops.ops.bindings.schemas import library
from pairops.ops.distributed.allocation import refusing

from .relation import Relation, Scales
from .similarity import constant_inverse_norm

_LAST = torch.iinfo(torch.int64).max


class Related(NamedTuple):
    """The results of the op `sort_by_label`, by name."""

    relation: Relation
    scales: Scales
    positives: Tensor  # (N,) int64
    panels: list[Tensor]  # the embeddings packed for the CUDA kernels, if those sorted


def related(
    found: list[Tensor], y: Tensor | None, ref_labels: Tensor | None, normalize: bool
) -> Related:
    """Name the tensors that `_outputs` describes."""
    positions, valid_x, *rest = found
    permutation_x, pos_begin, pos_end, self_index, positives = positions.unbind()
    permutation_y, valid_y = permutation_x, valid_x
    if ref_labels is not None:
        permutation_y, valid_y, *rest = rest
    relation = Relation(
        permutation_x, permutation_y, pos_begin, pos_end, self_index, valid_x, valid_y
    )
    scale_x = scale_y = None
    if normalize:
        scale_x, *rest = rest
        scale_y = scale_x
        if y is not None:
            scale_y, *rest = rest
    return Related(relation, Scales(scale_x, scale_y), positives, rest)


def _sort_by_label(
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
    level: str,
    scales: torch.dtype,
) -> list[Tensor]:
    if scales == torch.float64:  # compiled code writes scales in this dtype alone
        kernels = cuda_kernels.sorts_labels(x, y)
        if kernels or extension.serves(x):
            result = _outputs(
                x, y, labels, ref_labels, ignore_index, exclude_self, normalize, level, scales
            )
            write = _by_kernels if kernels else _by_cpu
            write(result, x, y, labels, ref_labels, ignore_index, exclude_self, normalize, level)
            return result
    return _by_torch(x, y, labels, ref_labels, ignore_index, exclude_self, normalize, scales)


def _outputs(
    x: Tensor,
    y: Tensor | None,
    _labels: Tensor | None,
    ref_labels: Tensor | None,
    _ignore_index: int | None,
    _exclude_self: bool,
    normalize: bool,
    level: str,
    scales: torch.dtype,
) -> list[Tensor]:
    """Allocate positions, whose rows `related` names, and valid_x; with labels of y, permutation_y
    and valid_y; then scales, then panels."""
    n = x.shape[0]
    result = [x.new_empty((5, n), dtype=torch.int64), x.new_empty(n, dtype=torch.bool)]
    if ref_labels is not None:
        result += [torch.empty_like(ref_labels), torch.empty_like(ref_labels, dtype=torch.bool)]
    if normalize:
        result += [z.new_empty(z.shape[0], dtype=scales) for z in (x, y) if z is not None]
    if scales == torch.float64 and cuda_kernels.sorts_labels(x, y):
        kernels = cuda_kernels.kernels_of(x.dtype, int(x.shape[1]), level=level)
        result += [t for z in (x, y) if z is not None for t in kernels.room(z)]
    return result


def _by_cpu(
    result: list[Tensor],
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    _normalize: bool,
    _level: str,
) -> None:
    embeddings = [z.contiguous() for z in (x, y) if z is not None]
    sets = [(z.data_ptr(), extension.DTYPES[z.dtype], *z.shape) for z in embeddings]
    whole = [None if z is None else z.contiguous() for z in (labels, ref_labels)]
    given = [None if z is None else z.data_ptr() for z in whole]
    outputs = [z.data_ptr() for z in result]
    extension.native.sort_by_label(
        extension.isa(), sets, given, ignore_index, exclude_self, outputs, torch.get_num_threads()
    )


def _by_kernels(
    result: list[Tensor],
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
    level: str,
) -> None:
    """Launch a kernel for x and one for y, which has its own permutation if it has labels."""
    relation, scales, positives, panels = related(result, y, ref_labels, normalize)
    kernels = cuda_kernels.kernels_of(x.dtype, int(x.shape[1]), level=level)
    of_x, of_y = (None if z is None else z.contiguous() for z in (labels, ref_labels))
    packing.sort_by_label(
        kernels, x, of_x, of_y, ignore_index, exclude_self, normalize,
        [
            relation.permutation_x, relation.pos_begin, relation.pos_end, relation.self_index,
            positives,
        ],
        relation.valid_x, scales.x, panels[:3],
    )  # fmt: skip
    if y is not None:
        permutation_y = None if of_y is None else relation.permutation_y
        valid_y = None if of_y is None else relation.valid_y
        packing.sort_by_label(
            kernels, y, of_y, None, ignore_index, exclude_self, normalize,
            [permutation_y, None, None, None, None], valid_y, scales.y, panels[3:],
        )  # fmt: skip


def _by_torch(
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
    scales: torch.dtype,
) -> list[Tensor]:
    order = torch.arange(x.shape[0], device=x.device)
    self_index = order if exclude_self else torch.full_like(order, -1)
    others: list[Tensor] = []
    if labels is None:
        begin, end, valid_x = order, order + 1, torch.ones_like(order, dtype=torch.bool)
        permutation_y, valid_y = order, valid_x
    else:
        key, valid_x = _key(labels, ignore_index)
        order = torch.argsort(key, stable=True)
        rows = columns = key[order]
        permutation_y, valid_y = order, valid_x
        if ref_labels is not None:
            ref_key, valid_y = _key(ref_labels, ignore_index)
            permutation_y = torch.argsort(ref_key, stable=True)
            columns = ref_key[permutation_y]
            others = [permutation_y, valid_y]
        begin = torch.searchsorted(columns, rows)
        end = torch.searchsorted(columns, rows, right=True)
    positives = Relation(order, permutation_y, begin, end, self_index, valid_x, valid_y).positives()
    result = [torch.stack([order, begin, end, self_index, positives]), valid_x, *others]
    if normalize:
        result += [
            torch.where(valid, constant_inverse_norm(z), 0.0).to(scales)
            for z, valid in ((x, valid_x), (y, valid_y))
            if z is not None
        ]
    return result


def _key(labels: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Return sort keys that put ignore_index last, and which rows are valid.

    Swapping two values is a bijection: keys are equal exactly if labels are, whatever their size.
    """
    if ignore_index is None:
        return labels, torch.ones_like(labels, dtype=torch.bool)
    ignored = labels == ignore_index
    key = torch.where(labels == _LAST, ignore_index, labels)
    return torch.where(ignored, _LAST, key), ~ignored


library.impl("sort_by_label", refusing(_sort_by_label), "CompositeExplicitAutograd")
torch.library.register_fake("pairops::sort_by_label", _outputs)


def _sort_batches(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[list[Tensor], list[Any]]:
    """Sort under vmap. Samples with the same labels keep one relation, since embeddings change
    nothing but scales, and later code may depend on the values of the relation."""
    _, _, labels_dim, ref_labels_dim, *_ = dims
    _, _, _, ref_labels, *_ = inputs
    related = 2 if ref_labels is None else 4
    alike = labels_dim is None and (ref_labels is None or ref_labels_dim is None)
    results, _ = by_sample(torch.ops.pairops.sort_by_label, info.batch_size, dims, inputs)
    shared = [z[0] if alike and k < related else z for k, z in enumerate(results)]
    return shared, [None if alike and k < related else 0 for k in range(len(shared))]


torch.library.register_vmap("pairops::sort_by_label", _sort_batches)
