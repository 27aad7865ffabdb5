"""Blocks of the other set, one per rank, as pairs with the local rows."""

import contextlib
import functools
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pairops.ops.distributed.group import row_of
from pairops.ops.distributed.header import AMBIENT
from pairops.ops.distributed.ring import ring
from pairops.ops.pairs.by_label import pairs_by_keys
from pairops.ops.pairs.pairs import Pairs

# All rows are gathered at once below so many bytes of embeddings per rank: a block then costs more,
# besides its transfer, than the ring hides. Measured, see docs/distributed.md.
GATHERED = 1 << 20

AMBIENT["bytes of embeddings below which all rows are gathered"] = lambda: str(GATHERED)

FORWARD, BACKWARD = "ring 1 (forward)", "ring 2 (backward)"


def blocks_of_ring(
    pairs: Pairs, axis: int, travelling: Sequence[Tensor], name: str, piece: int
) -> Generator[tuple[int, Pairs, list[Tensor]], None, None]:
    """Yield blocks of the other set: the first row among those of all ranks, the pairs that the
    local rows (axis 0) or columns (1) make with it, and its rows of `travelling`.

    This rank's block comes first, then those of the ranks after it, round. In grad mode, and where
    embeddings are few, one block holds all.  name: FORWARD or BACKWARD.  piece: of the call.
    """
    shards = pairs.shards
    assert shards is not None, "these pairs have a group"
    group, there = shards.group, 1 - axis
    sizes = shards.sizes[there]
    embeddings = pairs.x if there == 0 else pairs.other
    known = [shards.keys[there]] + [shards.self_index] * (there == 0)

    def meeting(first: int, rows: Tensor, key: Tensor, *rows_self_index: Tensor) -> Pairs:
        columns = shards.first(1)
        if axis == 0:
            sets, keys = (pairs.x, rows), (shards.keys[0], key)
            self_index = within(shards.self_index, first, first + len(rows))
        else:
            sets, keys = (rows, pairs.other), (key, shards.keys[1])
            self_index = within(rows_self_index[0], columns, columns + pairs.shape[1])
        scaled = pairs.scales.x is not None
        ignored, width = shards.ignore_index, shards.width
        block = pairs_by_keys(*sets, keys, self_index, ignored, scaled, width=width)
        return replace(block, measure=pairs.measure)

    def meet(way: str, *sent: Tensor) -> None:
        kinds = ", ".join(map(row_of, sent))
        what = f"{name} of {'columns' if axis else 'rows'}, piece {piece}, {way} {kinds}"
        group.meet(what, backward=name == BACKWARD)

    if torch.is_grad_enabled():
        sent = [embeddings, *known, *travelling]
        meet("all rows, differentiably, of", *sent)
        every = [group.rows(z, sizes, synchronized=True) for z in sent]
        yield 0, meeting(0, *every[: 1 + len(known)]), every[1 + len(known) :]
        return
    row = embeddings.shape[1] * embeddings.element_size()
    if max(max(side) for side in shards.sizes) * row < GATHERED:
        first_time = axis not in pairs.cache.gathered
        sent = [*([embeddings.detach(), *known] if first_time else []), *travelling]
        came = []
        if sent:
            ready = functools.partial(meet, "all rows of", *sent)
            came = _unpacked(group.rows(_packed(sent), sizes, meet=ready), sent)
        if first_time:
            pairs.cache.gathered[axis], came = came[: 1 + len(known)], came[1 + len(known) :]
        yield 0, meeting(0, *pairs.cache.gathered[axis]), came
        return
    beside = [*known, *travelling]
    # Closed with this generator, so that other blocks are passed on even if one raised an error.
    with contextlib.closing(ring(group, sizes, [embeddings, _packed(beside)], name)) as blocks:
        meet("blocks of", embeddings, *beside)
        for owner, (rows, packed) in blocks:
            came = _unpacked(packed, beside)
            first = sum(sizes[:owner])
            yield first, meeting(first, rows, *came[: len(known)]), came[len(known) :]


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """Put rows of tensors (N,) or (N, D) side by side as (N, bytes), so that they travel as one."""
    # Not .contiguous(): a single row has any stride, and its bytes cannot be viewed.
    pieces = [z.clone(memory_format=torch.contiguous_format) for z in tensors]
    return torch.cat([(z if z.dim() == 2 else z.unsqueeze(1)).view(torch.uint8) for z in pieces], 1)


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Unpack tensors like these."""
    pieces = packed.split([z.element_size() * z.shape[1:].numel() for z in like], 1)
    return [
        piece.clone(memory_format=torch.contiguous_format)
        .view(z.dtype)
        .reshape(len(piece), *z.shape[1:])
        for piece, z in zip(pieces, like, strict=True)
    ]


def within(argument: Tensor | None, first: int, last: int) -> Tensor | None:
    """Turn an index among all rows into one within [first, last), −1 for one outside."""
    if argument is None:
        return None
    return torch.where((argument >= first) & (argument < last), argument - first, -1)
