"""Comparisons by `sampled_rows` of calls whose terms refer to earlier ones, or whose gradient is a
multiple."""

from collections.abc import Sequence

from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.levels import resolved
from pairops.ops.terms.term import Term, Wanted

from . import sampled_rows
from .sampled_rows import Comparison

_Terms = list[Term]


def of_statistics(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], statistics: Sequence[Tensor]
) -> list[Comparison]:
    """Compare statistics of numbered terms."""
    given = _with_statistics(pairs, rows, cols, statistics)
    return sampled_rows.of_statistics(pairs, *given, statistics)


def of_gradients(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    needs: Wanted,
    gradients: tuple[Tensor, Tensor],
    factor: Tensor | None = None,
) -> list[Comparison]:
    """Compare gradients of numbered terms, of which extremes are left out. factor: () what a sweep
    with these cotangents was multiplied by."""
    of_rows, of_cols = _with_statistics(pairs, rows, cols, statistics)
    swept = [k for k, term in enumerate((*of_rows, *of_cols)) if not term.extreme]
    return sampled_rows.of_gradients(
        pairs,
        [term for term in of_rows if not term.extreme],
        [term for term in of_cols if not term.extreme],
        [statistics[k] for k in swept],
        [cotangents[k] if factor is None else cotangents[k] * factor for k in swept],
        needs,
        gradients,
    )


def _with_statistics(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], statistics: Sequence[Tensor]
) -> tuple[_Terms, _Terms]:
    """Put statistics in the place of earlier terms, which are windows."""
    (n, m), kind = pairs.shape, (pairs.dtype, pairs.x.device)
    of_rows, of_cols = statistics[: len(rows)], statistics[len(rows) :]
    return (
        [resolved(term, rows, of_rows, {})[0].over(n, m, *kind) for term in rows],
        [resolved(term, cols, of_cols, {})[0].over(m, n, *kind) for term in cols],
    )
