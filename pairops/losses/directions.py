"""InfoNCE direction by direction: the negatives of every anchor, and which of them are dropped.

Everything is relative to c_i = s_ii, held constant: z_ij = κ (s_ij − c_i) is what competes with
κ (s_ii − c_i), which is 0 and has a gradient, so no small number is lost in large ones.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import at_least_float32
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.arguments import Between, Given, between, partner
from pairops.ops.terms.functions import Function, gated, one
from pairops.ops.terms.term import NEG, POS, Term, lse, total

from .candidates import WAYS, Candidates


@dataclass(frozen=True)
class Negatives:
    """Statistics of every anchor over its negatives.

    Args:
        log_sum: (N,) log Σ e^z.
        sums: (N,) Σ z, if it was asked for.
        count: (N,) how many there are, if it was asked for.
        nominal: how many there would be if none were dropped.
        beside: (N,) each, the log-sum-exps at other scales.
    """

    log_sum: Tensor
    sums: Tensor | None
    count: Tensor | None
    nominal: int
    beside: tuple[Tensor, ...] = ()

    def __add__(self, other: "Negatives") -> "Negatives":
        def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else a + b

        return Negatives(
            log_add_exp(self.log_sum, other.log_sum),
            added(self.sums, other.sums),
            added(self.count, other.count),
            self.nominal + other.nominal,
            tuple(map(log_add_exp, self.beside, other.beside)),
        )


class Directions:
    """The pairs (x_i, y_i) of a call, and the negatives of their rows in every direction."""

    def __init__(
        self,
        x: Tensor,  # (N, D)
        y: Tensor,  # (M, D)
        scale: float | Tensor,
        candidates: Candidates,
        counted: bool,
        comparing: Mapping[str, Any],
        beside: tuple[float | Tensor, ...] = (),
    ) -> None:
        """Compare every pair (x_i, y_i) once.

        Args:
            x: (N, D) the embeddings.
            y: (M, D) those of the other set.
            scale: κ = 1/τ.
            candidates: what is told of the candidates.
            counted: True asks for Σ z and the number of negatives.
            comparing: keywords of `Pairs.of` that say how rows are compared.
            beside: further scales, of which log-sum-exps are wanted.
        """
        # Several calls: each one's 16-bit gradient would be rounded, and their sum once more.
        self.x, self.y = at_least_float32(x), at_least_float32(y)
        self.scale, self.candidates = scale, candidates
        self.counted, self.comparing, self.beside = counted, comparing, beside
        of_this_rank = {name: given for name, given in comparing.items() if name != "group"}
        self._of_this_rank = {**of_this_rank, "ignore_index": None}
        self.paired = Pairs.paired(self.x, self.y, **comparing)
        (score,) = row_stats(self.paired, total(POS, 1.0, 0.0))
        self.near = score.detach()
        self.positive = scale * (score - self.near)
        self.log_q = None if candidates.log_q is None else candidates.log_q.to(score)
        self.bound = None
        if candidates.margin is not None:
            # A window drops what is at its bound; what is as near as the positive stays.
            highest = self.near + candidates.margin
            self.bound = torch.nextafter(highest, torch.full_like(highest, torch.inf))

    def negatives(self, ways: Sequence[str]) -> dict[str, Negatives]:
        """Return the negatives of every direction asked for."""
        given = self.candidates
        found = self._between_sets([way for way in ways if way != "xy" or not given.queue_only])
        found |= {way: self._within(way) for way in ways if way in ("xx", "yy")}
        further = []
        if given.own_negatives is not None:
            further.append(self._of_each(at_least_float32(given.own_negatives)))
        if given.queue is not None:
            further.append(self._queue(at_least_float32(given.queue.detach())))
        for more in further:
            found["xy"] = found["xy"] + more if "xy" in found else more
        return {way: found[way] for way in ways}

    def separate(self, found: Mapping[str, Negatives], smoothing: float) -> Tensor:
        """Return (N,) the mean over directions of a cross entropy in each."""
        losses = [loss_of(self._positive(way), rivals, smoothing) for way, rivals in found.items()]
        return torch.stack(losses).mean(0)

    def joint(self, found: Mapping[str, Negatives], smoothing: float) -> Tensor:
        """Return (N,) the cross entropy among the negatives of all directions."""
        positive = self._positive("xy" if "xy" in found else "")
        return loss_of(positive, self.together(found), smoothing)

    def together(self, found: Mapping[str, Negatives]) -> Negatives:
        """Return the negatives of all directions as those of one."""
        return functools.reduce(Negatives.__add__, found.values())

    def log_sum_exps(self, found: Mapping[str, Negatives]) -> dict[str, Tensor]:
        """Return (N,) the log of a softmax's denominator, in every direction."""
        return {
            way: log_add_exp(rivals.log_sum, self._positive(way)).detach() + self.scale * self.near
            for way, rivals in found.items()
        }

    def _positive(self, way: str) -> Tensor:
        """Return (N,) the positive's z in this direction."""
        if self.log_q is None or way != "xy":
            return self.positive
        return self.positive - self.log_q[: len(self.x)]

    def _between_sets(self, ways: Sequence[str]) -> dict[str, Negatives]:
        """Return the negatives of "xy" and of "yx", where asked for, from one call."""
        n = len(self.x)
        rows, cols = (self._terms(way) if way in ways else [] for way in ("xy", "yx"))
        if not rows and not cols:
            return {}
        found = row_stats(self._related("xy"), *rows, cols=cols)
        others = [max(many - 1, 0) for many in self.paired.batch]
        made = {}
        if rows:
            made["xy"] = self._negatives("xy", found[: len(rows)], others[1])
        if cols:
            made["yx"] = self._negatives("yx", [z[:n] for z in found[len(rows) :]], others[0])
        return made

    def _within(self, way: str) -> Negatives:
        """Return the negatives of "xx" or "yy"."""
        found = row_stats(self._related(way), *self._terms(way))
        return self._negatives(way, found, max(self.paired.batch["xy".index(way[1])] - 1, 0))

    def _of_each(self, negatives: Tensor) -> Negatives:
        """Return those of (N, K, D), K for each anchor alone."""
        n, k, d = negatives.shape
        index = torch.arange(n, device=self.x.device)
        # Those of an anchor are its positives here, so no other pair is multiplied.
        pairs = Pairs.of(
            self.x, index, ref_emb=negatives.reshape(n * k, d),
            ref_labels=index.repeat_interleave(k), exclude_self=False, **self._of_this_rank,
        )  # fmt: skip
        return self._negatives("own", row_stats(pairs, *self._plain("own", POS, self.near)), k)

    def _queue(self, queue: Tensor) -> Negatives:
        """Return those of (Q, D), which all anchors share, without gradient."""
        labels = [torch.full((len(z),), k, device=z.device) for k, z in enumerate((self.x, queue))]
        pairs = Pairs.of(
            self.x, labels[0], ref_emb=queue, ref_labels=labels[1], exclude_self=False,
            **self._of_this_rank,
        )  # fmt: skip
        return self._negatives(
            "queue", row_stats(pairs, *self._plain("queue", NEG, self.near)), len(queue)
        )

    def _related(self, way: str) -> Pairs:
        """Make the pairs of a direction, of which an anchor's negatives are negatives."""
        if way == "xy" and self.candidates.names is None:
            return self.paired
        n, names = len(self.x), self.candidates.names
        comparing = {**self.comparing, "ignore_index": None}
        if way == "xx":
            labels = self.paired.indices() if names is None else names[0]
            return Pairs.of(self.x, labels, **comparing)
        labels = self.paired.indices(1) if names is None else names[1]
        of_rows = labels[:n] if way == "yy" or names is None else names[0]
        if way == "yy" and len(self.y) == n:
            return Pairs.of(self.y, labels, **comparing)
        rows = self.x if way == "xy" else self.y[:n]
        return Pairs.of(
            rows, of_rows, ref_emb=self.y, ref_labels=labels, exclude_self=True, **comparing
        )

    def _terms(self, way: str) -> list[Term]:
        near, bound = self.near, self.bound
        guide: tuple[Between, Tensor] | None = None
        if self.candidates.guide is not None:
            u, v, bar = self.candidates.guide
            n = len(self.x)
            guide = {
                "xy": (between(u, v), bar), "yx": (between(v, u), bar),
                "xx": (between(u, u), bar), "yy": (between(v[:n], v), bar),
            }[way]  # fmt: skip
        if way == "yx":  # columns beyond the rows are no anchors
            near = self._over_columns(near)
            bound = None if bound is None else self._over_columns(bound)
            guide = None if guide is None else (guide[0], self._over_columns(guide[1]))
        offset = None
        if self.log_q is not None and way in ("xy", "yy"):
            offset = partner(self.log_q / self.scale)
        if guide is None:
            return self._plain(way, NEG, near if offset is None else offset, bound)
        return self._guided(*guide, offset, bound)

    def _over_columns(self, values: Tensor) -> Tensor:
        if len(self.y) == len(values):
            return values
        return torch.nn.functional.pad(values, (0, len(self.y) - len(values)))

    def scale_of(self, part: str) -> float | Tensor:
        """Return the scale of a direction's negatives, of "own" ones or of the "queue"."""
        del part
        return self.scale

    def _plain(self, part: str, side: str, base: Given, bound: Tensor | None = None) -> list[Term]:
        bound, scale = self.bound if bound is None else bound, self.scale_of(part)
        terms = [lse(side, z, base, below=bound) for z in (scale, *self.beside)]
        if self.counted:
            terms.append(total(side, scale, base, below=bound))
            terms.append(total(side, function=one, below=bound))
        return terms

    def _guided(
        self, product: Given, bar: Tensor, offset: Given | None, bound: Tensor | None
    ) -> list[Term]:
        scale = self.scale
        base = 0.0 if offset is None else offset
        if offset is None:
            terms = [lse(NEG, product, scale, bar, function=gated, below=bound)]
        else:
            terms = [lse(NEG, product, scale, bar, base, function=_gated_from, below=bound)]
        if self.counted:
            terms.append(
                total(NEG, product, scale, bar, base, function=_selected_from, below=bound)
            )
            terms.append(total(NEG, product, bar, function=_selected, below=bound))
        return terms

    def _negatives(self, way: str, found: Iterable[Tensor], nominal: int) -> Negatives:
        """Take sums that are not relative to c yet to it."""
        log_sum, *rest = found
        beside, rest = rest[: len(self.beside)], rest[len(self.beside) :]
        sums, count = rest or (None, None)
        guided = self.candidates.guide is not None and way in WAYS
        if guided or (self.log_q is not None and way in ("xy", "yy")):
            shift = self.scale * self.near
            log_sum = torch.where(log_sum == -torch.inf, -torch.inf, log_sum - shift)
            if sums is not None and count is not None:
                sums = sums - count * shift
        return Negatives(log_sum, sums, count, nominal, tuple(beside))


def loss_of(positive: Tensor, negatives: Negatives, smoothing: float) -> Tensor:
    """Return (N,) the cross entropy of the positive among its negatives.

    With label smoothing ε the target of each of the C nominal candidates is ε/C, and that of the
    positive 1 − ε more; what is dropped adds nothing.
    """
    losses = log1p_exp(
        torch.where(negatives.log_sum == -torch.inf, -torch.inf, negatives.log_sum - positive)
    )
    if not smoothing:
        return losses
    assert negatives.sums is not None, "label smoothing needs sums"
    assert negatives.count is not None, "label smoothing needs counts"
    every = negatives.count * (losses + positive) - negatives.sums + losses
    return (1 - smoothing) * losses + smoothing / (negatives.nominal + 1) * every


def _gated_from_value(s, t, scale, bar, base):  # type: ignore[no-untyped-def]
    """scale · (s − base) where t ≤ bar, else −∞"""
    return gated.value(s - base, t, scale, bar)


def _gated_from_slopes(s, t, scale, bar, base):  # type: ignore[no-untyped-def]
    by_s, by_t, by_scale, by_bar = gated.slopes(s - base, t, scale, bar)  # type: ignore[misc]
    return by_s, by_t, by_scale, by_bar, -by_s


def _selected_from_value(s, t, scale, bar, base):  # type: ignore[no-untyped-def]
    """scale · (s − base) where t ≤ bar, else 0"""
    return _selected_value(s, t, bar) * (scale * (s - base))  # type: ignore[no-untyped-call]


def _selected_from_slopes(s, t, scale, bar, base):  # type: ignore[no-untyped-def]
    selected = _selected_value(s, t, bar)  # type: ignore[no-untyped-call]
    return (
        selected * scale,
        0.0 * selected,
        selected * (s - base),
        0.0 * selected,
        -selected * scale,
    )


def _selected_value(s, t, bar):  # type: ignore[no-untyped-def]
    """1 where t ≤ bar, else 0"""
    return (t <= bar) + 0.0 * (s + t)  # NaN for NaN: a bare comparison would hide it


def _selected_slopes(s, t, bar):  # type: ignore[no-untyped-def]
    flat = 0.0 * _selected_value(s, t, bar)  # type: ignore[no-untyped-call]
    return flat, flat, flat


_gated_from = Function(_gated_from_value, _gated_from_slopes, "gated_from")
_selected_from = Function(_selected_from_value, _selected_from_slopes, "selected_from", finite=True)
_selected = Function(_selected_value, _selected_slopes, "selected", finite=True)
