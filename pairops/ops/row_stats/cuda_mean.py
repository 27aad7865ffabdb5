"""The mean of losses that are sums of log(1 + exp R) by the engine `cuda`: statistics, mean and
slopes in one node of the graph, and one call of the extension each way.

A small step on a GPU takes as long as Python needs to launch it. A gradient that is not the first
ordinary one is computed by the way that other calls take.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops import engines
from pairops.ops.autograd.node import followed_by_autograd_alone, transformed
from pairops.ops.autograd.recompute import by_inputs
from pairops.ops.distributed.allocation import refusing
from pairops.ops.engines import cuda_engine
from pairops.ops.engines.cuda.launch import ForwardResult, SoftMean
from pairops.ops.engines.cuda.plans import CudaPlan
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Relation, Scales
from pairops.ops.terms.term import BY_SETS, Term

from .op import row_stats, watching
from .pieces import Piece
from .softplus_mean import softplus_mean

_Terms = tuple[Term, ...]


class _SavedCudaMean(NamedTuple):
    plan: CudaPlan
    relation: Relation
    scales: Scales
    complete: bool
    rows: _Terms
    mean: SoftMean
    prepared: int  # the number of saved tensors that the engine prepared

    def pairs(self, x: Tensor, y: Tensor | None, prepared: Sequence[Tensor]) -> Pairs:
        cache = Cache({cuda_engine.NAME: [*prepared]})
        return Pairs(x, y, self.relation, self.scales, cache, self.complete)


def cuda_mean(pairs: Pairs, rows: _Terms, pieces: Sequence[Piece]) -> Tensor | None:
    """Return the mean over the anchors that are not ignored of the sum of pieces; None: take the
    long way."""
    x, y, relation = pairs.x, pairs.y, pairs.relation
    if watching.calls is not None or pairs.shards is not None or pairs.measure is not None:
        return None
    if relation.picked is not None or relation.entries is not None or not x.shape[0]:
        return None
    if not engines.asks_cuda_first(pairs) or not followed_by_autograd_alone(x, y):
        return None
    plan = cuda_engine.plan_at_once(pairs, rows)
    mean = None if plan is None else _soft_mean(plan, rows, pieces)
    if plan is None or mean is None:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or (y is not None and y.requires_grad)):
        found: Tensor = _CudaMean.apply(pairs, rows, plan, mean, x, y)  # type: ignore[no-untyped-call]
        return found
    made: ForwardResult = cuda_engine.forward_with_mean(
        pairs, rows, (), plan, mean._replace(slopes=False)
    )
    return made.mean


def _soft_mean(plan: CudaPlan, rows: _Terms, pieces: Sequence[Piece]) -> SoftMean | None:
    """Return the mean of these pieces, if each is log(1 + exp R) of another of the swept terms."""
    terms, divisors = [], []
    for shape, plus, minus, offset, weight in pieces:
        if shape != "log1p_exp" or minus is not None or type(offset) is not float or offset:
            return None
        if type(weight) is not float or plus not in rows:
            return None
        terms.append(rows.index(plus))
        divisors.append(1 / weight)
    if sorted(terms) != plan.swept or len(terms) > plan.most_statistics:
        return None
    return SoftMean(terms, divisors, True)


class _CudaMean(torch.autograd.Function):
    """A node: pairs, terms, a plan, what the mean is of, x, y → the mean."""

    @staticmethod
    @refusing
    def forward(
        ctx: Any,
        pairs: Pairs,
        rows: _Terms,
        plan: CudaPlan,
        mean: SoftMean,
        x: Tensor,
        y: Tensor | None,
    ) -> Tensor | None:
        made: ForwardResult = cuda_engine.forward_with_mean(pairs, rows, (), plan, mean)
        prepared = cuda_engine.prepare(pairs)
        shared = pairs.relation, pairs.scales, pairs.complete
        ctx.saved = _SavedCudaMean(plan, *shared, rows, mean, len(prepared))
        ctx.save_for_backward(x, y, made.tile_masks, *prepared, *made.slopes, *made.values)
        return made.mean

    @staticmethod
    @refusing
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        saved: _SavedCudaMean = ctx.saved
        *_, need_x, need_y = ctx.needs_input_grad
        x, y, tile_masks, *rest = ctx.saved_tensors
        prepared, rest = rest[: saved.prepared], rest[saved.prepared :]
        pairs = saved.pairs(x, y, prepared)
        if torch.is_grad_enabled() or transformed((gradient,)):
            dx, dy = _once_more(saved, pairs, gradient, (need_x, need_y))
        else:
            slopes, values = rest[: len(saved.mean.terms)], rest[len(saved.mean.terms) :]
            cotangents = [*values]  # those of the other terms are not read
            for k, slope in zip(saved.mean.terms, slopes):  # noqa: B905
                cotangents[k] = slope
            dx, dy, _ = cuda_engine.backward_of_mean(
                pairs, saved.rows, (), values, cotangents, tile_masks, BY_SETS[need_x, need_y],
                saved.plan, gradient.resolve_neg(),
            )  # fmt: skip
        return None, None, None, None, dx if need_x else None, dy if need_y else None


def _once_more(
    saved: _SavedCudaMean, pairs: Pairs, gradient: Tensor, needs: tuple[bool, bool]
) -> Sequence[Tensor | None]:
    """Compute gradients the way of other calls, for any further derivative."""

    def mean(x: Tensor, y: Tensor | None) -> tuple[Tensor]:
        again = saved.pairs(x, y, pairs.cache.prepared[cuda_engine.NAME])
        # An engine that was found wrong since serves no call.
        wrong = engines.first_use.reason_against(cuda_engine.NAME, False)
        with engines.engine("auto" if wrong else cuda_engine.NAME):
            values = row_stats(again, *saved.rows)
        statistics = [values[k] for k in saved.mean.terms]
        return (softplus_mean(again, statistics, saved.mean.divisors),)

    return by_inputs(mean, needs, (pairs.x, pairs.y), (gradient,))
