"""Pairs by list: given, or made of several labels for each row."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from pairops.ops.distributed.group import Group
from pairops.ops.terms.tensor_checks import check_embeddings

from .by_label import pairs_by_label
from .indexing import arange
from .lists import Listed, checked_list, sort_list
from .pairs import Pairs
from .relation import Cache
from .shared_labels import check_several, list_shared


def pairs_by_list(
    x: Tensor,
    given: tuple[Tensor, Tensor],
    names: tuple[str, str],
    *,
    ref_emb: Tensor | None = None,
    group: Group | None = None,
    **pairing: Any,
) -> Pairs:
    """Make `Pairs.listed` for a loss that has checked x. names: of the two tensors, in errors."""
    if group is not None:
        raise ValueError(
            f"group is given with {names[0]} and {names[1]}, which name rows of one process; it "
            "must be None"
        )
    if ref_emb is not None:
        check_embeddings("ref_emb", ref_emb, like=("x", x))
    pairs = _unrelated(x, ref_emb, pairing)
    self_index = pairs.relation.self_index
    found = sort_list(*checked_list(given, pairs.shape, self_index, names), pairs.shape, self_index)
    return _with_list(pairs, found)


def pairs_by_shared_labels(
    x: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    group: Group | None,
    pairing: dict[str, Any],
) -> Pairs:
    """Make pairs by labels (N, C) for a loss that has checked x: rows that share one are positives.

    pairing: further keywords of `Pairs.of`.
    """
    if group is not None:
        raise ValueError(
            "group is given with several labels for each row, whose positives are listed in one "
            "process; it must be None"
        )
    if ignore_index not in (None, -100):
        raise ValueError(
            "ignore_index is given with several labels for each row; a row is left out by no label "
            "at all"
        )
    check_several("labels", labels, "x", x, None)
    if ref_emb is not None:
        check_embeddings("ref_emb", ref_emb, like=("x", x))
        if ref_labels is None:
            raise ValueError("ref_labels is None; it must be given with ref_emb")
        check_several("ref_labels", ref_labels, "ref_emb", ref_emb, labels.shape[1])
        ref_labels = ref_labels.to(x.device)
    elif ref_labels is not None:
        raise ValueError("ref_labels is given without ref_emb; it must come with one")
    pairs = _unrelated(x, ref_emb, pairing)
    found = list_shared(labels.to(x.device), ref_labels, pairs.relation.self_index)
    return _with_list(pairs, found)


def _unrelated(x: Tensor, y: Tensor | None, pairing: dict[str, Any]) -> Pairs:
    """Make pairs by labels that nobody shares: both sets stay in the caller's order."""
    theirs = None if y is None else arange(y)
    return pairs_by_label(x, arange(x), ref_emb=y, ref_labels=theirs, ignore_index=None, **pairing)


def _with_list(pairs: Pairs, found: Listed) -> Pairs:
    relation = replace(
        pairs.relation,
        pos_begin=found.begin,
        pos_end=found.end,
        entries=found.entries,
        all_positive=False,
    )
    return replace(pairs, relation=relation, cache=Cache(positives=found.end - found.begin))
