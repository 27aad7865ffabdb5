"""Packing of embeddings for the CUDA kernels: sorted, float16, in panels; also while sorting."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cuda import Kernels, kernels_of, stream_of
from .devices import float32_level, on_device
from .extension import DTYPES
from .schemas import library

_Given = tuple[Tensor, Tensor | None, Tensor, Tensor]  # z (n, d), scale, permutation, valid


def pack_both(x: _Given, y: _Given | None) -> list[Tensor]:
    """Return `Packed` of one set, or of two one after the other. There is no gradient."""
    result: list[Tensor] = []
    for z, *rest in (x,) if y is None else (x, y):
        result += torch.ops.pairops.pack(z.detach(), *rest, float32_level())
    return result


def _pack(
    z: Tensor, scale: Tensor | None, order: Tensor, valid: Tensor, level: str
) -> list[Tensor]:
    n, d = z.shape
    kernels = kernels_of(z.dtype, d, level=level)
    packed = kernels.room(z)
    if not n:
        packed.valid_count.zero_()
    tensors = [None if t is None else t.contiguous() for t in (z, scale, order, valid)]
    given, scales, *addresses = [None if t is None else t.data_ptr() for t in tensors]
    high, rest = packed.scales
    written = [t.data_ptr() for t in (packed.rows, high, rest, packed.valid_count)]
    with on_device(z):
        kernels.module.pack(
            given, DTYPES[z.dtype], n, d, scales, *addresses, kernels.panels, kernels.parts,
            *written, stream_of(z),
        )  # fmt: skip
    return list(packed)


def sort_by_label(
    kernels: Kernels,
    z: Tensor,  # (n, d)
    labels: Tensor | None,  # (n,)
    others: Tensor | None,  # (m,) labels of the other set
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
    outputs: Sequence[Tensor | None],  # permutation, pos_begin, pos_end, self_index, positives
    valid: Tensor | None,
    scale: Tensor | None,
    packed: Sequence[Tensor],
) -> None:
    z = z.contiguous()
    n, d = z.shape
    rows, scales, valid_count = packed
    high = scales.data_ptr()
    written = rows.data_ptr(), high, high + scales.nbytes // 2, valid_count.data_ptr()
    # One loop, since a function for each would be a call for each.
    given = (*outputs, labels, others, valid, scale)
    *positions, of_x, of_y, is_valid, scales_at = [
        None if t is None else t.data_ptr() for t in given
    ]
    with on_device(z):
        kernels.module.sort_by_label(
            z.data_ptr(), DTYPES[z.dtype], n, d, of_x, of_y,
            0 if others is None else others.shape[0], ignore_index, exclude_self, normalize,
            tuple(positions), is_valid, scales_at, kernels.panels, kernels.parts, written,
            stream_of(z),
        )  # fmt: skip


library.impl("pack", _pack, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pairops::pack",
    lambda z, *rest: list(kernels_of(z.dtype, int(z.shape[1]), level=rest[-1]).room(z)),
)
