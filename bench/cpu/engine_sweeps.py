"""The sweeps of the engine cpu that a loss makes, without the loss around them."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch

from bench.problems import Setting, problem, takes_labels
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.engines import cpu_addresses
from pairops.ops.engines.plan import plan_of, serves
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.functions import affine
from pairops.ops.terms.term import NEG, POS, Term, Wanted, highest, lowest, lse, total

LOSSES = ("ms", "supcon", "info_nce")
SWEEPS = ("forward", "backward")

Terms = tuple[Sequence[Term], Sequence[Term]]  # of rows and of columns


def terms(loss: str) -> Terms:
    """Those of the loss with its defaults."""
    if loss == "ms":
        far = lowest(POS, 1.0, 0.1, function=affine, grad=False)
        near = highest(NEG, 1.0, -0.1, function=affine, grad=False)
        neg, pos = lse(NEG, 50.0, 0.5, above=far), lse(POS, -2.0, 0.5, below=near)
        return (far, near, neg, pos), ()
    labelled = takes_labels(loss)
    scale = 1 / 0.1 if labelled else 1 / 0.07
    near = highest(POS, grad=False)
    neg, pos, sums = lse(NEG, scale, near), lse(POS, scale, near), total(POS, scale, near)
    return ((near, neg, pos, sums), ()) if labelled else ((near, sums, neg), (near, sums, neg))


def pairs_of(loss: str, n: int, d: int) -> Pairs:
    given = problem(Setting(loss, n, d))
    x, other = given.x.detach(), given.other.detach()
    return Pairs.of(x, other) if takes_labels(loss) else Pairs.paired(x, other)


class Sweeps:
    """Both sweeps of some terms over some pairs; bits in place of those that forward finds."""

    def __init__(self, pairs: Pairs, terms: Terms, bits: torch.Tensor | None = None) -> None:
        rows, cols = terms
        plan = plan_of(rows, cols)
        assert plan is not None and serves(plan), "the terms are compiled"  # noqa: PT018
        self.call = pairs, rows, cols
        self.plan = plan
        # Nothing is kept from sweep to sweep, however small N: each multiplies for itself.
        with mock.patch.object(cpu_addresses, "MOST_BYTES", 0):
            made = cpu_engine.planned_forward(pairs, rows, cols, plan)
        self.every = made.every
        self.bits = (
            made.tile_masks if bits is None else bits.expand(plan.keeping, -1, -1).contiguous()
        )
        self.slopes = torch.full_like(made.every, 1 / pairs.shape[1]).split(made.sizes)
        self.needs = Wanted(True, pairs.y is not None, True)

    def forward(self) -> object:
        return cpu_engine.planned_forward(*self.call, self.plan)

    def backward(self) -> object:
        return cpu_engine.planned_backward(
            *self.call, (self.every,), [], self.slopes, self.bits, self.needs, self.plan
        )
