"""What every oracle stands on: closeness, who is paired with whom, reductions."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import orders

SIMILARITIES = ("cosine", "dot")


def at(place, distance: str):
    """Return where `place`, a similarity or a distance as the user says it, lies in closeness."""
    return place if distance in SIMILARITIES else -place


def closeness(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    distance: str = "cosine",
    normalize: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # (N, M)
    """Return the similarity of x_i and y_j, or minus their distance.

    normalize: compare x / |x|; None: unless for "dot". ("cosine" of what is not normalised is the
    dot product.) A distance is as torch.cdist has it for large matrices, from the dot product:
    q = |x|^2 + |y|^2 - 2 xy. Near-duplicates, where q is rounding, have distance 0 and gradient 0.
    All sums are made in the order in use.
    """
    order = orders.in_use()
    x, y = order.turned(x.to(dtype)), order.turned(y.to(dtype))
    return order.turned_back(_closeness(x, y, distance, normalize, order))


def _closeness(x: Tensor, y: Tensor, distance, normalize, order: orders.Order) -> Tensor:  # (N, M)
    if normalize or (normalize is None and distance != "dot"):
        x, y = _unit(x, order), _unit(y, order)
    if distance in SIMILARITIES:
        return order.product(x, y)
    if distance == "snr":
        assert x.shape[1] > 1, "one feature has no variance"
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    a, b = (x * x).sum(1)[:, None], (y * y).sum(1)
    q, rounding = a + b - 2 * order.product(x, y), 16 * torch.finfo(x.dtype).eps * (a + b).detach()
    near = (q <= rounding) & rounding.isfinite()  # false for a NaN; an infinite row is not near
    if distance == "snr":  # var(x - y) / var(x): the two D - 1 cancel
        flat = (a.detach() / (x.shape[1] - 1) < 1e-24).expand_as(q)
        return -(q / a.masked_fill(flat[:, :1], 1)).masked_fill(near | flat, 0)
    if distance == "sqeuclidean":
        return -q.masked_fill(near, 0)
    assert distance == "l2", distance
    # 1 stands in before the root: the slope of the root at 0 is infinite, and times 0 a NaN
    return -q.masked_fill(near, 1).sqrt().masked_fill(near, 0)


def _unit(x: Tensor, order: orders.Order) -> Tensor:  # (N, D)
    squares = (x * x).sum(1, keepdim=True)
    tiny = squares.detach().sqrt() < 1e-12  # false for a NaN
    norm = squares.masked_fill(tiny, 1).sqrt()
    return (x * (1 / norm) if order.inverse_norms else x / norm).masked_fill(tiny, 0)


class Rows:
    """Every anchor's closeness to its positives and to its negatives.

    Iterating gives, for each anchor that is not ignored, the two as a pair (P,), (N,).
    """

    def __init__(
        self,
        x: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        *,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
        own: Tensor | None = None,  # (N,)
        distance: str = "cosine",
        normalize: bool | None = None,
        ignore_index: int | None = -100,
        width: float | None = None,
        positives: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        several = labels is not None and labels.dim() == 2
        if several:
            others = labels if ref_labels is None else ref_labels
            positives = ((labels != 0)[:, None] & (others != 0)).any(2).nonzero(as_tuple=True)
        if positives is not None:
            labels, width = torch.zeros(len(x)), 0.0
            ref_labels = None if ref_emb is None else torch.zeros(len(ref_emb))
        same_set = ref_emb is None
        y, ref_labels = (x, labels) if same_set else (ref_emb, ref_labels)
        if own is None:
            own = torch.arange(len(x)) if same_set else torch.full((len(x),), -1)
        if width is None:
            assert not labels.is_floating_point(), "labels are compared exactly"
            assert not ref_labels.is_floating_point(), "labels are compared exactly"
        else:
            ignore_index = None
        # int64 before the comparison: in an uint8 tensor -100 could not be told from 156
        exact = torch.int64 if width is None else torch.float64
        labels, ref_labels = (t.to(x.device, exact) for t in (labels, ref_labels))
        own = own.to(x.device, torch.int64)
        anchors, columns = (torch.arange(len(t), device=x.device) for t in (x, y))
        if ignore_index is not None:
            anchors, columns = anchors[labels != ignore_index], columns[ref_labels != ignore_index]
        self.total = len(x)
        self.anchors = anchors  # (n,) those that are not ignored, as rows of x
        self.labels = labels[anchors]  # (n,)
        # ignored rows leave before any arithmetic: 0 * NaN would take theirs into all gradients
        self.t = closeness(x[anchors], y[columns], distance, normalize, dtype)  # (n, m)
        self.of_columns = self.t.T  # (m, n) the closeness of y_j to x_i: snr divides by y_j's
        if distance == "snr":
            self.of_columns = closeness(y[columns], x[anchors], distance, normalize, dtype)
        other = columns != own[anchors, None]
        same = ref_labels[columns] == self.labels[:, None]
        if width is not None:
            same = (ref_labels[columns] - self.labels[:, None]).abs() <= width
        if positives is not None:
            same = torch.zeros_like(same)
            same[positives] = True
        self.positive, self.negative = same & other, ~same & other  # (n, m)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for t, positive, negative in zip(self.t, self.positive, self.negative, strict=True):
            yield t[positive], t[negative]

    def spread(self, losses: Sequence[Tensor]) -> Tensor:  # (N,)
        """Put the losses of the anchors (n,) where these stand in x; 0 for ignored rows."""
        spread = [self.t.new_zeros(())] * self.total
        for i, loss in zip(self.anchors.tolist(), losses, strict=True):
            spread[i] = loss
        # the empty sum ties a loss without any pair to its inputs: gradient 0 and not None
        tie = self.t[:0].sum()
        return torch.stack(spread) + tie if spread else tie.expand(0)

    def over_pairs(
        self,
        sides: Sequence[tuple[Tensor, ...]],
        *,
        each=torch.sum,
        counted: str = "all",
        reduction: str = "none",
        weight: Tensor | None = None,
    ) -> Tensor:
        """Reduce the losses of pairs: for each anchor a tuple of (K,), one for each side.

        "none": (N,), the sum (or `each` other) of a side, summed over the sides. "mean_pairs": a
        scalar, for each side sum_i weight_i (sum of its losses) / number of its losses of all
        anchors ("all", or "active": those not <= 0), summed over the sides.
        """
        if reduction == "none":
            empty = self.t.new_zeros(())
            return self.spread([sum((each(z) for z in s if len(z)), empty) for s in sides])
        assert reduction == "mean_pairs", reduction
        weight = torch.ones(self.total, device=self.t.device) if weight is None else weight
        weight, mean = weight.to(self.t.dtype)[self.anchors], self.t[:0].sum()
        for side in zip(*sides, strict=True):
            count = sum(len(z) if counted == "all" else int((~(z <= 0)).sum()) for z in side)
            mean = mean + sum(w * z.sum() for w, z in zip(weight, side, strict=True)) / max(
                count, 1
            )
        return mean


def each_anchor(anchor, x: Tensor, labels: Tensor, **pairing) -> Tensor:  # (N,)
    """Return `anchor(closeness to P, closeness to N)` of every row of x."""
    rows = Rows(x, labels, **pairing)
    return rows.spread([anchor(pos, neg) for pos, neg in rows])


def reduce(losses: Tensor, *, weight=None, reduction="mean", ignored=None) -> Tensor:
    """Reduce losses (N,), each times its weight (N,), to "mean", "mean_nonzero", "sum" or "none".

    "mean" divides by the number of anchors that the mask `ignored` (N,) leaves, "mean_nonzero" by
    the number of losses that are not <= 0. ("mean_pairs" is the formula's own.)
    """
    ignored = torch.zeros_like(losses, dtype=torch.bool) if ignored is None else ignored
    weight = torch.ones_like(losses) if weight is None else weight.to(losses.dtype)
    losses, weight = losses.masked_fill(ignored, 0), weight.masked_fill(ignored, 0)
    if reduction == "none":
        return weight * losses
    if reduction == "sum":
        return (weight * losses).sum()
    if reduction == "mean":
        return (weight * losses).sum() / max(int((~ignored).sum()), 1)
    if reduction == "mean_nonzero":
        counted = ~(losses <= 0)  # a NaN is counted, and so is seen
        return (weight * losses)[counted].sum() / max(int(counted.sum()), 1)
    raise ValueError(f"reduction is {reduction!r}")


def hinge(z: Tensor) -> Tensor:
    """Return [z]+, with slope 0 at 0 and slope NaN at NaN (clamp would say 0 there)."""
    slope = torch.where(z.isnan(), z, 1.0).detach()
    return (slope * z).masked_fill(z <= 0, 0)


def highest(s: Tensor) -> Tensor:
    """Return the maximum of s (K,); its gradient goes to one element: the first NaN or maximum.

    In float64 BLAS gives the same two vectors other last bits in other columns of the matrix, so
    maxima are equal within 1e-13; in float32 that means exactly equal.
    """
    s_fixed = s.detach()
    tied = s_fixed.isclose(s_fixed.max(), rtol=1e-13, atol=1e-15, equal_nan=True)
    return s[int(tied.nonzero()[0, 0])]


def softplus(z: Tensor) -> Tensor:
    """Return log(1 + e^z), also where it is tiny. (F.softplus is 2e-9 off above 20.)"""
    return torch.logaddexp(z, torch.zeros_like(z))


def log1p_sum_exp(z: Tensor) -> Tensor:
    """Return log(1 + sum e^z) of the last dimension of z, which may be empty."""
    return softplus(z.logsumexp(-1))
