"""Bands: for each block of rows, the range of columns that holds its positives.

Tiles outside of the band hold negatives only.
"""

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs


def bands(pairs: Pairs, axis: int, rows: int) -> Tensor:
    """Return (blocks, 2) int64: begin and end of the positions, in the other set, of the positives
    of a block of `rows` rows and of the rows themselves."""
    relation = pairs.relation
    n, m = pairs.shape[axis], pairs.shape[1 - axis]
    device = pairs.x.device
    begin = torch.arange(0, n, rows, device=device)
    end = (begin + rows).clamp(max=n)
    if axis == 0:
        first, last = relation.pos_begin[begin], relation.pos_end[end - 1]
    else:
        # pos_begin and pos_end ascend, so the rows with a positive in [begin, end) are neighbours.
        first = torch.searchsorted(relation.pos_end.contiguous(), begin, right=True)
        last = torch.searchsorted(relation.pos_begin.contiguous(), end)
    self_index = relation.self_index
    if pairs.y is None or self_index.shape[0] == 0:  # a row is at a position among its positives
        return torch.stack([first, last.maximum(first)], 1)
    if axis == 0:
        padding = len(begin) * rows - n
        low = torch.nn.functional.pad(
            torch.where(self_index < 0, m, self_index), (0, padding), value=m
        )
        high = torch.nn.functional.pad(self_index, (0, padding), value=-1)
        self_first, self_last = low.view(-1, rows).amin(1), high.view(-1, rows).amax(1) + 1
    else:
        row = torch.arange(m, device=device)
        block = torch.where(self_index < 0, len(begin), self_index // rows)
        nobody = torch.full((len(begin) + 1,), m, device=device)
        self_first = nobody.scatter_reduce(0, block, row, "amin")[:-1]
        self_last = (nobody * 0).scatter_reduce(0, block, row + 1, "amax")[:-1]
    empty = last <= first
    first = torch.where(empty, self_first, first.minimum(self_first))
    last = torch.where(empty, self_last, last.maximum(self_last))
    return torch.stack([first, last.maximum(first)], 1)
