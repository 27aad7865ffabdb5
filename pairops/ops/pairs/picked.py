"""Rows that are picked from x by index: engines see copies of some of them at a time."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from pairops.ops.terms.term import Term

from .indexing import pick_rows
from .pairs import Pairs
from .relation import Cache, Scales


def copied(pairs: Pairs, first: int = 0, last: int | None = None) -> Pairs:
    """Return the rows [first, last) of picked rows with copies of their embeddings, as pairs whose
    rows are those of x. The copies pass their gradients on."""
    relation, scale, here = pairs.relation, pairs.scales.x, slice(first, last)
    assert relation.picked is not None, "the rows are picked"
    index = relation.picked[here]
    return replace(
        pairs,
        x=pick_rows(pairs.x, index),
        scales=Scales(None if scale is None else scale.index_select(0, index), pairs.scales.y),
        relation=replace(
            relation,
            permutation_x=torch.arange(len(index), device=index.device),
            pos_begin=relation.pos_begin[here],
            pos_end=relation.pos_end[here],
            self_index=relation.self_index[here],
            valid_x=relation.valid_x[here],
            picked=None,
        ),
        copies_of=index,
        cache=Cache(),
    )


def of_rows(terms: Sequence[Term], first: int, last: int) -> list[Term]:
    """Return terms of rows as terms of the rows [first, last) alone."""
    return [
        term.with_tensors(
            iter([z[first:last] for z in term.tensors("owner", "window")]),
            iter(term.tensors("partner")),
        )
        for term in terms
    ]
