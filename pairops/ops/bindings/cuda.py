"""The kernels of `csrc/cuda/`: whether there are any, the shape they serve a call in, and what they
make of embeddings before they are compared."""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import extension
from .devices import capability, float32_level, on_device
from .extension import DTYPES
from .schemas import library

KERNELS: Any = None  # the extension's
KINDS: dict[str, int] = {}  # of terms, that they are compiled for, and the number of each
DEVICE = "cuda"
# May Hopper's own sweeps serve? They are **not measured yet**, and off by default until they are.
HOPPER = os.environ.get("PAIROPS_HOPPER") == "1"
RELATED = "cuda"  # where `relate` is a kernel of these, whatever engine is asked next

MOST_RELATED = 4096  # rows that are counted rather than sorted, each against all labels


def install(kernels: Any, device: str = "cuda") -> None:
    """Tests install the same kernels as compiled for the CPU."""
    global KERNELS, KINDS, DEVICE
    KERNELS, DEVICE = kernels, device
    KINDS = {kind: number for number, kind in enumerate(kernels.kinds())}


if extension.native is not None and extension.native.cuda is not None:
    install(extension.native.cuda)


def precision(dtype: torch.dtype, level: str) -> str:
    """How embeddings and weights are multiplied, as float16: "plain", one each; "fine", weights are
    the sum of two; "split", embeddings too.

    A bfloat16 weight, of 8 bits, would add half to the error of a bfloat16 gradient; of 11 bits it
    adds nothing to speak of there, and as much again to the error of a float16 gradient. Two
    float16 hold 22 bits or more of a float32.
    """
    if dtype == torch.float32:
        return "plain" if level == "medium" else "split"
    return "fine" if dtype == torch.float16 else "plain"


def relates(x: Tensor, y: Tensor | None) -> bool:
    """Are there kernels that sort these rows by label, and arrange them on the way?"""
    if KERNELS is None or x.device.type != RELATED or x.dtype == torch.float64:
        return False
    if x.is_cuda and reason_against(x.device) is not None:
        return False
    return all(z is None or 0 < z.shape[0] <= MOST_RELATED for z in (x, y))


def reason_against(device: torch.device) -> str | None:
    """Why the kernels cannot run on this GPU, or None."""
    return _reason_against(device)


@functools.cache
def _reason_against(device: torch.device) -> str | None:
    known = capability(device)
    if known < (8, 0):
        return f"the GPU has compute capability {known[0]}.{known[1]}; the kernels need 8.0"
    with torch.cuda.device(device):
        reason: str | None = KERNELS.reason_against()
    return reason


reason_against._dynamo_marked_constant = True  # type: ignore[attr-defined]


def on_hopper(device: torch.device) -> bool:
    """Do Hopper's own sweeps serve on this device what they have a shape for?"""
    if not HOPPER or device.type != DEVICE:
        return False
    return DEVICE == "cpu" or (capability(device) == (9, 0) and _compiled_for_hopper())


def _compiled_for_hopper() -> bool:
    assert extension.native is not None
    return "90a" in (extension.native.features()["cuda_architectures"] or "")


class Kernels:
    """The shape of tiles in which embeddings (N, d) of this dtype are served.

    hopper: by Hopper's own sweeps, where there are some. Arrangements and slices are the same.
    width: of rows that are arranged already; torch's level of precision may have changed since.
    level: that which rows are arranged for; by default torch's.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        d: int,
        hopper: bool = False,
        width: int | None = None,
        level: str | None = None,
    ) -> None:
        self.module, self.d, self.hopper = KERNELS, d, hopper
        self.precision = precision(dtype, float32_level() if level is None else level)
        self._read_shape()
        if width is not None and width != self.width:
            self.precision = {"plain": "split", "split": "plain"}[self.precision]
            self._read_shape()
            assert width == self.width, "rows are arranged for these kernels"

    def _read_shape(self) -> None:
        shape = self.module.shape(self.precision, self.d, self.hopper)
        self.rows, self.columns, self.slice, self.parts, self.panels = shape
        self.width = self.parts * self.panels * self.module.PANEL

    def grid(self, owners: Any, partners: Any) -> tuple[Any, Any]:
        """Blocks of owners and tiles of partners."""
        return (owners + self.rows - 1) // self.rows, (partners + self.columns - 1) // self.columns

    def room(self, z: Tensor) -> "Arranged":
        """An arrangement of z (n, d) that is yet to be written."""
        n = z.shape[0]
        padded = -(-n // self.module.PADDED_ROWS) * self.module.PADDED_ROWS
        return Arranged(
            z.new_empty((padded, self.width), dtype=torch.float16),
            z.new_empty((2, padded), dtype=torch.float32),
            torch.empty(1, dtype=torch.int32, device=z.device),
        )


class Arranged(NamedTuple):
    """One set in sorted order, as it is multiplied; see csrc/cuda/around/pack.h."""

    rows: Tensor  # (padded, parts · panels · 64) float16, in panels
    scales: Tensor  # (2, padded) float32, r = high (1 + rest)
    kept: Tensor  # (1,) int32, how many are not ignored; those come first


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
    kernels = Kernels(z.dtype, d, level=level)
    arranged = kernels.room(z)
    if not n:
        arranged.kept.zero_()
    alive = [None if t is None else t.contiguous() for t in (z, scale, order, keep)]
    given, scales, *places = [_at(t) for t in alive]
    high, rest = arranged.scales
    written = [t.data_ptr() for t in (arranged.rows, high, rest, arranged.kept)]
    with on_device(z):
        kernels.module.arrange(
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
        kernels.module.relate(
            z.data_ptr(), DTYPES[z.dtype], n, d, _at(labels), _at(others),
            0 if others is None else others.shape[0], ignore_index, exclude_self, normalize,
            tuple([_at(place) for place in places]), _at(keep), _at(scale),
            kernels.panels, kernels.parts, tuple([_at(t) for t in (rows, high, rest, kept)]),
            stream_of(z),
        )  # fmt: skip


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def stream_of(z: Tensor) -> int:
    return torch.cuda.current_stream(z.device).cuda_stream if z.is_cuda else 0


library.impl("arrange", _arrange, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pairops::arrange",
    lambda z, *rest: list(Kernels(z.dtype, int(z.shape[1]), level=rest[-1]).room(z)),
)
