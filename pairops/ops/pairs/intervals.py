"""What every call has to know of its rows before it compares them: order, positives, scales.

Sorted by label, the positives of a row are an interval of places. `pairops::relate` is one op,
because a training step is mostly small: in torch these are two dozen calls, and each costs more
than the sorting of a few hundred labels.
"""

from typing import Any

import torch
from torch import Tensor

from pairops.ops.autograd.node import by_sample
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension
from pairops.ops.bindings.devices import float32_level, widest_float
from pairops.ops.distributed.allocation import refusing

from .similarity import constant_inverse_norm

_LAST = torch.iinfo(torch.int64).max

Known = tuple[
    Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]

Prepared = dict[str, list[Tensor]]  # by engine, as in `Pairs`

_library = torch.library.Library("pairops", "FRAGMENT")
_library.define(
    "relate(Tensor x, Tensor? y, Tensor? labels, Tensor? ref_labels, SymInt? ignore_index, "
    "bool exclude_self, bool normalize, str level, ScalarType scales) -> Tensor[]"
)


def relate(
    x: Tensor,  # (N, D)
    y: Tensor | None,  # (M, D)
    labels: Tensor | None,  # (N,) contiguous int64
    ref_labels: Tensor | None,  # (M,)
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
) -> tuple[Known, Prepared]:
    """scale_x, scale_y, order_x, order_y, lo, hi, own, keep_x, keep_y, counted: as in `Pairs`. And
    what was prepared on the way.

    Without y the set is compared with itself, and `exclude_self` says whether a row's own place is
    named. Without labels y_i is the one positive of x_i. There is no gradient.
    """
    places, keep_x, *rest = torch.ops.pairops.relate(
        x.detach(), None if y is None else y.detach(),
        labels, ref_labels, ignore_index, exclude_self, normalize, float32_level(),
        widest_float(x.device),
    )  # fmt: skip
    order_x, lo, hi, own, positives = places.unbind()
    order_y, keep_y = order_x, keep_x
    if ref_labels is not None:
        order_y, keep_y, *rest = rest
    scale_x = scale_y = None
    if normalize:
        scale_x, *rest = rest
        scale_y = scale_x
        if y is not None:
            scale_y, *rest = rest
    known = scale_x, scale_y, order_x, order_y, lo, hi, own, keep_x, keep_y, positives
    return known, {"relation": rest} if rest else {}


def _relate(*call: Any) -> list[Tensor]:
    x, y, labels, ref_labels, ignore_index, exclude_self, *_, scales = call
    result = _outputs(*call)
    if scales != torch.float64:  # compiled code writes scales in float64
        return _by_torch(*call)
    if cuda_kernels.relates(x, y):
        _by_kernels(result, *call)
        return result
    if not extension.serves(x):
        return _by_torch(*call)
    embeddings = [z.contiguous() for z in (x, y) if z is not None]
    sets = [(z.data_ptr(), extension.DTYPES[z.dtype], *z.shape) for z in embeddings]
    whole = [None if z is None else z.contiguous() for z in (labels, ref_labels)]
    given = [None if z is None else z.data_ptr() for z in whole]
    outputs = [z.data_ptr() for z in result]
    extension.native.relate(
        extension.isa(), sets, given, ignore_index, exclude_self, outputs, torch.get_num_threads()
    )
    return result


def _outputs(*call: Any) -> list[Tensor]:
    x, y, _, ref_labels, _, _, normalize, level, scales = call
    n = x.shape[0]
    result = [x.new_empty((5, n), dtype=torch.int64), x.new_empty(n, dtype=torch.bool)]
    if ref_labels is not None:
        result += [torch.empty_like(ref_labels), torch.empty_like(ref_labels, dtype=torch.bool)]
    if normalize:
        result += [z.new_empty(z.shape[0], dtype=scales) for z in (x, y) if z is not None]
    if scales == torch.float64 and cuda_kernels.relates(x, y):
        kernels = cuda_kernels.Kernels(x.dtype, int(x.shape[1]), level=level)
        result += [t for z in (x, y) if z is not None for t in kernels.room(z)]
    return result


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
    _scales: torch.dtype,
) -> None:
    """One launch for x, one for y, which has an order of its own if it has labels."""
    places, keep, *rest = result
    own_places: list[Tensor | None] = [*places.unbind()]
    of_y: tuple[list[Tensor | None], Tensor | None] = ([None] * 5, None)
    if ref_labels is not None:
        order_y, keep_y, *rest = rest
        of_y = [order_y, None, None, None, None], keep_y
    scales = [rest.pop(0) if normalize and z is not None else None for z in (x, y)]
    kernels = cuda_kernels.Kernels(x.dtype, int(x.shape[1]), level=level)
    of_x, of_ref = (None if z is None else z.contiguous() for z in (labels, ref_labels))
    own = ((own_places, keep), x, of_x, of_ref), (of_y, y, of_ref, None)
    for k, ((ordered, kept), z, sorted_by, others) in enumerate(own):
        if z is not None:
            cuda_kernels.relate(
                kernels, z, sorted_by, others, ignore_index, exclude_self, normalize,
                ordered, kept, scales[k], rest[3 * k : 3 * k + 3],
            )  # fmt: skip


def _by_torch(
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
    _level: str,
    scales: torch.dtype,
) -> list[Tensor]:
    order = torch.arange(x.shape[0], device=x.device)
    own = order if exclude_self else torch.full_like(order, -1)
    others: list[Tensor] = []
    if labels is None:
        lo, hi, keep_x = order, order + 1, torch.ones_like(order, dtype=torch.bool)
        keep_y = keep_x
    else:
        key, keep_x = _key(labels, ignore_index)
        order = torch.argsort(key, stable=True)
        rows = columns = key[order]
        keep_y = keep_x
        if ref_labels is not None:
            ref_key, keep_y = _key(ref_labels, ignore_index)
            order_y = torch.argsort(ref_key, stable=True)
            columns = ref_key[order_y]
            others = [order_y, keep_y]
        lo = torch.searchsorted(columns, rows)
        hi = torch.searchsorted(columns, rows, right=True)
    positives = count_positives(order, lo, hi, own, keep_x)
    result = [torch.stack([order, lo, hi, own, positives]), keep_x, *others]
    if normalize:
        result += [
            torch.where(keep, constant_inverse_norm(z), 0.0).to(scales)
            for z, keep in ((x, keep_x), (y, keep_y))
            if z is not None
        ]
    return result


def count_positives(order_x: Tensor, lo: Tensor, hi: Tensor, own: Tensor, keep_x: Tensor) -> Tensor:
    """(N,) in the caller's order; a row itself is none, and an ignored row has none."""
    return to_caller(hi - lo - ((own >= lo) & (own < hi)).long(), order_x, keep_x)


def to_caller(counts: Tensor, order_x: Tensor, keep_x: Tensor) -> Tensor:
    """Counts of rows in sorted order, in the caller's; 0 for an ignored row."""
    return torch.empty_like(counts).scatter(0, order_x, counts) * keep_x


def _key(labels: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Sort keys that put ignore_index last, and who is kept.

    Swapping two values is a bijection: keys are equal exactly if labels are, whatever their size.
    """
    if ignore_index is None:
        return labels, torch.ones_like(labels, dtype=torch.bool)
    ignored = labels == ignore_index
    key = torch.where(labels == _LAST, ignore_index, labels)
    return torch.where(ignored, _LAST, key), ~ignored


_library.impl("relate", refusing(_relate), "CompositeExplicitAutograd")
torch.library.register_fake("pairops::relate", _outputs)


def _relate_batches(info: Any, dims: tuple[Any, ...], *call: Any) -> tuple[list[Tensor], list[Any]]:
    """Under vmap. Embeddings alone change scales, so samples with the same labels stay related
    alike: what is made of the relation may depend on its values."""
    ref_labels = call[3]
    related = 2 if ref_labels is None else 4
    alike = dims[2] is None and (ref_labels is None or dims[3] is None)
    results, _ = by_sample(torch.ops.pairops.relate, info.batch_size, dims, call)
    shared = [z[0] if alike and k < related else z for k, z in enumerate(results)]
    return shared, [None if alike and k < related else 0 for k in range(len(shared))]


torch.library.register_vmap("pairops::relate", _relate_batches)
