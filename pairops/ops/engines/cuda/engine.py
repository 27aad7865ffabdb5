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
from pairops.ops.engines import first_use
from pairops.ops.engines.first_use import checked_backward, checked_forward
from pairops.ops.engines.plan import plan_of
from pairops.ops.pairs.indexing import any_above
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.recipe import cuda_key
from pairops.ops.terms.term import Term, Wanted

from .launch import CudaCall, ForwardResult, SoftMean
from .plans import CudaPlan, cuda_plan

NAME = "cuda"
TAKES_EARLIER = "in windows"
TAKES_DISTANCES = False
TAKES_LISTS = False
DEVICE: str | None = "cuda"

_MOST_ROWS = 2**31 - 2**16  # positions are counted in 32 bits
_MOST_DIMENSIONS = 2**16


def missing() -> str | None:
    if extension.MISSING is not None:
        return extension.MISSING
    return "this build of pairops has no CUDA kernels" if cuda_kernels.BACKEND is None else None


def declines_pairs(pairs: Pairs) -> str | None:
    """Return why the engine can serve no call with these pairs, or None."""
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
    return None


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    reason = declines_pairs(pairs)
    if reason is not None:
        return reason
    backend = cuda_kernels.installed()
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
    while cuda_kernels.kernels_of(dtype, 2 * d).slice >= 2 * d:
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


def _kernels(pairs: Pairs, prepared: Sequence[Tensor]) -> Kernels:
    x, width = pairs.x, int(prepared[0].shape[1])
    hopper = cuda_kernels.on_hopper(x.device)
    return cuda_kernels.kernels_of(x.dtype, int(x.shape[1]), hopper, width)


def plan_at_once(pairs: Pairs, rows: tuple[Term, ...]) -> CudaPlan | None:
    """Return the plan of a call without tensors among its operands, or None where there are some,
    or an argument is an earlier term, or the engine does not serve the call."""
    if declines_pairs(pairs) is not None or first_use.reason_against(NAME, False) is not None:
        return None
    plan = plan_of(rows, ())
    if plan is None or plan.vectors or plan.earlier_args or plan.extremes:
        return None
    return cuda_plan(plan, pairs.y is None, cuda_kernels.installed())


def _call(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> CudaCall:
    plan = plan_of(rows, cols)
    assert plan is not None, "terms refer to earlier ones of the call"
    of_cuda = cuda_plan(plan, pairs.y is None, cuda_kernels.installed())
    assert of_cuda is not None, "the engine has not declined"
    prepared = prepare(pairs)
    return CudaCall(pairs, _kernels(pairs, prepared), prepared, of_cuda, rows, cols)


@checked_forward(NAME)
def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute statistics; each term that has a tile mask adds its (blocks of owners, bytes of tiles
    of partners) to it, one after the other, a bit for each tile."""
    made = _call(pairs, rows, cols).forward()
    return made.values, made.arguments, made.tile_masks


@checked_forward(NAME)
def forward_with_mean(
    pairs: Pairs, rows: tuple[Term, ...], _cols: tuple[()], plan: CudaPlan, mean: SoftMean
) -> ForwardResult:
    """Compute statistics, and a mean of them, of terms that `plan_at_once` has planned."""
    prepared = prepare(pairs)
    call = CudaCall(pairs, _kernels(pairs, prepared), prepared, plan, rows, ())
    return call.forward(mean)


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
    return _call(pairs, rows, cols).backward(statistics, cotangents, tile_masks, needs)


@checked_backward(NAME)
def backward_of_mean(
    pairs: Pairs,
    rows: tuple[Term, ...],
    _cols: tuple[()],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tile_masks: Tensor,
    needs: Wanted,
    plan: CudaPlan,
    factor: Tensor,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute gradients of a mean by the embeddings, times `factor` (). cotangents: the slopes of
    the mean."""
    prepared = prepare(pairs)
    call = CudaCall(pairs, _kernels(pairs, prepared), prepared, plan, rows, ())
    return call.backward(statistics, cotangents, tile_masks, needs, factor)


def tile_masks_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    n, m = pairs.shape
    total = 0
    for terms, owners, partners in ((rows, n, m), (cols, m, n)):
        keeping = sum([term.has_tile_mask for term in terms])
        if keeping:
            total += keeping * _kernels(pairs, prepare(pairs)).mask_bytes(owners, partners)
    return (total,)
