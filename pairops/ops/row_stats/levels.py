"""Levels of terms that refer to earlier ones: a sweep for each, and one pass back for all.

Constants and windows need no more than one pass, since no gradient leads through them. Where a term
passes its gradient on, the earlier term is differentiated after it, when its cotangent is whole.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.engines import ENGINES, Engine, terms_for_engine, tile_masks_shape
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import EarlierAt
from pairops.ops.terms.levels import by_earlier, passes, resolved, sweeps
from pairops.ops.terms.term import Term, Wanted

from .backward import of_terms


def forward(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute `engine.forward` of terms that may refer to earlier ones."""
    if _takes(engine, pairs, (*rows, *cols)):
        return engine.forward(pairs, rows, cols)
    order = sweeps(rows, cols)
    if len(order) == 1:
        return engine.forward(pairs, *terms_for_engine(engine, pairs, rows, cols))
    terms = Levels(rows, cols)
    statistics: list[Any] = [None] * len(terms.every)
    arguments: dict[int, Tensor] = {}
    masks_by_term: dict[int, Tensor] = {}
    tile_masks: Tensor | None = None
    for some in order:
        placed = [terms.resolved(k, statistics) for k in some]
        split = sum(k < len(rows) for k in some)
        now = [term for term, _ in placed]
        given = terms_for_engine(engine, pairs, now[:split], now[split:])
        values, found, tile_masks = engine.forward(pairs, *given)
        terms.take(some, placed, values, found, statistics, arguments)
        first = 0
        for k, term in zip(some, now, strict=True):
            if term.has_tile_mask:
                size = terms.mask_length(engine, pairs, k)
                masks_by_term[k] = tile_masks[first : first + size]
                first += size
    assert tile_masks is not None, "there is a sweep"
    masks = [masks_by_term[k] for k in sorted(masks_by_term)]
    whole = tile_masks if not masks else masks[0] if len(masks) == 1 else torch.cat(masks)
    return statistics, [arguments[k] for k in sorted(arguments)], whole


def _takes(engine: Engine, pairs: Pairs, terms: Sequence[Term]) -> bool:
    """Return whether one call of the engine serves terms with these references to earlier ones."""
    if engine.TAKES_EARLIER == "nowhere" or not (engine.TAKES_DISTANCES or pairs.measure is None):
        return False
    if engine.TAKES_EARLIER == "anywhere":
        return True
    return all(type(a) is not EarlierAt for term in terms for a in term.args)


def backward(
    engine: str,
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    tile_masks: Tensor | None,
    cotangents: list[Tensor],
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, dict[int, list[Tensor]]]:
    """Compute `of_terms` of terms that may refer to earlier ones.

    cotangents: gradients that later terms pass on to earlier ones are added to these.
    """
    terms = Levels(rows, cols)
    if not any(term.earlier() for term in terms.every):
        given = statistics, arguments, tile_masks, cotangents, wanted
        return of_terms(pairs, rows, cols, engine, *given)
    index = iter(arguments)
    argument = {k: next(index) for k, term in enumerate(terms.every) if term.keeps_argument}
    masks_by_term = terms.split(ENGINES[engine], pairs, tile_masks)
    no_masks = tile_masks[:0] if masks_by_term and tile_masks is not None else tile_masks
    gradients: list[tuple[Tensor | None, Tensor | None]] = []
    by_term: dict[int, list[Tensor]] = {}
    for some in passes(rows, cols):
        swept = [terms.swept(k, statistics, cotangents) for k in some]
        flags = []
        for k in some:
            mine = itertools.repeat(True) if wanted.args is None else iter(wanted.args[k])
            flags.append(
                [next(mine, False) if a is None else a.grad for a in by_earlier(terms.every[k])]
            )
        split = sum(k < len(rows) for k in some)
        now = [term for term, _, _ in swept]
        masks = [masks_by_term[k] for k in some if k in masks_by_term]
        dx, dy, slopes = of_terms(
            pairs, now[:split], now[split:], engine,
            [value for _, value, _ in swept],
            [argument[k] for k in some if k in argument],
            torch.cat(masks) if masks else no_masks,
            [cotangent for _, _, cotangent in swept],
            wanted._replace(args=flags),
        )  # fmt: skip
        gradients.append((dx, dy))
        for place, k in enumerate(some):
            by_term[k] = terms.pass_on(k, slopes.get(place, ()), cotangents)
    return (
        _sum([dx for dx, _ in gradients if dx is not None]),
        _sum([dy for _, dy in gradients if dy is not None]),
        by_term,
    )


def _sum(gradients: Sequence[Tensor]) -> Tensor | None:
    return functools.reduce(torch.add, gradients) if gradients else None


class Levels:
    """The terms of a call, rows and then columns, and their references to earlier ones."""

    def __init__(self, rows: Sequence[Term], cols: Sequence[Term]) -> None:
        self.rows, self.cols = rows, cols
        self.every = [*rows, *cols]
        self._known: tuple[dict[Any, Tensor], dict[Any, Tensor]] = ({}, {})

    def first(self, k: int) -> int:
        """Return the index of the first term that has the owners of term k."""
        return 0 if k < len(self.rows) else len(self.rows)

    def resolved(self, k: int, statistics: Sequence[Tensor]) -> tuple[Term, Tensor | None]:
        first = self.first(k)
        alike = self.rows if first == 0 and k < len(self.rows) else self.cols
        known = self._known[int(k >= len(self.rows))]
        return resolved(self.every[k], alike, statistics[first : first + len(alike)], known)

    def take(
        self,
        some: Sequence[int],
        placed: Sequence[tuple[Term, Tensor | None]],
        values: Sequence[Tensor],
        found: Sequence[Tensor],
        statistics: list[Tensor],
        arguments: dict[int, Tensor],
    ) -> None:
        """Store the results of resolved terms; an owner without pairs gets the neutral value."""
        index = iter(found)
        for k, (term, missing), value in zip(some, placed, values, strict=True):
            neutral = term.monoid.neutral
            statistics[k] = value if missing is None else torch.where(missing, neutral, value)
            if term.keeps_argument:
                at = next(index)
                arguments[k] = at if missing is None else torch.where(missing, -1, at)

    def swept(
        self, k: int, statistics: Sequence[Tensor], cotangents: Any
    ) -> tuple[Term, Tensor, Tensor]:
        """Return term k as it is differentiated, with its statistic and cotangent."""
        term, missing = self.resolved(k, statistics)
        value, cotangent = statistics[k], cotangents[k]
        if missing is not None:  # exp(f − value) is 0 there, whatever f is
            value = torch.where(missing, torch.finfo(value.dtype).max, value)
            cotangent = torch.where(missing, 0.0, cotangent)
        return term, value, cotangent

    def pass_on(self, k: int, slopes: Sequence[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        """Return the gradients by the tensors of term k, and add those by earlier terms, which were
        tensors in the sweep, to the cotangents of these."""
        mine = []
        for a, slope in zip(by_earlier(self.every[k]), slopes, strict=False):
            if a is None:
                mine.append(slope)
            elif a.grad:
                at = self.first(k) + a.place
                cotangents[at] = cotangents[at] + slope
        return mine

    def mask_length(self, engine: Engine, pairs: Pairs, k: int) -> int:
        """Return the length of term k's tile mask along the first axis."""
        term = (self.every[k],)
        alone = (term, ()) if k < len(self.rows) else ((), term)
        return int(tile_masks_shape(engine, pairs, *alone)[0])

    def split(self, engine: Engine, pairs: Pairs, tile_masks: Tensor | None) -> dict[int, Tensor]:
        """Split tile masks by the terms that have one."""
        keeping = [k for k, term in enumerate(self.every) if term.has_tile_mask]
        if tile_masks is None or not keeping:
            return {}
        sizes = [self.mask_length(engine, pairs, k) for k in keeping]
        return dict(zip(keeping, tile_masks.split(sizes), strict=True))
