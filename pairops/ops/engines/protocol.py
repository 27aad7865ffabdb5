"""The protocol of an engine, and the terms that an engine without distances takes."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term, Wanted

from . import first_use


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
        """Return gradients of Σ cotangent·statistic by x, by y and by every tensor argument.

        They lead through the scales and, in an engine that takes distances, through squared norms.
        Arguments are in the order of the terms, which are sums and log-sum-exps: an extreme's
        gradient goes to one pair per owner and needs no sweep.

        tile_masks: from this engine's `forward`; None: visit every tile. A gradient that is not
        needed is empty; for the same set the first is the whole one.
        """


class Engine(Protocol):
    """A module with these names; `ENGINES` lists them."""

    NAME: str  # as `pairops.engine` takes it
    # Where terms of `forward` may refer to earlier ones of the call: "nowhere", "in windows", or
    # "anywhere", as arguments too.
    TAKES_EARLIER: str
    # May pairs have a measure? Terms and windows are then of closeness, and gradients by x and y
    # are whole. An engine that says False gets terms of similarities, see `terms_for_engine`.
    TAKES_DISTANCES: bool
    TAKES_LISTS: bool  # may positives be a list?
    DEVICE: str | None  # what its kernels are for, "cpu" or "cuda"; None: any device

    def missing(self) -> str | None:
        """Return why the engine can serve no call at all here, or None."""

    def declines(self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], /) -> str | None:
        """Return why the engine cannot serve this call, or None."""

    def prepare(self, pairs: Pairs, /) -> list[Tensor]:
        """Prepare the embeddings, once for all calls with these pairs."""

    def forward(
        self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], /
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return statistics, arguments of extremes, and tile masks.

        Statistics are those of the row terms (N,), then of the column terms (M,), in the caller's
        order. An argument is the partner that attained an extreme, or −1, for each extreme that
        keeps it. Tile masks are uint8, 1 where a term's window has a pair of a tile inside: one
        term after the other along the first axis. Only the engine's `backward` reads the rest.
        """

    @property
    def backward(self) -> Backward | None:
        """The gradient of `forward`; None: torch differentiates `forward` itself."""

    def tile_masks_shape(
        self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], /
    ) -> tuple[int | torch.SymInt, ...]:
        """Return the shape of the tile masks, which follows from shapes alone."""


def terms_for_engine(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[Sequence[Term], Sequence[Term]]:
    """Return the terms as the engine takes them: composed with the distance of the pairs, if there
    is one and the engine knows none. The terms are `over` these pairs."""
    if pairs.measure is None or engine.TAKES_DISTANCES:
        return rows, cols
    squares = pairs.squares()
    of_rows = [squares.of_term(term, 0) for term in rows]
    return of_rows, [squares.of_term(term, 1) for term in cols]


def reason_against(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> str | None:
    """Return why the engine cannot serve this call, or None."""
    if pairs.relation.entries is not None and not engine.TAKES_LISTS:
        return "positives are a list"
    left_out = first_use.reason_against(engine.NAME, pairs.shards is not None)
    if left_out is not None:
        return left_out
    with torch.no_grad():
        return engine.declines(pairs, *terms_for_engine(engine, pairs, rows, cols))


def tile_masks_shape(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    """Return the shape of the tile masks that the engine makes of this call."""
    with torch.no_grad():
        return engine.tile_masks_shape(pairs, *terms_for_engine(engine, pairs, rows, cols))
