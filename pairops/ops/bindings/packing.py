"""Embeddings as the CUDA kernels multiply them: sorted, float16, in panels; alone, or on the way of
sorting them by label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cuda import Kernels, installed, stream_of
from .devices import float32_level, on_device
from .extension import DTYPES
from .schemas import library

_Given = tuple[Tensor, Tensor | None, Tensor, Tensor]  # z (n, d), scale, order, keep


def arrange_both(x: _Given, y: _Given | None) -> list[Tensor]:
    """`Arranged` of one set, or of two one after the other. There is no gradient."""
    result: list[Tensor] = []
    for z, *rest in (x,) if y is None else (x, y):
        result += torch.ops.pairops.arrange(z.detach(), *rest, float32_level())
    return result


def _arrange(
    z: Tensor, scale: Tensor | None, order: Tensor, keep: Tensor, level: str
) -> list[Tensor]:
    n, d = z.shape
    kernels = Kernels(installed(), z.dtype, d, level=level)
    arranged = kernels.room(z)
    if not n:
        arranged.kept.zero_()
    alive = [None if t is None else t.contiguous() for t in (z, scale, order, keep)]
    given, scales, *places = [_at(t) for t in alive]
    high, rest = arranged.scales
    written = [t.data_ptr() for t in (arranged.rows, high, rest, arranged.kept)]
    with on_device(z):
        kernels.module.pack(
            given, DTYPES[z.dtype], n, d, scales, *places, kernels.panels, kernels.parts, *written,
            stream_of(z),
        )  # fmt: skip
    return list(arranged)


def relate(
    kernels: Kernels,
    z: Tensor,  # (n, d)
    labels: Tensor | None,  # (n,)
    others: Tensor | None,  # labels of the other set, if there is one
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
    places: Sequence[Tensor | None],  # order, lo, hi, own, positives, to be written
    keep: Tensor | None,
    scale: Tensor | None,
    arranged: Sequence[Tensor],
) -> None:
    z = z.contiguous()
    n, d = z.shape
    rows, (high, rest), kept = arranged
    with on_device(z):
        kernels.module.sort_by_label(
            z.data_ptr(), DTYPES[z.dtype], n, d, _at(labels), _at(others),
            0 if others is None else others.shape[0], ignore_index, exclude_self, normalize,
            tuple([_at(place) for place in places]), _at(keep), _at(scale),
            kernels.panels, kernels.parts, tuple([_at(t) for t in (rows, high, rest, kept)]),
            stream_of(z),
        )  # fmt: skip


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


library.impl("arrange", _arrange, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pairops::arrange",
    lambda z, *rest: list(Kernels(installed(), z.dtype, int(z.shape[1]), level=rest[-1]).room(z)),
)
