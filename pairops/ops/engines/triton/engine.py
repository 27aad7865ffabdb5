"""The Triton engine: any translatable function on any GPU that Triton knows, O(N·D) memory.

Its two kernels are in `kernels/sweep.py`. A set that is compared with
another is swept twice, once as rows and once as columns, so that every sum has one owner and one
order. Under TRITON_INTERPRET=1 the same kernels run on the CPU, number by number: for tests.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from pairops.ops.bindings.devices import capability, float32_level
from pairops.ops.engines.first_use import checked_backward, checked_forward
from pairops.ops.engines.weight_parts import two_parts
from pairops.ops.pairs.indexing import any_above
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import Between, Table
from pairops.ops.terms.term import Term, Wanted

from . import tile_configs
from .tile_configs import Configuration

_OLDEST = 3, 6  # Triton whose kernels take tuples of functions and tensors
# The packages of Triton.
_NAMES = "triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows"


def _without() -> str | None:
    """Return why no Triton can compile the kernels, or None, without importing it."""
    if not importlib.util.find_spec("triton"):
        return "triton is not installed"
    for name in _NAMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            found = re.match(r"(\d+)\.(\d+)", version)
            if found and (int(found[1]), int(found[2])) < _OLDEST:
                oldest = ".".join(map(str, _OLDEST))
                return f"triton is {version}; the kernels need {oldest} or newer"
    return None


NAME = "triton"
TAKES_EARLIER = "nowhere"
TAKES_DISTANCES = False
TAKES_LISTS = True
DEVICE: str | None = "cuda"
MISSING = _without()
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

_MOST_ROWS = 2**31 - 2**16  # positions are counted in 32 bits
_MOST_DIMENSIONS = 4096


def missing() -> str | None:
    return MISSING


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    if MISSING is not None:
        return MISSING
    device = pairs.x.device.type
    if device != ("cpu" if INTERPRETED else "cuda"):
        instead = "runs on the CPU, in its interpreter" if INTERPRETED else "is for CUDA devices"
        return f"x is on {device}; Triton here {instead}"
    if pairs.dtype == torch.float64:
        return "x is float64; the Triton kernels sum in float32"
    if device == "cuda" and capability(pairs.x.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if pairs.x.shape[1] > _MOST_DIMENSIONS:
        return f"x has {pairs.x.shape[1]} dimensions; the Triton kernels take {_MOST_DIMENSIONS}"
    if any_above(pairs.shape, _MOST_ROWS):
        return f"there are {max(pairs.shape)} rows; the Triton kernels count {_MOST_ROWS} at most"
    for term in (*rows, *cols):
        if any(isinstance(a, Table) for a in term.args):
            return f"{term.function.name} takes a table; the Triton kernels look none up"
        if any(isinstance(a, Between) for a in term.args):
            return (
                f"{term.function.name} takes a product of other embeddings; the Triton kernels "
                "make none"
            )
        reason = _reason_against(term.function.name)
        if reason is not None:
            return reason
    return None


def _reason_against(name: str) -> str | None:
    from . import translate

    return translate.reason_against(name)


# Marked like `devices.capability`.
_reason_against._dynamo_marked_constant = True  # type: ignore[attr-defined]


def configuration(pairs: Pairs) -> Configuration:
    """Return the tiles of a call. s has the same bits in `forward` and `backward`; only weights may
    have more parts in the latter, see `backward_configuration`."""
    known = None if INTERPRETED else capability(pairs.x.device)
    level = float32_level() if pairs.x.dtype == torch.float32 else "highest"
    narrow = pairs.relation.entries is not None or two_parts(pairs)
    return tile_configs.choose(known, pairs.x.dtype, int(pairs.x.shape[1]), level, narrow)


def backward_configuration(pairs: Pairs) -> Configuration:
    """Return the configuration that `backward` is compiled with."""
    config = configuration(pairs)
    return config.with_fine_weights if two_parts(pairs) else config


def prefers_chunks(pairs: Pairs) -> bool:
    """Return whether `chunked` is expected to be faster, see `tile_configs.chunks_pay`."""
    return tile_configs.chunks_pay(configuration(pairs), pairs.x.shape[1], pairs.symmetric)


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


@checked_forward(NAME)
def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute statistics; each term that has a tile mask adds its (blocks of owners, tiles of
    partners) to it, one after the other."""
    from . import launch

    call = launch.Swept(pairs, configuration(pairs))
    placed = call.place(rows, cols)
    tile_masks = torch.zeros(
        tile_masks_shape(pairs, rows, cols), dtype=torch.uint8, device=pairs.x.device
    )
    results = call.blank(placed)
    first_cell = 0
    for axis in (0, 1):
        of_axis = [p for p in placed if p.owners == axis]
        if of_axis:
            cells = sum(p.term.has_tile_mask for p in of_axis) * call.cells(axis)
            call.forward(axis, of_axis, tile_masks[first_cell : first_cell + cells], results)
            first_cell += cells
    return *results.of(placed), tile_masks


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
    from . import launch

    call = launch.Swept(pairs, backward_configuration(pairs))
    placed = call.place(rows, cols, statistics, cotangents)
    masks_by_term = call.masks_by_term(placed, tile_masks)
    gradients = [pairs.x.new_empty(0), pairs.x.new_empty(0)]
    found: dict[tuple[int, int], Tensor] = {}
    wanted = call.wanted(needs)
    for axis in (0,) if call.same else (0, 1):
        gradients[axis], by_vector = call.backward(axis, placed, masks_by_term, wanted[axis])
        found |= by_vector
    return *call.by_set(*gradients), call.in_order(placed, found)


def tile_masks_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    config = configuration(pairs)
    n, m = pairs.shape
    total = 0
    for terms, owners, partners in ((rows, n, m), (cols, m, n)):
        blocks, tiles = config.tiles(owners, partners)
        total += sum(term.has_tile_mask for term in terms) * blocks * tiles
    return (total,)
