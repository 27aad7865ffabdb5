"""What an engine is: forward and backward of a call of `row_stats`, and what is asked before."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term, Wanted


class Backward(Protocol):
    def __call__(
        self,
        pairs: Pairs,
        rows: Sequence[Term],
        cols: Sequence[Term],
        statistics: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        tile_masks: Tensor | None,
        needs: Wanted,
        /,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Gradients of Σ cotangent·statistic by x, by y (through the scales, and for who takes
        distances through squared norms) and by every tensor argument, in the order of the terms.

        Sums and log-sum-exps only: an extreme's gradient goes to one pair per owner and needs no
        sweep. bits: from this engine's `forward`, or None: visit every tile. A gradient that is not
        needed is empty; for the same set the first is the whole one.
        """


class Engine(Protocol):
    """A module with these names is one; `ENGINES` lists those that there are."""

    NAME: str  # as `pairops.use` takes it
    TAKES_EARLIER: bool  # may terms of `forward` refer to earlier ones of the call?
    # May the pairs have a measure, and terms and their windows be of closeness then? Gradients by x
    # and y are then whole. An engine that says False is told terms of similarities, see `as_taken`.
    TAKES_DISTANCES: bool
    DEVICE: str | None  # what its kernels are for, "cpu" or "cuda"; None: any device

    def missing(self) -> str | None:
        """Why it can serve no call at all here, or None."""

    def declines(self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], /) -> str | None:
        """Why it cannot serve this call, or None."""

    def prepare(self, pairs: Pairs, /) -> list[Tensor]:
        """Make of the embeddings what serves all calls with these pairs, once."""

    def forward(
        self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], /
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Statistics of the row terms (N,), then of the column terms (M,), in the caller's order;
        of each extreme that keeps its argument the partner that attained it, or −1; tile bits.

        The bits are uint8, 1 where a term's window kept a pair of a tile: one term after the other
        along the first axis. Beyond that their order is the engine's own: only its `backward` reads
        them.
        """

    @property
    def backward(self) -> Backward | None:
        """The gradient of `forward`; None: torch differentiates `forward` itself."""

    def tile_masks_shape(
        self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], /
    ) -> tuple[int | torch.SymInt, ...]:
        """The shape of the bits, which nothing but shapes decides."""


def terms_for_engine(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[Sequence[Term], Sequence[Term]]:
    """Terms that are `over` these pairs as the engine takes them: composed with the distance of the
    pairs, if there is one and the engine knows none."""
    if pairs.measure is None or engine.TAKES_DISTANCES:
        return rows, cols
    squares = pairs.squares()
    of_rows = [squares.of_term(term, 0) for term in rows]
    return of_rows, [squares.of_term(term, 1) for term in cols]


def reason_against(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> str | None:
    """Why the engine cannot serve this call, or None."""
    with torch.no_grad():
        return engine.declines(pairs, *terms_for_engine(engine, pairs, rows, cols))


def tile_masks_shape(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    """The shape of the bits that the engine returns of this call."""
    with torch.no_grad():
        return engine.tile_masks_shape(pairs, *terms_for_engine(engine, pairs, rows, cols))
