"""Blocks of rows that come past every rank, one after the other."""

from collections.abc import Generator, Sequence

import torch.distributed as dist
from torch import Tensor

from .group import Group


def ring(
    group: Group, sizes: Sequence[int], home: Sequence[Tensor], name: str
) -> Generator[tuple[int, list[Tensor]], None, None]:
    """Yield (rank, its rows) of all ranks: of this one first, then of those after it, round.

    home: tensors with one row for each of `sizes[rank]`.  name: of this ring, for errors.

    The next block is under way while one is worked on. It overwrites the one before, so there are
    two besides the home block however many ranks there are, and the caller must not hold one. Where
    torch runs transfers on a stream of their own they wait for the work queued before them, so a
    block has been read before it is overwritten. A generator that is closed early passes the rest
    on, since the other ranks wait for it. All room is allocated before the first block is yielded.
    """
    here = [z.contiguous() for z in home]
    most = max(sizes)
    spare = [[z.new_empty((most, *z.shape[1:])) for z in here] for _ in range(2)]
    return _blocks(group, sizes, here, spare, name)


def _blocks(
    group: Group,
    sizes: Sequence[int],
    here: list[Tensor],
    spare: Sequence[Sequence[Tensor]],
    name: str,
) -> Generator[tuple[int, list[Tensor]], None, None]:
    wanted = True
    for hop in range(group.size):
        owner = (group.rank + hop) % group.size
        coming = [z[: sizes[(owner + 1) % group.size]] for z in spare[hop % 2]]
        block = f"{name}, block {hop + 1} of {group.size}"
        under_way = []
        if hop + 1 < group.size:
            with group.step(block):
                under_way = _exchange(group, here, coming)
        if wanted:
            try:
                yield owner, here
            except GeneratorExit:
                wanted = False
        with group.step(block):
            for transfer in under_way:
                transfer.wait()
        here = coming


def _exchange(group: Group, here: Sequence[Tensor], coming: Sequence[Tensor]) -> list[dist.Work]:
    """Send `here` to the rank before this one, and receive `coming` from the one after it."""
    before, after = group.peer(group.rank - 1), group.peer(group.rank + 1)
    sends = [dist.P2POp(dist.isend, z, before, group.process_group) for z in here if z.numel()]
    receives = [dist.P2POp(dist.irecv, z, after, group.process_group) for z in coming if z.numel()]
    return list(dist.batch_isend_irecv(sends + receives)) if sends or receives else []
