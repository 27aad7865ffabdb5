"""SupCon over several labels for each row: positives count by how many labels they share."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import losses_of, softplus_of
from pairops.ops.terms.arguments import Given, between, partner
from pairops.ops.terms.checks import one_of
from pairops.ops.terms.functions import Function
from pairops.ops.terms.term import ALL, NEG, POS, highest, lse, total

from .objective.keywords import Labelled, Value
from .objective.objective import labelled

PositiveWeight = Literal["equal", "shared", "jaccard"]


def weighted_supcon(
    x: Tensor,
    labels: Tensor | None,
    scale: float | Tensor,
    positive_weight: PositiveWeight,
    common: Labelled,
) -> Value:
    """Compute `supcon_loss` with a weight for each positive. scale: 1/τ."""
    one_of("positive_weight", positive_weight, get_args(PositiveWeight))
    several = isinstance(labels, Tensor) and labels.ndim == 2
    if not several or common.get("width") is not None or common.get("positives") is not None:
        raise ValueError(
            f"positive_weight is {positive_weight!r}; it must be 'equal' but for labels (N, C), "
            "several for each row"
        )
    assert labels is not None
    objective = labelled(x, labels, common)
    objective.warn_without_positives()
    pairs = objective.pairs
    near = highest(POS, grad=False)
    neg, pos = lse(NEG, scale, near), lse(POS, scale, near)
    shared = _shared(pairs, labels, common.get("ref_labels"), positive_weight)
    weight, weighted = _FUNCTIONS[positive_weight]
    sums = total(POS, *shared, scale, near, function=weighted)
    weights = total(POS, *shared, function=weight)
    terms = near, neg, pos, sums, weights
    found = dict(zip(terms, row_stats(pairs, *terms), strict=True))
    # The mean of one positive is itself, whatever it weighs.
    mean = found[sums] / torch.where(found[weights] > 0, found[weights], 1)
    less_mean = torch.where(pairs.positives() > 1, found[pos] - mean, 0)
    losses = losses_of([softplus_of(neg, pos)], found, pairs) + less_mean
    return objective.value(losses, all=lse(ALL, scale, 0.0))


def _shared(
    pairs: Pairs, labels: Tensor, ref_labels: Tensor | None, positive_weight: PositiveWeight
) -> list[Given]:
    """Return arguments of the weight of a pair: how many labels it shares, and how many each of the
    two has, if that counts."""
    mine, theirs = (
        (z != 0).to(pairs.x.device, pairs.dtype)
        for z in (labels, labels if ref_labels is None else ref_labels)
    )
    shared = between(mine, theirs)
    if positive_weight == "shared":
        return [shared]
    return [shared, mine.sum(1), partner(theirs.sum(1))]


def _count(s, shared):  # type: ignore[no-untyped-def]
    return shared + 0.0 * s


def _count_slopes(s, shared):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return 0.0, 1.0


def _counted(s, shared, scale, base):  # type: ignore[no-untyped-def]
    return shared * scale * (s - base)


def _counted_slopes(s, shared, scale, base):  # type: ignore[no-untyped-def]
    off = s - base
    return shared * scale, scale * off, shared * off, -shared * scale


def _union(shared: Any, mine: Any, theirs: Any) -> Any:
    """How many labels a pair has, or 1: two rows without labels share none."""
    either = mine + theirs - shared
    return torch.where(either > 0, either, 1.0)


def _overlap(s, shared, mine, theirs):  # type: ignore[no-untyped-def]
    return shared / _union(shared, mine, theirs) + 0.0 * s


def _overlap_slopes(s, shared, mine, theirs):  # type: ignore[no-untyped-def]  # noqa: ARG001
    share = 1 / _union(shared, mine, theirs)
    overlap = shared * share
    return 0.0, share + overlap * share, -overlap * share, -overlap * share


def _overlapped(s, shared, mine, theirs, scale, base):  # type: ignore[no-untyped-def]
    return shared / _union(shared, mine, theirs) * scale * (s - base)


def _overlapped_slopes(s, shared, mine, theirs, scale, base):  # type: ignore[no-untyped-def]
    share = 1 / _union(shared, mine, theirs)
    overlap, z = shared * share, scale * (s - base)
    by_size = -overlap * share * z
    by_shared = (share + overlap * share) * z
    return overlap * scale, by_shared, by_size, by_size, overlap * (s - base), -overlap * scale


# The weight of a positive, and that times scale (s − base).
_FUNCTIONS = {
    "shared": (
        Function(_count, _count_slopes, "shared_labels", finite=True),
        Function(_counted, _counted_slopes, "by_shared_labels", finite=True),
    ),
    "jaccard": (
        Function(_overlap, _overlap_slopes, "jaccard_overlap", finite=True),
        Function(_overlapped, _overlapped_slopes, "by_jaccard_overlap", finite=True),
    ),
}
