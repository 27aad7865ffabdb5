"""CUDA kernels of `csrc/cuda/`: the backend, if there is one, and tile shapes for a call."""

import functools
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import extension
from .devices import blocks_of_a_processor, capability, float32_level

MOST_RELATED = 4096  # rows that are counted rather than sorted, each against all labels


@dataclass(frozen=True, eq=False)
class Backend:
    """Compiled kernels, and the terms and devices that they serve."""

    module: Any  # the part of the extension
    kinds: dict[str, int]  # the number of each kind of term that they are compiled for
    device: str  # the device type of the tensors that they take
    related: str  # and of those that `sort_by_label` is a kernel for, whatever engine is asked next
    # Whether Hopper's own sweeps serve: **not measured yet**, and off by default until then.
    hopper: bool

    @staticmethod
    def of(module: Any, device: str = "cuda") -> "Backend":
        """Return the kernels of this module; those compiled for the CPU are for tests."""
        kinds = {kind: number for number, kind in enumerate(module.kinds())}
        hopper = os.environ.get("PAIROPS_HOPPER") == "1"
        return Backend(module, kinds, device, related="cuda", hopper=hopper)


# Bodies of ops find the backend here, since ops take no objects. Tests install their own.
BACKEND: Backend | None = None
if extension.native is not None and extension.native.cuda is not None:
    BACKEND = Backend.of(extension.native.cuda)


def installed() -> Backend:
    """Return the backend, which must exist."""
    assert BACKEND is not None, "this build of pairops has no CUDA kernels"
    return BACKEND


def precision(dtype: torch.dtype, level: str) -> str:
    """Return the format of products in float16: "plain", one number each; "fine", a weight is the
    sum of two; "split", an embedding too.

    A bfloat16 weight, of 8 bits, would add half to the error of a bfloat16 gradient. A weight of 11
    bits adds nothing to speak of there, but doubles the error of a float16 gradient. Two float16
    hold 22 bits or more of a float32.
    """
    if dtype == torch.float32:
        return "plain" if level == "medium" else "split"
    return "fine" if dtype == torch.float16 else "plain"


def sorts_labels(x: Tensor, y: Tensor | None) -> bool:
    """Return whether kernels can sort these rows by label, and pack them on the way."""
    if BACKEND is None or x.device.type != BACKEND.related or x.dtype == torch.float64:
        return False
    if x.is_cuda and reason_against(x.device) is not None:
        return False
    return all(z is None or 0 < z.shape[0] <= MOST_RELATED for z in (x, y))


def reason_against(device: torch.device) -> str | None:
    """Return why the kernels cannot run on this GPU, or None."""
    return _reason_against(device)


@functools.cache
def _reason_against(device: torch.device) -> str | None:
    known = capability(device)
    if known < (8, 0):
        return f"the GPU has compute capability {known[0]}.{known[1]}; the kernels need 8.0"
    with torch.cuda.device(device):
        reason: str | None = installed().module.reason_against()
    if reason is not None and "InsufficientDriver" in reason:
        # The runtime is a part of the extension, and may be newer than torch's.
        assert extension.native is not None
        toolkit = extension.native.features()["cuda_toolkit"]
        return (
            f"{reason}: pairops is built by nvcc {toolkit}; it must be built by nvcc 12, or the "
            "driver be newer"
        )
    return reason


reason_against._dynamo_marked_constant = True  # type: ignore[attr-defined]


def on_hopper(device: torch.device) -> bool:
    """Return whether Hopper's own sweeps serve on this device."""
    backend = installed()
    if not backend.hopper or device.type != backend.device:
        return False
    return backend.device == "cpu" or (capability(device) == (9, 0) and _compiled_for_hopper())


def _compiled_for_hopper() -> bool:
    assert extension.native is not None
    return "90a" in (extension.native.features()["cuda_architectures"] or "")


class Kernels:
    """The shape of tiles in which embeddings (N, d) of this dtype are served.

    hopper: by Hopper's own sweeps, where there are some. Packed rows and slices are the same.
    width: of rows that are packed already; torch's level of precision may have changed since.
    level: of precision that rows are packed for; by default torch's.
    """

    def __init__(
        self,
        backend: Backend,
        dtype: torch.dtype,
        d: int,
        hopper: bool = False,
        width: int | None = None,
        level: str | None = None,
    ) -> None:
        self.backend, self.module = backend, backend.module
        self.d, self.hopper = d, hopper
        self.precision = precision(dtype, float32_level() if level is None else level)
        self._read_shape()
        if width is not None and width != self.width:
            self.precision = {"plain": "split", "split": "plain"}[self.precision]
            self._read_shape()
            assert width == self.width, "rows are packed for these kernels"

    def _read_shape(self) -> None:
        shape = self.module.shape(self.precision, self.d, self.hopper)
        self.rows, self.columns, self.slice, self.parts, self.panels = shape
        self.width = self.parts * self.panels * self.module.PANEL

    @property
    def blocks_of_a_processor(self) -> int:
        """How many blocks its registers hold: 255 for each thread, of which 16 rows have 32."""
        return blocks_of_a_processor(self.rows // 16)

    def grid(self, owners: Any, partners: Any) -> tuple[Any, Any]:
        """Return the numbers of blocks of owners and of tiles of partners."""
        return (owners + self.rows - 1) // self.rows, (partners + self.columns - 1) // self.columns

    def mask_bytes(self, owners: Any, partners: Any) -> Any:
        """Return the length of a term's tile mask, a bit for each tile of each block."""
        blocks, tiles = self.grid(owners, partners)
        return blocks * ((tiles + 7) // 8)

    def room(self, z: Tensor) -> "Packed":
        """Allocate room for z (n, d), packed."""
        n = z.shape[0]
        padded = -(-n // self.module.PADDED_ROWS) * self.module.PADDED_ROWS
        return Packed(
            z.new_empty((padded, self.width), dtype=torch.float16),
            z.new_empty((2, padded), dtype=torch.float32),
            torch.empty(1, dtype=torch.int32, device=z.device),
        )


_KERNELS: dict[Any, Kernels] = {}


def kernels_of(
    dtype: torch.dtype,
    d: int,
    hopper: bool = False,
    width: int | None = None,
    level: str | None = None,
) -> Kernels:
    """Return `Kernels` of the installed backend, made once: a small step is mostly Python."""
    level = float32_level() if level is None else level
    key = BACKEND, dtype, d, hopper, width, level
    if key not in _KERNELS:
        _KERNELS[key] = Kernels(installed(), dtype, d, hopper, width, level)
    return _KERNELS[key]


class Packed(NamedTuple):
    """One set in sorted order, as it is multiplied; see csrc/cuda/around/pack.h."""

    rows: Tensor  # (padded, parts · panels · 64) float16, in panels
    scales: Tensor  # (2, padded) float32, r = high (1 + rest)
    valid_count: Tensor  # (1,) int32, the number of valid rows; they come first


def stream_of(z: Tensor) -> int:
    return torch.cuda.current_stream(z.device).cuda_stream if z.is_cuda else 0
