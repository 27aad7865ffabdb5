"""The CUDA engine: the sweeps of `csrc/cuda/`, compiled ahead of time.

It checks tensors and allocates results; addresses, sizes and the current stream are handed on.
Nothing waits for the GPU, so a CUDA graph may capture it. A set that is compared with another is
swept twice, once as rows and once as columns, so that every sum has one owner and one order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension, packing
from pairops.ops.bindings.cuda import Kernels
from pairops.ops.engines.first_use import checked_backward, checked_forward
from pairops.ops.pairs.indexing import any_above
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.recipe import cuda_key
from pairops.ops.terms.term import Term, Wanted

from .launch import CudaCall

NAME = "cuda"
TAKES_EARLIER = False
TAKES_DISTANCES = False
TAKES_LISTS = False
DEVICE: str | None = "cuda"

_MOST_ROWS = 2**31 - 2**16  # positions are counted in 32 bits
_MOST_DIMENSIONS = 2**16


def missing() -> str | None:
    if extension.MISSING is not None:
        return extension.MISSING
    return "this build of pairops has no CUDA kernels" if cuda_kernels.BACKEND is None else None


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    x, reason = pairs.x, missing()
    if reason is not None:
        return reason
    backend = cuda_kernels.installed()
    if x.device.type != backend.device:
        return f"x is on {x.device.type}; the CUDA kernels are for CUDA devices"
    if pairs.dtype == torch.float64:
        return "x is float64; the CUDA kernels sum in float32"
    if pairs.scales.x is not None and pairs.scales.x.dtype != torch.float64:
        return "norms are float32; the CUDA kernels read them in float64"
    if x.is_cuda:
        reason = cuda_kernels.reason_against(x.device)
        if reason is not None:
            return reason
    if x.shape[1] > _MOST_DIMENSIONS:
        return f"x has {x.shape[1]} dimensions; the CUDA kernels take {_MOST_DIMENSIONS}"
    if any_above(pairs.shape, _MOST_ROWS):
        return f"there are {max(pairs.shape)} rows; the CUDA kernels count {_MOST_ROWS} at most"
    for term in (*rows, *cols):
        if cuda_key(term) not in backend.kinds:
            return f"no recipe in csrc/recipes.h that is compiled for GPUs has a {cuda_key(term)}"
    return None


def prefers_chunks(pairs: Pairs) -> bool:
    """Return whether `chunked` is expected to be faster, as where a sliced gradient multiplies s
    once per slice. Derived, **not measured yet**."""
    return bool(pairs.x.shape[1] > _most_unsliced(pairs.x.dtype))


def _most_unsliced(dtype: torch.dtype) -> int:
    """Return up to which D a gradient is one slice. The compiler may ask, since this takes no D."""
    d = cuda_kernels.installed().module.PANEL
    while Kernels(cuda_kernels.installed(), dtype, 2 * d).slice >= 2 * d:
        d *= 2
    return int(d)


_most_unsliced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def prepare(pairs: Pairs) -> list[Tensor]:
    """Pack both sets as they are multiplied: sorted, float16, in panels."""
    made = pairs.cache.prepared
    if NAME not in made:
        known, scales = pairs.relation, pairs.scales
        made[NAME] = made.get("relation") or packing.pack_both(
            (pairs.x, scales.x, known.permutation_x, known.valid_x),
            None if pairs.y is None else (pairs.y, scales.y, known.permutation_y, known.valid_y),
        )
    return made[NAME]


def _kernels(pairs: Pairs) -> Kernels:
    x, width = pairs.x, int(prepare(pairs)[0].shape[1])
    hopper = cuda_kernels.on_hopper(x.device)
    return Kernels(cuda_kernels.installed(), x.dtype, int(x.shape[1]), hopper, width)


def _call(pairs: Pairs) -> CudaCall:
    return CudaCall(pairs, _kernels(pairs), prepare(pairs))


@checked_forward(NAME)
def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute statistics; each term that has a tile mask adds its (blocks of owners, tiles of
    partners) to it, one after the other."""
    tile_masks = pairs.x.new_empty(tile_masks_shape(pairs, rows, cols), dtype=torch.uint8)
    return *_call(pairs).forward(rows, cols, tile_masks), tile_masks


@checked_backward(NAME)
def backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tile_masks: Tensor | None,
    needs: Wanted,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return _call(pairs).backward(rows, cols, statistics, cotangents, tile_masks, needs)


def tile_masks_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    kernels = _kernels(pairs)
    n, m = pairs.shape
    total = 0
    for terms, owners, partners in ((rows, n, m), (cols, m, n)):
        blocks, tiles = kernels.grid(owners, partners)
        total += sum(term.has_tile_mask for term in terms) * blocks * tiles
    return (total,)
