"""Rows sorted by label: at once in an ordinary eager call on a CPU, else by an op."""

import torch
from torch import Tensor

from pairops.ops.autograd.node import followed_by_autograd_alone
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension
from pairops.ops.bindings.devices import float32_level, widest_float

from .intervals import related
from .relation import Cache, Relation, Scales


def sort_by_label(
    x: Tensor,  # (N, D)
    y: Tensor | None,  # (M, D)
    labels: Tensor | None,  # (N,) contiguous int64
    ref_labels: Tensor | None,  # (M,)
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
) -> tuple[Relation, Scales, Cache]:
    """Return the relation of `Pairs`, its scales, and a cache with the by-products.

    Without y the set is compared with itself, and `exclude_self` says whether a row's own position
    is named. Without labels y_i is the one positive of x_i. There is no gradient.
    """
    if x.is_cpu and extension.native is not None and followed_by_autograd_alone(x, y):
        # CUDA kernels sort rows of a CPU where tests compile them for it, and nowhere else.
        kernels = cuda_kernels.BACKEND
        emulated = kernels is not None and kernels.related == "cpu"
        if not (emulated and cuda_kernels.sorts_labels(x, y)):
            return _sort_on_cpu(x, y, labels, ref_labels, ignore_index, exclude_self, normalize)
    found = torch.ops.pairops.sort_by_label(
        x.detach(), None if y is None else y.detach(),
        labels, ref_labels, ignore_index, exclude_self, normalize, float32_level(),
        widest_float(x.device),
    )  # fmt: skip
    relation, scales, positives, panels = related(found, y, ref_labels, normalize)
    return relation, scales, Cache({"relation": panels} if panels else {}, positives=positives)


def _sort_on_cpu(
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
) -> tuple[Relation, Scales, Cache]:
    """Sort without an op, and note the addresses that the engine will ask for."""
    n, long = x.shape[0], torch.int64
    positions = torch.empty((5, n), dtype=long, device="cpu")
    valid_x = valid_y = torch.empty(n, dtype=torch.bool, device="cpu")
    order, valid = positions.data_ptr(), valid_x.data_ptr()
    tensors: tuple[Tensor, ...] = (positions, valid_x)
    outputs, of_y = [order, valid], (order, valid)
    permutation_x, begin, end, self_index, positives = positions.unbind()
    permutation_y = permutation_x
    given: list[int | None] = [None, None]
    if labels is not None:
        given[0] = labels.data_ptr()
    if ref_labels is not None:
        permutation_y = torch.empty_like(ref_labels)
        valid_y = torch.empty_like(ref_labels, dtype=torch.bool)
        tensors += (permutation_y, valid_y)
        of_y = permutation_y.data_ptr(), valid_y.data_ptr()
        outputs += of_y
        given[1] = ref_labels.data_ptr()
    x = x.contiguous()
    of_x = x.data_ptr(), extension.DTYPES[x.dtype], *x.shape
    other, sets = None, [of_x]
    if y is not None:
        y = y.contiguous()
        other = y.data_ptr(), extension.DTYPES[y.dtype], *y.shape
        sets += (other,)
    scale_x = scale_y = None
    at_x = at_y = None
    if normalize:
        scale_x = scale_y = torch.empty(n, dtype=torch.float64, device="cpu")
        at_x = at_y = scale_x.data_ptr()
        outputs += (at_x,)
        if y is not None:
            scale_y = torch.empty(y.shape[0], dtype=torch.float64, device="cpu")
            at_y = scale_y.data_ptr()
            outputs += (at_y,)
    complete, all_positive = extension.native.sort_by_label(
        extension.isa(), sets, given, ignore_index, exclude_self, outputs, torch.get_num_threads()
    )
    # Columns of another set are known to have positives only where they are paired one by one.
    all_positive = all_positive and (y is None or (labels is None and y.shape[0] == n))
    relation = Relation(
        permutation_x,
        permutation_y,
        begin,
        end,
        self_index,
        valid_x,
        valid_y,
        complete,
        all_positive,
    )
    row = 8 * n  # bytes
    intervals = order + row, order + 2 * row, order + 3 * row
    relation.addresses = tensors, intervals, (order, valid), of_y
    scales = Scales(scale_x, scale_y, ((scale_x, scale_y), at_x, at_y))
    return relation, scales, Cache(positives=positives, sets=(of_x, other, (x, y)))
