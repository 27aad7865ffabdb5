"""Positive pairs as rows, for losses that compare each pair with the anchor's negatives.

Row k stands for the pair of an anchor i and its positive p. It has the similarities of i, and the
score t_ip is one number per row: an argument of a function, or a window. The number of rows depends
on the labels, so the host waits for it on a GPU; memory is O(K·D) for K pairs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pairops.ops.pairs.indexing import add_rows, pick_rows, positions_of
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Scales
from pairops.ops.terms.term import POS, total

from .op import row_stats


@dataclass(frozen=True, eq=False)
class PositiveRows:
    """K rows, one for each positive pair, against the other set."""

    pairs: Pairs  # (K rows, M columns): each row with its anchor's positives and negatives
    anchor: Tensor  # (K,) int64: the anchor's row in x
    partner: Tensor  # (K,) int64: the positive's row in y, of all ranks
    score: Tensor  # (K,) closeness of the pair, with gradient
    blank: Tensor  # (N,)

    @staticmethod
    def of(pairs: Pairs) -> "PositiveRows":
        # A sum over the pair alone is the score, with the same bits as in the sweeps.
        if pairs.shards is None:
            row, position, self_index = _positive_pairs(pairs)
            relation = pairs.relation
            anchor = relation.permutation_x.index_select(0, row)
            rows = _copies(pairs, anchor)
            by_index = replace(
                rows.relation,
                permutation_x=torch.arange(len(row), device=row.device),
                pos_begin=position,
                pos_end=position + 1,
                self_index=torch.full_like(position, -1),
                entries=None,
            )
            alone = replace(rows, relation=by_index)
            (score,) = row_stats(alone, total(POS, 1.0, 0.0))
            if relation.overlaps:  # only in the order of the anchors do these intervals ascend
                order = torch.argsort(row, stable=True)
                row, position, self_index, anchor, score = (
                    z.index_select(0, order) for z in (row, position, self_index, anchor, score)
                )
                rows = _copies(pairs, anchor)
            partner = relation.permutation_y.index_select(0, position)
            of_rows = replace(
                by_index,
                pos_begin=relation.pos_begin.index_select(0, row),
                pos_end=relation.pos_end.index_select(0, row),
                self_index=self_index,
                entries=relation.entries,
            )
            rows = replace(rows, relation=of_rows)
        else:
            anchor, partner = pairs.shards.positive_pairs()
            shards = pairs.shards.of_rows(anchor)
            rows = replace(_copies(pairs, anchor), shards=shards)
            by_keys = shards.by_keys((partner, pairs.indices(1)))
            alone = replace(rows, shards=by_keys, cache=Cache(rows.cache.prepared))
            (score,) = row_stats(alone, total(POS, 1.0, 0.0))
        return PositiveRows(rows, anchor, partner, score, score.new_empty(pairs.shape[0]))

    def per_anchor(self, values: Tensor) -> Tensor:
        """Sum values (K,) by anchor; the result (N,) is in the caller's order."""
        return add_rows(self.blank, self.anchor, values)


def _copies(pairs: Pairs, anchor: Tensor) -> Pairs:
    """Copy these rows (K,), against the other set; the relation is still the one of all rows."""
    scale = pairs.scales.x
    return replace(
        pairs,
        x=pick_rows(pairs.x, anchor),
        y=pairs.other,
        scales=Scales(None if scale is None else scale.index_select(0, anchor), pairs.scales.y),
        complete=True,
        relation=replace(pairs.relation, valid_x=torch.ones_like(anchor, dtype=torch.bool)),
        copies_of=anchor,
        cache=Cache(),
    )


def _positive_pairs(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Return (K,) sorted positions of anchors and of their positives, and the anchors' self_index.

    They are ordered by the positive and then by the anchor: in this order both the intervals of a
    class and the positions of single pairs ascend.
    """
    relation = pairs.relation
    if relation.entries is not None:
        row, position = relation.listed(torch.arange(pairs.shape[0], device=pairs.x.device))
        position, order = torch.sort(position, stable=True)
        row = row[order]
        return row, position, relation.self_index[row]
    position = torch.arange(pairs.shape[1], device=pairs.x.device)
    first = torch.searchsorted(relation.pos_end.contiguous(), position, right=True)
    last = torch.searchsorted(relation.pos_begin.contiguous(), position, right=True)
    if not pairs.complete:
        last = torch.where(relation.valid_y[relation.permutation_y], last, first)
    column, row = positions_of(first, last)
    self_index = relation.self_index.index_select(0, row)
    counts = self_index != column
    if not pairs.complete:
        counts &= relation.valid_x[relation.permutation_x[row]]
    at = counts.nonzero().squeeze(1)
    return row.index_select(0, at), column.index_select(0, at), self_index.index_select(0, at)
