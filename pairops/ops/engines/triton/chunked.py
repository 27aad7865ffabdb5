"""The chunked Triton engine, for large D and two sets: s in chunks, from `torch.mm`.

One fused kernel does the elementwise part, with the terms and sorted copies of `engine.py`; the
products of weights and embeddings are `torch.mm` again. In `engine.py` a gradient of large D does
not fit in registers, and two sets are swept twice; here s is multiplied once a pass. Memory is a
chunk, whatever N. No tile is skipped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pairops.ops.bindings.devices import float32_level
from pairops.ops.engines.first_use import checked_backward, checked_forward
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term, Wanted

from . import engine as triton_engine

NAME = "chunked"
TAKES_EARLIER = "nowhere"
TAKES_DISTANCES = False
TAKES_LISTS = True
DEVICE: str | None = "cuda"


def missing() -> str | None:
    return triton_engine.missing()


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    x = pairs.x
    if x.dtype == torch.float32 and float32_level() != "highest":
        # torch.mm would multiply in TensorFloat-32, whose 11 bits are fewer than "high" promises.
        return 'float32 below the precision "highest" is for the triton engine\'s own products'
    if x.is_cuda and x.dtype != torch.float32 and not _FLOAT32_OUT:
        return "this torch.mm cannot give float32 products of 16-bit numbers; torch 2.8 can"
    return triton_engine.declines(pairs, rows, cols)


_FLOAT32_OUT = all(hasattr(op, "dtype_out") for op in (torch.ops.aten.mm, torch.ops.aten.addmm))


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


@checked_forward(NAME)
def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    from .chunked_launch import Chunked

    call = Chunked(pairs, triton_engine.configuration(pairs))
    statistics, arguments = call.forward(call.place(rows, cols))
    return (
        statistics,
        arguments,
        pairs.x.new_empty(tile_masks_shape(pairs, rows, cols), dtype=torch.uint8),
    )


@checked_backward(NAME)
def backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tile_masks: Tensor | None,  # noqa: ARG001
    needs: Wanted,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    from .chunked_launch import Chunked

    call = Chunked(pairs, triton_engine.backward_configuration(pairs))
    placed = call.place(rows, cols, statistics, cotangents)
    gradients, found = call.backward(placed, cotangents, call.wanted(needs))
    return *call.by_set(*gradients), call.in_order(placed, found)


def tile_masks_shape(
    pairs: Pairs,  # noqa: ARG001
    rows: Sequence[Term],  # noqa: ARG001
    cols: Sequence[Term],  # noqa: ARG001
) -> tuple[int, ...]:
    return (0,)
