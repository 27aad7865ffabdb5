"""Distances: functions of a similarity and of one number per row, put under the terms of a loss.

A distance counts as a similarity with its sign turned: t_ij = −d_ij is the closeness of a pair. So
a loss is written once, in closeness. With squared norms a_i and b_j the squared distance is
q_ij = a_i + b_j − 2 s_ij. Engines compute no more than that: neither a matrix of distances nor one
of differences.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pairops.ops.terms.accumulators import ACCUMULATORS
from pairops.ops.terms.arguments import Argument, Partner
from pairops.ops.terms.functions import FUNCTIONS, Function
from pairops.ops.terms.term import Term

from .relation import Relation, Scales
from .similarity import apply_scale, at_least_float32, inverse_norm

Distance = Literal["cosine", "dot", "l2", "sqeuclidean", "snr"]


def centred(
    name: str,
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ignore_index: int | None,
    unit: bool,
) -> Tensor:
    """Subtract its mean from each row, which has unit length before that if `unit`.

    An ignored row, and a row that varies by rounding alone, becomes 0. A variance is a squared norm
    of such rows, and the variance of a difference their distance.
    """
    if x.shape[0] and x.shape[1] < 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and distance is 'snr'; D must be at least 2"
        )
    if labels is not None and ignore_index is not None:
        x = torch.where((labels == ignore_index).unsqueeze(1), 0, x)
    rows = at_least_float32(x)
    rows = apply_scale(rows, inverse_norm(rows) if unit else None, rows.dtype)
    apart = rows - rows.mean(1, keepdim=True)
    rounding = (16 * torch.finfo(rows.dtype).eps) ** 2 * (rows * rows).sum(1, keepdim=True)
    flat = ((apart * apart).sum(1, keepdim=True) <= rounding) & (rounding < torch.inf)
    # Such a row has a gradient as a partner, so its value alone becomes 0.
    return apart - torch.where(flat, apart, 0).detach()


@dataclass(frozen=True)
class Measure:
    """A distance between rows and columns."""

    name: str  # "l2", "sqeuclidean" or "snr"
    anchors: int = 0  # 1: the columns are the anchors; it matters if `directed`

    @staticmethod
    def of(key: str) -> "Measure | None":
        """Return the measure with this `key`; None, a similarity, for ""."""
        return _MEASURES[key]

    @property
    def key(self) -> str:
        """The measure as ops take it."""
        return self.name + " of columns" * self.anchors

    @property
    def directed(self) -> bool:
        """Whether the distance depends on the anchor: snr divides by its variance."""
        return self.name == "snr"

    def turned(self) -> "Measure":
        """Return the same distance with rows and columns exchanged as anchors."""
        return replace(self, anchors=1 - self.anchors) if self.directed else self


_MEASURES: dict[str, Measure | None] = {"": None} | {
    measure.key: measure
    for measure in (Measure("l2"), Measure("sqeuclidean"), Measure("snr"), Measure("snr", 1))
}


@dataclass(frozen=True, eq=False)
class Squares:
    """Squared norms of rows and columns, which a distance takes besides similarities."""

    measure: Measure
    a: Tensor  # (N,) squared norms of the rows, 0 for an ignored one
    b: Tensor  # (M,) squared norms of the columns
    share: Tensor | None  # 1 over the anchors' squared norms, or 0, if directed
    floor: float  # q below floor·(a + b) is rounding error, and the distance 0

    @staticmethod
    def of(
        measure: Measure,
        x: Tensor,  # (N, D)
        y: Tensor | None,  # (M, D); None: the same set
        relation: Relation,
        scales: Scales,
        dtype: torch.dtype,
    ) -> "Squares":
        """Compute them; in grad mode they are functions of x and y, but for unit vectors."""
        a = _squares(x, relation.valid_x, scales.x, dtype)
        b = a if y is None else _squares(y, relation.valid_y, scales.y, dtype)
        share = None
        if measure.directed:
            share = _reciprocal(a if measure.anchors == 0 else b, x.shape[1])
        return Squares(measure, a, b, share, 16 * torch.finfo(dtype).eps)

    def of_term(self, term: Term, axis: int) -> Term:
        """Return a term of closeness, and its windows, as a term of similarities.

        The term is `over` its pairs, and so is the result. axis: 1 in `cols=`. The tensors of the
        term come first in the new one, then a, b and `share`, then the windows.
        """

        def argument(values: Tensor, of_axis: int) -> Argument:
            # A view for each use: its gradients are added up in the order of the uses, last first.
            values = values.view_as(values) if term.grad else values.detach()
            return values if axis == of_axis else Partner(values)

        args = [*term.args, argument(self.a, 0), argument(self.b, 1), self.floor]
        if self.share is not None:
            args.append(argument(self.share, self.measure.anchors))
        windows = tuple([k for k, z in enumerate((term.above, term.below)) if z is not None])
        args += [z for z in (term.above, term.below) if z is not None]
        made = _measured(term.function.name, self.measure.name, windows, term.statistic)
        function = getattr(_MADE, made)
        return replace(term, function=function, args=tuple(args), above=None, below=None)

    def of_block(self, s: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the closeness (R, C) of these rows and columns from their similarities."""
        args = [self.a[rows].unsqueeze(1), self.b[cols], self.floor]
        if self.share is not None:
            by_row = self.measure.anchors == 0
            args.append(self.share[rows].unsqueeze(1) if by_row else self.share[cols])
        closeness: Tensor = _CLOSENESS[self.measure.name][0](s, *args)
        return closeness

    def wanted(self, x: bool, y: bool) -> list[bool]:
        """Return whether gradients by a, b and `share` are wanted, given those by x and y."""
        by_anchors = (x, y)[self.measure.anchors]
        return [x, y] if self.share is None else [x, y, by_anchors]

    def gradient(
        self, slopes: Sequence[Sequence[Tensor]], axes: Sequence[int], rows: Tensor, valid: Tensor
    ) -> Tensor:
        """Return the gradient by rows (N, D) through their squared norms; 0 for an ignored row.

        slopes: each term's gradients by a, b and `share`.  axes: 0 if a belongs to these rows, 1 if
        b does; both in one set.
        """

        def by(k: int) -> Tensor:
            return functools.reduce(torch.add, [of_term[k] for of_term in slopes])

        by_square = functools.reduce(torch.add, [by(axis) for axis in axes])
        if self.share is not None and self.measure.anchors in axes:
            by_share = torch.where(self.share == 0, 0, by(2))
            by_square = by_square - self.share * (self.share * by_share)
        rows = torch.where(valid.unsqueeze(1), rows, 0).to(by_square.dtype)
        return torch.where(valid.unsqueeze(1), 2 * by_square.unsqueeze(1) * rows, 0)


def _squares(z: Tensor, valid: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return squared norms of the rows; 0 for an ignored one."""
    if scale is not None:
        return (scale > 0).to(dtype)
    rows = torch.where(valid.unsqueeze(1), z, 0).to(dtype)
    # A row with an Inf gets NaN, and so differs from one whose square overflows.
    return (rows * rows).sum(1) + (0 * rows.detach()).sum(1)


def _reciprocal(squares: Tensor, features: int) -> Tensor:
    """Return 1 over the squared norms of centred rows; 0 for a row without variance."""
    vanishes = squares < 1e-24 * (features - 1)
    return torch.where(vanishes, 0.0, 1 / torch.where(vanishes, 1.0, squares))


def _squared(s: Any, a: Any, b: Any, floor: float) -> tuple[Any, Any]:
    """Return q, and where it counts as 0 (never at a NaN). q is inf where squares overflow."""
    squares = a + b
    finite = squares < torch.inf
    q = torch.where(finite, squares - 2 * s, squares)
    return q, finite & (q <= floor * squares)


def _l2(s: Any, a: Any, b: Any, floor: Any) -> Any:
    q, vanishes = _squared(s, a, b, floor)
    return torch.where(vanishes, 0.0, -torch.sqrt(torch.where(vanishes, 1.0, q)))


def _l2_slopes(s: Any, a: Any, b: Any, floor: Any) -> tuple[Any, ...]:
    q, vanishes = _squared(s, a, b, floor)
    slope = torch.where(vanishes, 0.0, torch.rsqrt(torch.where(vanishes, 1.0, q)))
    return slope, -0.5 * slope, -0.5 * slope, 0.0 * slope


def _sqeuclidean(s: Any, a: Any, b: Any, floor: Any) -> Any:
    q, vanishes = _squared(s, a, b, floor)
    return torch.where(vanishes, 0.0, -q)


def _sqeuclidean_slopes(s: Any, a: Any, b: Any, floor: Any) -> tuple[Any, ...]:
    q, vanishes = _squared(s, a, b, floor)
    slope = torch.where(vanishes, 0.0, torch.where(q != q, q, 1.0))
    return 2 * slope, -slope, -slope, 0.0 * slope


def _snr(s: Any, a: Any, b: Any, floor: Any, share: Any) -> Any:
    return share * _sqeuclidean(s, a, b, floor)


def _snr_slopes(s: Any, a: Any, b: Any, floor: Any, share: Any) -> tuple[Any, ...]:
    by_square = [share * slope for slope in _sqeuclidean_slopes(s, a, b, floor)]
    return *by_square, _sqeuclidean(s, a, b, floor)


_CLOSENESS: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]]] = {
    "l2": (_l2, _l2_slopes),
    "sqeuclidean": (_sqeuclidean, _sqeuclidean_slopes),
    "snr": (_snr, _snr_slopes),
}


class _Made:
    """Composed functions as attributes: torch.compile finds one that was just made as an attribute,
    but remembers the first state of a dictionary."""


_MADE = _Made()


def _measured(function: str, name: str, windows: tuple[int, ...], statistic: str) -> str:
    made = _made(
        function, name, windows, ACCUMULATORS[statistic, False].neutral if windows else 0.0
    )
    setattr(_MADE, made.name, made)
    return made.name


# Marked like `devices.capability`. Names go in and a name comes out, since torch.compile cannot
# guard functions here, and may take floats for inputs.
_measured._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _made(function_name: str, name: str, windows: tuple[int, ...], fill: float) -> Function:
    """Compose `function` with a distance: f(s, its arguments, those of the distance, its windows).

    A pair outside of a window contributes `fill`: windows of terms compare s, and closeness is no
    function of s alone.
    """
    function = FUNCTIONS[function_name]
    closeness, closeness_slopes = _CLOSENESS[name]
    distance_args = len(inspect.signature(closeness).parameters) - 1
    ends = function.arity, function.arity + distance_args

    def dropped(t: Any, bounds: tuple[Any, ...]) -> Any:
        out = [t <= b if k == 0 else t >= b for k, b in zip(windows, bounds, strict=True)]
        return functools.reduce(torch.logical_or, out)

    def value(s: Any, *args: Any) -> Any:
        t = closeness(s, *args[ends[0] : ends[1]])
        f = function.value(t, *args[: ends[0]])
        return torch.where(dropped(t, args[ends[1] :]), fill, f) if windows else f

    def slopes(s: Any, *args: Any) -> tuple[Any, ...]:
        of_distance = args[ends[0] : ends[1]]
        t = closeness(s, *of_distance)
        by_t, *by_args = function.slopes(t, *args[: ends[0]])  # type: ignore[misc]
        by_s, *by_distance = closeness_slopes(s, *of_distance)
        every = [by_t * by_s, *by_args, *[by_t * slope for slope in by_distance]]
        if windows:
            out = dropped(t, args[ends[1] :])
            # A slope may be a number, which `where` would turn into float32.
            every = [torch.where(out, 0.0, slope + 0.0 * s) for slope in every]
        return *every, *[0.0 * t for _ in windows]

    names = ["s", *[f"argument_{k}" for k in range(ends[1] + len(windows))]]
    parameter = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(n, parameter) for n in names])
    value.__signature__ = signature  # type: ignore[attr-defined]
    within = "".join([("_above", "_below")[k] for k in windows])
    return Function(
        value,
        slopes,
        f"{function.name}_of_{name}{within}",
        function.is_derivative,
        finite=function.finite and not windows,
    )
