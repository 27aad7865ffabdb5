"""The other set block by block, as pairs with the local rows: all ranks, one after the other."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pairops.ops.distributed.ring import ring
from pairops.ops.pairs.pairs import Pairs

# Below so many bytes of embeddings per rank all rows are gathered at once: what a block costs
# besides its transfer is then more than what the ring hides. Measured, see docs/distributed.md.
GATHERED = 1 << 20


def passing(
    pairs: Pairs, axis: int, travelling: Sequence[Tensor], name: str
) -> Iterator[tuple[int, Pairs, list[Tensor]]]:
    """The other set block by block: its first row among those of all ranks, the pairs that the
    local rows (axis 0) or columns (1) make with it, and its rows of `travelling`.

    Each block is this rank's own first and then those after it, round. In grad mode, and where the
    embeddings are few, there is one block of all.
    """
    shards = pairs.shards
    assert shards is not None, "these pairs have a group"
    there = 1 - axis
    sizes = shards.sizes[there]
    embeddings = pairs.x if there == 0 else pairs.other
    known = [shards.keys[there]] + [shards.own] * (there == 0)

    def meeting(first: int, rows: Tensor, key: Tensor, *own_of_rows: Tensor) -> Pairs:
        columns = shards.first(1)
        if axis == 0:
            sets, keys = (pairs.x, rows), (shards.keys[0], key)
            own = within(shards.own, first, first + len(rows))
        else:
            sets, keys = (rows, pairs.other), (key, shards.keys[1])
            own = within(own_of_rows[0], columns, columns + pairs.shape[1])
        return Pairs.between(*sets, keys, own, shards.ignore_index, pairs.scale_x is not None)

    if torch.is_grad_enabled():
        every = [shards.group.rows(z, sizes) for z in (embeddings, *known, *travelling)]
        yield 0, meeting(0, *every[: 1 + len(known)]), every[1 + len(known) :]
        return
    row = embeddings.shape[1] * embeddings.element_size()
    if max(max(side) for side in shards.sizes) * row < GATHERED:
        if axis not in pairs.gathered:
            every = [embeddings.detach(), *known]
            pairs.gathered[axis] = [shards.group.rows(z, sizes) for z in every]
        came = _unpacked(shards.group.rows(_packed(travelling, embeddings), sizes), travelling)
        yield 0, meeting(0, *pairs.gathered[axis]), came
        return
    home = [embeddings, _packed([*known, *travelling], embeddings)]
    for owner, (rows, packed) in ring(shards.group, sizes, home, name):
        came = _unpacked(packed, [*known, *travelling])
        first = sum(sizes[:owner])
        yield first, meeting(first, rows, *came[: len(known)]), came[len(known) :]


def _packed(vectors: Sequence[Tensor], rows: Tensor) -> Tensor:
    """(N, bytes) vectors (N,) side by side, so that they travel as one."""
    # Not .contiguous(): one row is that with any stride, and its bytes cannot be looked at.
    pieces = [z.clone(memory_format=torch.contiguous_format) for z in vectors]
    pieces = [z.unsqueeze(1).view(torch.uint8) for z in pieces]
    return torch.cat(pieces, 1) if pieces else rows.new_empty((len(rows), 0), dtype=torch.uint8)


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = packed.split([z.element_size() for z in like], 1)
    return [
        piece.clone(memory_format=torch.contiguous_format).view(z.dtype).squeeze(1)
        for piece, z in zip(pieces, like, strict=True)
    ]


def within(argument: Tensor | None, first: int, last: int) -> Tensor | None:
    """An index among all rows as one among [first, last), −1 for those elsewhere."""
    if argument is None:
        return None
    return torch.where((argument >= first) & (argument < last), argument - first, -1)
