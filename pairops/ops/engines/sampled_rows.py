"""Sampled rows of what an engine computed, beside plain torch on the same device.

Nothing here reads the value of a tensor, so nothing waits for the device: a comparison is a tensor
of three numbers. It follows the error rule of docs/numerics.md: the truth is float64, and what is
allowed is a multiple of twice the error of float32 and 4ε of the largest entry.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.pairs.indexing import inverse_permutation
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale, normalize_backward
from pairops.ops.terms.accumulators import finite
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.recipe import key
from pairops.ops.terms.term import ALL, POS, Term, Wanted

from .weight_parts import two_parts

PAIRS = 1 << 20  # so many are compared, in no fewer than FEWEST rows and no more than MOST
FEWEST, MOST = 4, 64
WIDENED = 4096  # rows that are in float64 at a time

# The rule allows the worst of seven orders of summation. Here is one, of few numbers, and its error
# may be small by luck: so much more is allowed than the rule's bound.
TIMES = 8.0

_EPSILON = torch.finfo(torch.float32).eps
_NEAR = 8 * _EPSILON  # of the lengths of both rows: their similarity may be off by as much
# A bfloat16 pair's weight of one part has 11 bits, which the rule leaves out where weights cancel.
_WEIGHT = 2.0**-11


class Comparison(NamedTuple):
    what: str
    numbers: Tensor  # (3,) float64: the error, what the rule allows, how many rows were compared


def of_statistics(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], statistics: Sequence[Tensor]
) -> list[Comparison]:
    """Compare statistics, as `Engine.forward` returns them, of terms as it takes them."""
    found = []
    values = iter(statistics)
    for axis, terms in ((0, rows), (1, cols)):
        if terms:
            sample = _Sample(pairs, axis)
            found += [sample.of_statistic(term, next(values)) for term in terms]
    return found


def of_gradients(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    needs: Wanted,
    gradients: tuple[Tensor, Tensor],
) -> list[Comparison]:
    """Compare the gradients by x and y of `Engine.backward`, with its statistics and cotangents."""
    axes = [0] * len(rows) + [1] * len(cols)
    terms = [*zip(axes, (*rows, *cols), statistics, cotangents, strict=True)]
    found = []
    for axis, name in enumerate("xy"):
        if needs[axis] and (axis == 0 or pairs.y is not None):
            views = [_Sample(pairs, axis)]
            if pairs.y is None:  # a row is an owner and a partner
                views.append(_Sample(pairs, 1, views[0]))
            found.append(_of_gradient(f"gradient by {name}", views, terms, gradients[axis]))
    return found


_Differentiated = tuple[int, Term, Tensor, Tensor]  # the owners' axis, statistic, cotangent


def _of_gradient(
    what: str, views: Sequence["_Sample"], terms: Sequence[_Differentiated], ours: Tensor
) -> Comparison:
    sample = views[0]
    near = torch.zeros_like(sample.at, dtype=torch.bool)
    calls = []
    for view in views:
        for axis, term, statistic, cotangent in terms:
            selected, close = view.selected(term, axis)
            near = near | close
            calls.append((view, (term, axis, statistic, cotangent, selected)))
    results, slack = [], None
    for dtype in (torch.float64, torch.float32):
        weights = torch.zeros_like(sample.similarities(dtype))
        for view, call in calls:
            weights += view.weights(*call, dtype)
        results.append(sample.gradient(weights))
    if sample.x.dtype == torch.bfloat16 and not two_parts(sample.pairs):
        slack = _WEIGHT * sample.reach_of(weights)
    truth, dense = results
    return compared(what, ours.index_select(0, sample.at), dense.to(ours.dtype), truth, near, slack)


class _Sample:
    """Some rows (axis 0) or columns (1), with all of their pairs."""

    def __init__(self, pairs: Pairs, axis: int, same: "_Sample | None" = None) -> None:
        """same: the sample of the other axis of one set, which has the same similarities."""
        self.pairs, self.axis = pairs, axis
        relation, scales = pairs.relation, pairs.scales
        sets = (
            (pairs.x, scales.x, relation.permutation_x, relation.valid_x),
            (pairs.other, scales.y, relation.permutation_y, relation.valid_y),
        )
        self.x, self.scale, order, self.valid = sets[axis]
        self._others, self._other_scale, other_order, self._other_valid = sets[1 - axis]
        count = rows_of(pairs.shape[axis], pairs.shape[1 - axis])
        steps = torch.arange(count, device=order.device)
        # Evenly among the sorted positions, the first and the last one among them.
        positions = (steps * (pairs.shape[axis] - 1)).div(max(count - 1, 1), rounding_mode="floor")
        self.at = order.index_select(0, positions)
        mine, theirs = positions.unsqueeze(1), inverse_permutation(other_order)
        row, column = (mine, theirs) if axis == 0 else (theirs, mine)
        begin, end = relation.pos_begin[row], relation.pos_end[row]
        if relation.entries is None:
            self._positive = (column >= begin) & (column < end)
        else:
            self._positive = _listed(relation.entries, begin, end, column)
        present = column != relation.self_index[row]
        self._present = present & self.valid[self.at].unsqueeze(1) & self._other_valid
        self._similarities: dict[torch.dtype, Tensor] = {} if same is None else same._similarities

    def similarities(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._similarities:
            mine = self._mine(dtype)
            self._similarities[dtype] = torch.cat([mine @ z.T for z in self._chunks(dtype)], 1)
        return self._similarities[dtype]

    def of_statistic(self, term: Term, ours: Tensor) -> Comparison:
        selected, near = self.selected(term, self.axis)
        truth, dense = [
            self._statistic(term, selected, dtype) for dtype in (torch.float64, torch.float32)
        ]
        what = f"{key(term)} of {'columns' if self.axis else 'rows'}"
        return compared(what, ours.index_select(0, self.at), dense, truth, near)

    def selected(self, term: Term, axis: int) -> tuple[Tensor, Tensor]:
        """Return the pairs (R, M) that count for a term of this axis, and which rows (R,) have one
        so near a window that rounding decides."""
        positive, s = self._positive, self.similarities(torch.float64)
        selected = self._present
        if term.side != ALL:
            selected = selected & (positive if term.side == POS else ~positive)
        near = torch.zeros_like(selected)
        reach = _NEAR * self._lengths() if term.windows() or self.pairs.measure else 0.0
        for bound, below in ((term.above, False), (term.below, True)):
            if bound is not None:
                limit = self._spread(bound, axis, torch.float64)
                near = near | (selected & ((s - limit).abs() <= reach))
                selected = selected & ~(s >= limit if below else s <= limit)
        if self.pairs.measure is not None:  # windows of a distance are within the function
            args = self._arguments(term, axis, torch.float64)
            neutral = term.monoid.neutral
            inside = [term.value(moved, *args) == neutral for moved in (s - reach, s + reach)]
            near = near | (selected & (inside[0] != inside[1]))
        return selected, near.any(1)

    def weights(
        self,
        term: Term,
        axis: int,
        statistic: Tensor,
        cotangent: Tensor,
        selected: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the pair weights (R, M) of a term of this axis."""
        s, args = self.similarities(dtype), self._arguments(term, axis, dtype)
        share = self._spread(cotangent, axis, dtype)
        if term.statistic == "lse":
            f = term.value(s, *args) - self._spread(finite(statistic), axis, dtype)
            share = share * torch.exp(torch.where(selected, f, -torch.inf))
        return torch.where(selected, share * term.slopes(s, *args)[0], 0.0)

    def gradient(self, weights: Tensor) -> Tensor:
        """Return the gradient by the sampled rows of x."""
        return normalize_backward(self._sums(weights), *self._normalized())

    def reach_of(self, weights: Tensor) -> Tensor:
        """Return how far the gradient moves at most where every weight moves by its size."""
        total = self._sums(weights.abs(), absolute=True)
        mine = self._mine(weights.dtype).abs()
        _, scale, _ = self._normalized()
        if scale is None:
            return total
        along = mine * (mine * total).sum(1, keepdim=True)
        return (total + along) * scale.to(weights.dtype).unsqueeze(1)

    def _normalized(self) -> tuple[Tensor, Tensor | None, Tensor]:
        scale = None if self.scale is None else self.scale[self.at]
        return self.x[self.at], scale, self.valid[self.at]

    def _mine(self, dtype: torch.dtype) -> Tensor:
        x, scale, valid = self._normalized()
        return _comparable(x, scale, valid, dtype)

    def _chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for first in range(0, len(self._others), WIDENED):
            some = slice(first, first + WIDENED)
            scale = None if self._other_scale is None else self._other_scale[some]
            yield _comparable(self._others[some], scale, self._other_valid[some], dtype)

    def _sums(self, weights: Tensor, absolute: bool = False) -> Tensor:
        parts = weights.split(WIDENED, 1)
        total = torch.zeros_like(self._mine(weights.dtype))
        for part, z in zip(parts, self._chunks(weights.dtype), strict=True):
            total += part @ (z.abs() if absolute else z)
        return total

    def _lengths(self) -> Any:
        """Return the products (R, M) of the lengths of both rows; 1 for unit vectors."""
        if self.scale is not None:
            return 1.0
        others = [torch.linalg.vector_norm(z, dim=1) for z in self._chunks(torch.float64)]
        return torch.linalg.vector_norm(self._mine(torch.float64), dim=1)[:, None] * torch.cat(
            others
        )

    def _spread(self, values: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
        """Return values along an axis as they vary over the pairs (R, M)."""
        values = values.to(dtype)
        return values.index_select(0, self.at).unsqueeze(1) if axis == self.axis else values

    def _arguments(self, term: Term, axis: int, dtype: torch.dtype) -> list[Any]:
        return [
            self._spread(a.values, 1 - axis, dtype)
            if isinstance(a, Partner)
            else self._spread(a, axis, dtype)
            if isinstance(a, Tensor)
            else a
            for a in term.args
        ]

    def _statistic(self, term: Term, selected: Tensor, dtype: torch.dtype) -> Tensor:
        s, neutral = self.similarities(dtype), term.monoid.neutral
        f = term.value(s, *self._arguments(term, self.axis, dtype))
        f = torch.where(selected, f, neutral)
        if term.statistic == "sum":
            return f.sum(1)
        if term.statistic == "lse":
            return torch.logsumexp(f, 1)
        return f.amin(1) if term.statistic == "lowest" else f.amax(1)


def rows_of(owners: int, partners: int) -> int:
    """Return how many owners are sampled."""
    return min(owners, max(FEWEST, min(MOST, PAIRS // max(partners, 1))))


def _comparable(x: Tensor, scale: Tensor | None, valid: Tensor, dtype: torch.dtype) -> Tensor:
    return apply_scale(torch.where(valid.unsqueeze(1), x, 0), scale, dtype)


def _listed(entries: Tensor, begin: Tensor, end: Tensor, column: Tensor) -> Tensor:
    """Tell which columns are among entries [begin, end), which ascend. No wait: it is bisected."""
    low, high = torch.broadcast_tensors(begin, end)
    low, high = low + torch.zeros_like(column), high + torch.zeros_like(column)
    if not len(entries):
        return torch.zeros_like(low, dtype=torch.bool)
    stop = high
    for _ in range(len(entries).bit_length()):
        middle = (low + high).div(2, rounding_mode="floor")
        less = (middle < high) & (entries[middle.clamp(max=len(entries) - 1)] < column)
        low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
    found: Tensor = (low < stop) & (entries[low.clamp(max=len(entries) - 1)] == column)
    return found


def compared(
    what: str, ours: Tensor, dense: Tensor, truth: Tensor, near: Tensor, slack: Tensor | None = None
) -> Comparison:
    """Compare rows but for those where the truth is no number, or a window is near.

    slack: how far off each entry may be besides.
    """
    ours, dense = ours.double(), dense.double()
    per_row = (near.shape[0], -1)
    strange = (truth.isnan() | dense.isnan()).reshape(per_row).any(1)
    usable = ~(near | strange).reshape(-1, *[1] * (truth.dim() - 1))
    # Infinities that agree are no error, and their difference would be NaN.
    error = torch.where(ours == truth, 0.0, (ours - truth).abs())
    if slack is not None:
        error = error - slack
    rounding = torch.where(dense == truth, 0.0, (dense - truth).abs())
    size = torch.where(truth.isinf(), 0.0, truth.abs())
    most = [torch.where(usable, z, 0.0).amax() for z in (error, rounding, size)]
    allowed = TIMES * (2 * most[1] + 4 * _EPSILON * most[2])
    return Comparison(what, torch.stack([most[0], allowed, usable.sum().double()]))
