"""InfoNCE direction by direction: the negatives of every anchor, and which of them are dropped.

Everything is relative to c_i = s_ii, held constant: z_ij = κ (s_ij − c_i) is what competes with
κ (s_ii − c_i), which is 0 and has a gradient, so no small number is lost in large ones. A guide, or
log q with a κ that is no tensor, takes terms that the CPU engine has compiled; their sums have no
c, and κ c is subtracted afterwards, as a softmax over the whole matrix would.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.losses.objective.objective import all_negatives
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import at_least_float32
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.accumulators import log_add_exp
from pairops.ops.terms.arguments import Between, Given, between, partner
from pairops.ops.terms.functions import gated, one
from pairops.ops.terms.term import NEG, POS, Term, lse, total

from .candidates import WAYS, Candidates, slack
from .cross_entropy import Negatives, loss_of
from .selected_pairs import gated_from, selected, selected_from, shifted

_CORRECTED = ("xy", "yy")  # the directions whose candidates have a log q


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
            candidates: which candidates are dropped, corrected, or come from elsewhere.
            counted: True asks for Σ z and the number of negatives.
            comparing: keywords of `Pairs.of` that say how rows are compared.
            beside: further scales, of which log-sum-exps are wanted.
        """
        # Several calls: each one's 16-bit gradient would be rounded, and their sum once more.
        self.x, self.y = at_least_float32(x), at_least_float32(y)
        self.scale, self.candidates = scale, candidates
        self.counted, self.comparing, self.beside = counted, comparing, beside
        self._of_this_rank = {name: z for name, z in comparing.items() if name != "group"}
        self.paired = Pairs.paired(self.x, self.y, **comparing)
        (score,) = row_stats(self.paired, total(POS, 1.0, 0.0))
        self.near = score.detach()
        self.positive = scale * (score - self.near)
        self.log_q = None if candidates.log_q is None else candidates.log_q.to(score)
        self.bound = None
        if candidates.margin is not None:
            # What is as near as the positive stays, rounded otherwise by another product.
            highest = self.near + candidates.margin
            self.bound = highest + slack(highest)

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
        """Return the negatives (N, K, D), K for each anchor alone."""
        n, k, _ = negatives.shape
        index = torch.arange(n, device=self.x.device)
        # Those of an anchor are its positives here, so no other pair is multiplied.
        pairs = Pairs.of(
            self.x, index, ref_emb=negatives.flatten(0, 1),
            ref_labels=index.repeat_interleave(k), exclude_self=False, ignore_index=None,
            **self._of_this_rank,
        )  # fmt: skip
        return self._negatives("own", row_stats(pairs, *self._plain("own", POS, self.near)), k)

    def _queue(self, queue: Tensor) -> Negatives:
        """Return the negatives (Q, D), which all anchors share, without gradient."""
        pairs = all_negatives(self.x, queue, exclude_self=False, **self._of_this_rank)
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
        if way == "yy" and self.paired.batch[0] == self.paired.batch[1]:
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
        if guide is not None:
            return self._guided(*guide, near, self._correction(way), bound)
        if self.log_q is None or way not in _CORRECTED:
            return self._plain(way, NEG, near, bound)
        if isinstance(self.scale, Tensor):
            return self._corrected(near, bound)
        return self._plain(way, NEG, partner(self.log_q / self.scale), bound)

    def _correction(self, way: str) -> tuple[Given, Given]:
        """Return −log q of the partner, and that of the anchor's positive.

        With the second a log-sum-exp is near 0, or its rounding would be in all pair weights."""
        if self.log_q is None or way not in _CORRECTED:
            return 0.0, 0.0
        return partner(-self.log_q), self.log_q[: len(self.x)]

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

    def _corrected(self, near: Tensor, bound: Tensor | None) -> list[Term]:
        """Make the terms of z − log q where the scale may be learned: log q / κ would round κ's
        gradient."""
        given = self.scale, near, *self._correction("xy")
        terms = [lse(NEG, *given, function=shifted, below=bound)]
        if self.counted:
            terms.append(total(NEG, *given, function=shifted, below=bound))
            terms.append(total(NEG, function=one, below=bound))
        return terms

    def _guided(
        self,
        product: Given,
        bar: Tensor,
        near: Tensor,
        correction: tuple[Given, Given],
        bound: Tensor | None,
    ) -> list[Term]:
        scale = self.scale
        given = product, scale, bar, near, *correction
        if self.log_q is None:
            terms = [lse(NEG, product, scale, bar, function=gated, below=bound)]
        else:
            terms = [lse(NEG, *given, function=gated_from, below=bound)]
        if self.counted:
            terms.append(total(NEG, *given, function=selected_from, below=bound))
            terms.append(total(NEG, product, bar, function=selected, below=bound))
        return terms

    def _negatives(self, way: str, found: Iterable[Tensor], nominal: int) -> Negatives:
        """Make the statistics relative to c, if they are not yet."""
        log_sum, *rest = found
        beside, rest = rest[: len(self.beside)], rest[len(self.beside) :]
        sums, count = rest or (None, None)
        guided = self.candidates.guide is not None and way in WAYS
        corrected = self.log_q is not None and way in _CORRECTED
        by_column = corrected and not guided and not isinstance(self.scale, Tensor)
        shift: Tensor | None = None
        if by_column or (guided and self.log_q is None):
            shift = self.scale * self.near
        elif corrected and self.log_q is not None:
            shift = self.log_q[: len(self.x)]
        if shift is not None:
            log_sum = torch.where(log_sum == -torch.inf, -torch.inf, log_sum - shift)
            if corrected and sums is not None and count is not None:
                sums = sums - count * shift
        return Negatives(log_sum, sums, count, nominal, tuple(beside))
