"""Positive pairs as rows, for losses that compare each pair with the anchor's other pairs.

Row k stands for the pair of an anchor i and its positive p. It has the similarities of i, and the
score t_ip is one number per row: an argument of a function, or a window.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pairops.ops.pairs.indexing import add_rows, positions_of
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.picked import copied
from pairops.ops.pairs.relation import Cache, Relation
from pairops.ops.terms.arguments import vector
from pairops.ops.terms.term import POS, total

from .op import row_stats
from .picked_rows import most


@dataclass(frozen=True, eq=False)
class PositiveRows:
    """Every positive pair (i, p) as a row that has the similarities of its anchor i.

    `PositiveRows.of` makes them. A term of `row_stats(rows.pairs, ...)` then has one statistic for
    each positive pair, and `rows.score` is an argument or a window of it: so each positive is
    compared with the anchor's other pairs. The rows are ordered by class, or by anchor.

    The rows are an index into x, and an eighth as many as x has, or 4,096, are copied at a time:
    memory is O((N + M) D + K), and so are gradients. Terms of columns and derivatives of gradients
    take O(K D), as each rank of a group does for its rows. K depends on the labels, so the host
    waits for it on a GPU.

    Args:
        pairs: K rows and M columns: each row with the positives and negatives of its anchor. Its x
            may be the whole x, from which `pairs.relation.picked` picks the rows.
        anchor: (K,) int64, the row of x that the anchor is.
        partner: (K,) int64, the row of the other set that the positive is, of all ranks.
        score: (K,) float32 or float64, the closeness of the pair, with gradient.
        count: N, the number of anchors.

    Example:
        from pairops import ALL, POS, Pairs, PositiveRows, functions, row_stats, total


        def smooth_average_precision(x, labels, temperature=0.01):
            pairs = Pairs.of(x, labels)
            rows = PositiveRows.of(pairs)
            # How far up a positive stands among the positives, and among all: 1/2 is its own.
            above = (1 / temperature, rows.score)
            among, overall = row_stats(
                rows.pairs,
                total(POS, *above, function=functions.sigmoid),
                total(ALL, *above, function=functions.sigmoid),
            )
            precision = (among + 0.5) / (overall + 0.5)
            return rows.per_anchor(precision) / pairs.positives().clamp(min=1)
    """

    pairs: Pairs
    anchor: Tensor
    partner: Tensor
    score: Tensor
    count: int

    @staticmethod
    def of(pairs: Pairs) -> "PositiveRows":
        """Make a row of every positive pair.

        Args:
            pairs: who is compared with whom, from `Pairs.of`, `Pairs.listed`, `Pairs.within` or
                `Pairs.paired`.

        Returns:
            The rows.

        Raises:
            TypeError: pairs is something else.
            ValueError: pairs are those of positive rows.
        """
        if not isinstance(pairs, Pairs):
            raise TypeError(f"pairs is {type(pairs).__name__}; it must be pairops.Pairs")
        if pairs.copies_of is not None or pairs.relation.picked is not None:
            raise ValueError(
                "pairs are those of positive rows; they must be pairs of embeddings, such as "
                "Pairs.of makes"
            )
        # A sum over the pair alone is the score, with the same bits as in the sweeps.
        if pairs.shards is None:
            row, position, self_index = _positive_pairs(pairs)
            relation = pairs.relation
            anchor = relation.permutation_x.index_select(0, row)
            by_index = _positives_at(position, position + 1, relation)
            entries = 0
            if relation.entries is not None and not torch.compiler.is_compiling():
                listed = relation.pos_end - relation.pos_begin
                entries = int(listed.index_select(0, row).sum())
            alone = _rows_of(pairs, anchor, by_index, entries)
            (score,) = row_stats(alone, total(POS, 1.0, 0.0))
            if relation.overlaps:  # only in the order of the anchors do these intervals ascend
                order = torch.argsort(row, stable=True)
                row, position, self_index, anchor, score = (
                    z.index_select(0, order) for z in (row, position, self_index, anchor, score)
                )
                alone = _rows_of(pairs, anchor, by_index, entries)
            partner = relation.permutation_y.index_select(0, position)
            of_rows = replace(
                alone.relation,
                pos_begin=relation.pos_begin.index_select(0, row),
                pos_end=relation.pos_end.index_select(0, row),
                self_index=self_index,
                entries=relation.entries,
            )
            rows = replace(alone, relation=of_rows)
        else:
            anchor, partner = pairs.shards.positive_pairs()
            shards = pairs.shards.of_rows(anchor)  # they know who is a positive of whom
            nowhere = torch.zeros_like(anchor)
            here = _positives_at(nowhere, nowhere, pairs.relation)
            rows = replace(_rows_of(pairs, anchor, here), shards=shards)
            by_keys = shards.by_keys((partner, pairs.indices(1)))
            alone = replace(rows, shards=by_keys, cache=Cache(rows.cache.prepared))
            (score,) = row_stats(alone, total(POS, 1.0, 0.0))
        return PositiveRows(rows, anchor, partner, score, pairs.shape[0])

    def per_anchor(self, values: Tensor) -> Tensor:
        """Sum values of positive pairs by their anchors.

        Args:
            values: (K,) real numbers, one for each pair; with gradient.

        Returns:
            (N,) the sums, of the dtype of `score`, in the caller's order; 0 for an anchor without
            positives.

        Raises:
            ValueError, TypeError: the message names the argument, what it was and must be.
        """
        found = vector("values", values, len(self.anchor), self.score.dtype, grad=True)
        return add_rows(found.new_empty(self.count), self.anchor, found)


def _rows_of(pairs: Pairs, anchor: Tensor, relation: Relation, entries: int = 0) -> Pairs:
    """Return these rows (K,), against the other set, as the relation has them.

    entries: how many entries the lists of all these anchors have together.
    """
    related = replace(relation, picked=anchor)
    rows = replace(pairs, y=pairs.other, relation=related, complete=True, cache=Cache())
    # A compiler may know K only when the graph runs.
    if pairs.shards is None:
        most_rows, most_entries = most(pairs.x, len(anchor))
        if torch.compiler.is_compiling() or len(anchor) > most_rows or entries > most_entries:
            return rows
    return copied(rows)


def _positives_at(begin: Tensor, end: Tensor, relation: Relation) -> Relation:
    """Return a relation of K rows with positives at [begin, end) of another relation's columns."""
    index = torch.arange(len(begin), device=begin.device)
    itself, valid = torch.full_like(begin, -1), torch.ones_like(begin, dtype=torch.bool)
    columns, valid_y = relation.permutation_y, relation.valid_y
    return Relation(index, columns, begin, end, itself, valid, valid_y)


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
