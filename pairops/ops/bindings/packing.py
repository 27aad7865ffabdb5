"""Packing of embeddings for the CUDA kernels: sorted, float16, in panels; also while sorting."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cuda import Kernels, installed, stream_of
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
    kernels = Kernels(installed(), z.dtype, d, level=level)
    packed = kernels.room(z)
    if not n:
        packed.valid_count.zero_()
    tensors = [None if t is None else t.contiguous() for t in (z, scale, order, valid)]
    given, scales, *addresses = [_at(t) for t in tensors]
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
    rows, (high, rest), valid_count = packed
    with on_device(z):
        kernels.module.sort_by_label(
            z.data_ptr(), DTYPES[z.dtype], n, d, _at(labels), _at(others),
            0 if others is None else others.shape[0], ignore_index, exclude_self, normalize,
            tuple([_at(z) for z in outputs]), _at(valid), _at(scale),
            kernels.panels, kernels.parts, tuple([_at(t) for t in (rows, high, rest, valid_count)]),
            stream_of(z),
        )  # fmt: skip


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


library.impl("pack", _pack, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pairops::pack",
    lambda z, *rest: list(Kernels(installed(), z.dtype, int(z.shape[1]), level=rest[-1]).room(z)),
)
