"""Retrieval metrics over millions of rows, by counting ranks, without matrix or index.

The rank of a query's first hit is one more than the number of negatives nearer than its nearest
positive. These are two statistics, and only the count visits every pair. MAP@R and R-precision need
the ranks of all positives: counted in the same way if these are few, else in `ranking.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.bindings.devices import widest_float
from pairops.ops.distributed.agreement import collective
from pairops.ops.distributed.allocation import refusing
from pairops.ops.distributed.group import Given
from pairops.ops.engines import ENGINES, choose
from pairops.ops.pairs.pairs import Pairing, Pairs
from pairops.ops.pairs.signatures import keywords_of, spelled_out
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.checks import count, flag, one_of
from pairops.ops.terms.functions import one
from pairops.ops.terms.term import NEG, POS, highest, total

from .ranking import precisions_at_r

__all__ = ["Retrieval", "average_precisions", "evaluate", "first_ranks"]

Ties = Literal["pessimistic", "optimistic"]

_MOST = 2**24  # references, up to which a count in float32 is exact
_COUNTED = 32  # positives of a query, at most, whose ranks are counted one by one
_AT_ONCE = 8  # counts in a pass: each adds a thirtieth of the time of a matrix product


class Compared(Pairing, total=False):
    """The keywords of `Pairs.of`, with the ranks that share the references."""

    group: Given


_spelled_out = spelled_out(keywords_of(Pairs.of))


@dataclass(frozen=True)
class Retrieval:
    """Means over queries; NaN where there is no query.

    Args:
        recall: by K, the share of queries with a hit among their K nearest.
        mrr: the mean of 1 / rank of the first hit.
        map_at_r: MAP@R. None: not asked for.
        r_precision: R-precision. None: not asked for.
        queries: over how many queries the means are taken, with `group` those of all ranks.
    """

    recall: dict[int, float]  # by K: the share of queries with a hit among their K nearest
    mrr: float  # of 1 / rank of the first hit
    map_at_r: float | None  # None: not asked for
    r_precision: float | None
    queries: int  # the number of queries in the means


@_spelled_out
@collective(apart=("progress",))
@refusing
@torch.no_grad()
def evaluate(
    x: Tensor,
    labels: Tensor,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    map_at_r: bool = True,
    ties: Ties = "pessimistic",
    lone: Literal["skip", "zero"] = "skip",
    progress: bool | None = None,
    **common: Unpack[Compared],
) -> Retrieval:
    """Measure how well the references nearest to a query have its label.

    With R the number of references that have a query's label, itself left out, and rank_k the rank
    of the k-th nearest of these among all references:

        Recall@K = [rank_1 ≤ K]    R-precision = #{k: rank_k ≤ R} / R
        MRR = 1 / rank_1           MAP@R = 1/R Σ_{k: rank_k ≤ R} k / rank_k

    Without `ref_emb` every row is a query and a reference. Distances of unit vectors rank as
    "cosine" does, which is the fastest. A NaN is never near: a negative at a NaN ranks before every
    positive, and a query with a NaN among its positives has no hit.

    It takes O((N+M)·D) memory and one product of each query and reference; for MAP@R one for each 8
    of up to 32 positives. Where a query has more, blocks of 1,024 queries (2²¹ / R, if that is
    less) meet the references once more in plain torch, in tiles.

    With `group` the queries are the rows of this rank, and the references those of all ranks. These
    come past in blocks, of which a rank holds two, however many ranks there are: in a ring for
    each product, and one for each of up to 32 positives; beyond that in two more for each block of
    queries. The means are over the queries of all ranks, and the same on each.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the queries.
        labels: (N,) integers. A reference with the same label is a hit.
        recall_at: ints, the K. This is the Recall@K of metric learning; that of information
            retrieval is the share of a query's R positives that are found.
        map_at_r: False leaves MAP@R and R-precision out, which cost as much again or more.
        ties: where a negative is exactly as near as a positive, "pessimistic" ranks the negative
            first, "optimistic" the positive.
        lone: "skip" leaves a query without positives out, "zero" counts it as 0.
        progress: True shows a bar anywhere, False nowhere. None: on a terminal, if tqdm is
            installed. Where a query has more than 32 positives, or with a distance, MAP@R takes
            longest, block by block.

    Returns:
        The means over the queries.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        Musgrave et al., A Metric Learning Reality Check, ECCV 2020 (MAP@R, R-precision). Where
        nothing ties the numbers equal pytorch-metric-learning's AccuracyCalculator, whose
        precision_at_1 is Recall@1.

    Differs from:
        pytorch-metric-learning leaves ties to its index.
    """
    cutoffs = _cutoffs(recall_at)
    one_of("lone", lone, ("skip", "zero"))
    flag("map_at_r", map_at_r)
    pairs = _pairs(x, labels, ties, common)
    ranks, precisions = _found(pairs, ties, progress, map_at_r)
    dtype = widest_float(x.device)
    counted = pairs.relation.valid_x if lone == "zero" else pairs.positives() > 0
    values = [(ranks > 0) & (ranks <= k) for k in cutoffs]
    values += [torch.where(ranks > 0, 1 / ranks.to(dtype), 0.0), *(precisions or ())]
    sums = torch.stack([z[counted].to(dtype).sum() for z in [*values, counted]])
    if pairs.shards is not None:
        sums = pairs.shards.group.total(sums)
    means = (sums[:-1] / sums[-1]).tolist()
    recall, (mrr, *at_r) = means[: len(cutoffs)], means[len(cutoffs) :]
    found = at_r or [None, None]
    return Retrieval(
        dict(zip(cutoffs, recall, strict=True)), mrr, found[0], found[1], int(sums[-1])
    )


@_spelled_out
@collective(apart=("progress",))
@refusing
@torch.no_grad()
def first_ranks(
    x: Tensor, labels: Tensor, *, ties: Ties = "pessimistic", **common: Unpack[Compared]
) -> Tensor:
    """Return the rank of each query's first hit, from 1.

    With `group` among the references of all ranks, for the queries of this one.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the queries.
        labels: (N,) integers. A reference with the same label is a hit.
        ties: "pessimistic" or "optimistic", as in `evaluate`.

    Returns:
        (N,) int64; 0 for a query without positives. With M references the rank M + 1 says that the
        query has a NaN among its positives.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.
    """
    return _ranks(_pairs(x, labels, ties, common), ties, 1)[:, 0]


@_spelled_out
@collective(apart=("progress",))
@refusing
@torch.no_grad()
def average_precisions(
    x: Tensor,
    labels: Tensor,
    *,
    ties: Ties = "pessimistic",
    progress: bool | None = None,
    **common: Unpack[Compared],
) -> tuple[Tensor, Tensor]:
    """Return average precision at R and R-precision of every query.

    With `group` among the references of all ranks, for the queries of this one.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the queries.
        labels: (N,) integers. A reference with the same label is a hit.
        ties: "pessimistic" or "optimistic", as in `evaluate`.
        progress: True shows a bar anywhere, False nowhere. None: on a terminal, if tqdm is
            installed.

    Returns:
        (N,) and (N,) float64, or float32 on a device without float64; 0 for a query without
        positives.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.
    """
    pairs = _pairs(x, labels, ties, common)
    _, precisions = _found(pairs, ties, progress, True)
    assert precisions is not None
    return precisions


def _pairs(x: Tensor, labels: Tensor, ties: str, common: Compared) -> Pairs:
    one_of("ties", ties, get_args(Ties))
    pairs = Pairs.of(x, labels, **common)
    if pairs.relation.entries is not None:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; it must be (N,), one label for each "
            "row: retrieval has no ranks by list"
        )
    references = pairs.batch[1]
    if references > _MOST and pairs.dtype == torch.float32:
        raise ValueError(
            f"there are {references} references; {_MOST} at most are counted in float32, more than "
            "that in float64"
        )
    return pairs


def _ranks(pairs: Pairs, ties: str, most: int) -> Tensor:
    """(N, most) int64: the ranks of each query's nearest positives; 0 where it has fewer."""
    size, k = pairs.positives().unsqueeze(1), torch.arange(1, most + 1, device=pairs.x.device)
    values: list[Tensor] = []  # of a query's positives, nearest first, distinct
    left: list[Tensor] = []  # the number of positives that are not nearer
    for _ in range(most):
        last = values[-1] if values else None
        # One call, so that one engine serves it all and s has the same bits throughout.
        terms = highest(POS, below=last, grad=False), total(POS, function=one, below=last)
        value, count = row_stats(pairs, *terms)
        values.append(value)
        left.append(count)
    begin = size - torch.stack(left, 1).long()
    at = torch.searchsorted(begin, k.expand(len(begin), -1).contiguous()) - 1
    bounds = torch.stack(values, 1).gather(1, at.clamp(min=0))
    if ties == "pessimistic":  # ties are above the next smaller number
        below = torch.nextafter(bounds, torch.full_like(bounds, -torch.inf))
        # The next number must not be one that is flushed to 0.
        tiny = torch.finfo(bounds.dtype).tiny
        bounds = torch.where(bounds.abs() < tiny, -tiny, below)
    nearer: list[Tensor] = []
    for some in bounds.split(_AT_ONCE, 1):
        nearer += row_stats(pairs, *[total(NEG, function=one, above=b) for b in some.unbind(1)])
    ranks = k + torch.stack(nearer, 1).long()
    ranks = torch.where(values[0].isnan().unsqueeze(1), pairs.batch[1] + 1, ranks)
    return torch.where(k <= size, ranks, 0)


def _found(
    pairs: Pairs, ties: str, progress: bool | None, precisions: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """First ranks; average precision at R and R-precision, if they are wanted."""
    flag("progress", progress, optional=True)
    size = pairs.positives()
    widest = int(size.max()) if precisions and len(size) else 0
    # One visit is cheaper than many where an engine in plain torch compares by a distance.
    most = _COUNTED if pairs.measure is None or _compiled(pairs) else 0
    if pairs.shards is not None:  # all ranks go through as many rings
        every, mosts = pairs.shards.group.agree({}, widest, most)
        widest, most = max(every), min(mosts)
    in_strips = widest > most
    ranks = _ranks(pairs, ties, 1 if in_strips else max(1, widest))
    if not precisions:
        return ranks[:, 0], None
    if in_strips:
        precision, share = precisions_at_r(pairs, ties == "pessimistic", progress)
        return ranks[:, 0], (precision, share)
    hit = (ranks > 0) & (ranks <= size.unsqueeze(1))
    k = torch.arange(1, ranks.shape[1] + 1, device=size.device)
    dtype = widest_float(size.device)
    precision = torch.where(hit, k.to(dtype) / ranks, 0.0)
    among = size.clamp(min=1).to(dtype)
    return ranks[:, 0], (precision.sum(1) / among, hit.sum(1) / among)


def _compiled(pairs: Pairs) -> bool:
    """Return whether an engine that knows distances counts with these pairs."""
    counting = total(POS, function=one)
    return ENGINES[choose(pairs, (counting,), ())].TAKES_DISTANCES


def _cutoffs(recall_at: Sequence[int]) -> list[int]:
    if isinstance(recall_at, (str, bytes)) or not isinstance(recall_at, Sequence):
        raise TypeError(
            f"recall_at is {type(recall_at).__name__}; it must be a sequence of numbers"
        )
    if not recall_at:
        raise ValueError("recall_at is empty; it must hold at least one number")
    return sorted({count(f"recall_at[{at}]", k, 1) for at, k in enumerate(recall_at)})
