"""The kernels of `csrc/cuda/`: whether there are any, the shape they serve a call in, and what they
make of embeddings before they are compared."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import extension
from .devices import float32_level
from .extension import DTYPES

KERNELS: Any = None  # the extension's
KINDS: frozenset[str] = frozenset()  # of terms, that they are compiled for
DEVICE = "cuda"


def install(kernels: Any, device: str = "cuda") -> None:
    """Tests install the same kernels as compiled for the CPU."""
    global KERNELS, KINDS, DEVICE
    KERNELS, KINDS, DEVICE = kernels, frozenset(kernels.kinds()), device


if extension.native is not None and extension.native.cuda is not None:
    install(extension.native.cuda)


def precision(dtype: torch.dtype) -> str:
    """How embeddings and weights are multiplied, as float16: "plain", one each; "fine", weights are
    the sum of two; "split", embeddings too.

    A bfloat16 weight, of 8 bits, would add half to the error of a bfloat16 gradient; of 11 bits it
    adds nothing to speak of there, and as much again to the error of a float16 gradient. Two
    float16 hold 22 bits or more of a float32.
    """
    if dtype == torch.float32:
        return "plain" if float32_level() == "medium" else "split"
    return "fine" if dtype == torch.float16 else "plain"


class Kernels:
    """The shape of tiles in which embeddings (N, d) of this dtype are served."""

    def __init__(self, dtype: torch.dtype, d: int) -> None:
        self.module, self.precision, self.d = KERNELS, precision(dtype), d
        shape = self.module.shape(self.precision, d)
        self.rows, self.columns, self.slice, self.parts, _, self.panels = shape

    def grid(self, owners: Any, partners: Any) -> tuple[Any, Any]:
        """Blocks of owners and tiles of partners."""
        return (owners + self.rows - 1) // self.rows, (partners + self.columns - 1) // self.columns

    def room(self, z: Tensor) -> "Arranged":
        """An arrangement of z (n, d) that is yet to be written."""
        n = z.shape[0]
        padded = -(-n // self.module.PADDED_ROWS) * self.module.PADDED_ROWS
        width = self.parts * self.panels * self.module.PANEL
        return Arranged(
            z.new_empty((padded, width), dtype=torch.float16),
            z.new_empty((2, padded), dtype=torch.float32),
            torch.empty(1, dtype=torch.int32, device=z.device),
        )


class Arranged(NamedTuple):
    """One set in sorted order, as it is multiplied; see csrc/cuda/arrange.h."""

    rows: Tensor  # (padded, parts · panels · 64) float16, in panels
    scales: Tensor  # (2, padded) float32, r = high (1 + rest)
    kept: Tensor  # (1,) int32, how many are not ignored; those come first


_library = torch.library.Library("pairops", "FRAGMENT")
_library.define("arrange(Tensor z, Tensor? scale, Tensor order, Tensor keep) -> Tensor[]")

_Given = tuple[Tensor, Tensor | None, Tensor, Tensor]  # z (n, d), scale, order, keep


def arrange_both(x: _Given, y: _Given | None) -> list[Tensor]:
    """`Arranged` of one set, or of two one after the other. There is no gradient."""
    result: list[Tensor] = []
    for z, *rest in (x,) if y is None else (x, y):
        result += torch.ops.pairops.arrange(z.detach(), *rest)
    return result


def _arrange(z: Tensor, scale: Tensor | None, order: Tensor, keep: Tensor) -> list[Tensor]:
    n, d = z.shape
    kernels = Kernels(z.dtype, d)
    arranged = kernels.room(z)
    if not n:
        arranged.kept.zero_()
    alive = [None if t is None else t.contiguous() for t in (z, scale, order, keep)]
    given, scales, *places = [None if t is None else t.data_ptr() for t in alive]
    high, rest = arranged.scales
    written = [t.data_ptr() for t in (arranged.rows, high, rest, arranged.kept)]
    with on_device(z):
        kernels.module.arrange(
            given, DTYPES[z.dtype], n, d, scales, *places, kernels.panels, kernels.parts, *written,
            stream_of(z),
        )  # fmt: skip
    return list(arranged)


def on_device(z: Tensor) -> contextlib.AbstractContextManager[object]:
    """Kernels are launched on the current device, which need not be that of z."""
    return torch.cuda.device(z.device) if z.is_cuda else contextlib.nullcontext()


def stream_of(z: Tensor) -> int:
    return torch.cuda.current_stream(z.device).cuda_stream if z.is_cuda else 0


_library.impl("arrange", _arrange, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pairops::arrange", lambda z, *_: list(Kernels(z.dtype, int(z.shape[1])).room(z))
)
