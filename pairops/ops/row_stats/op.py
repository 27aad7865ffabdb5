"""`row_stats`, the one differentiable primitive: statistics of N×M similarities.

A loss states terms, an engine streams the tiles, and statistics come back. In the backward pass the
engine turns their gradients into a weight per pair, and the weights into dX and dY. x, y, the
intervals, one number per statistic and row, and one byte per tile are saved in between. An eager
call is one node of torch's graph, `eager.py`; a compiler sees ops, `nodes.py`, which take terms as
a recipe.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops import engines
from pairops.ops.autograd.node import followed_by_autograd_alone
from pairops.ops.distributed.allocation import refused
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.terms.arguments import Between, EarlierAt, Partner, Table
from pairops.ops.terms.levels import numbered
from pairops.ops.terms.recipe import pack
from pairops.ops.terms.term import Term, indices

from . import eager, picked_rows, sharded
from .nodes import RowStats, RowStatsCall


class RecordedCall(NamedTuple):
    """One call of `row_stats`, with its results."""

    pairs: Pairs
    rows: tuple[Term, ...]
    cols: tuple[Term, ...]
    statistics: tuple[Tensor, ...]


class _Watching(threading.local):
    """The record of this thread's calls, if there is one."""

    calls: list[RecordedCall] | None = None


watching = _Watching()


@contextlib.contextmanager
def watched() -> Iterator[list[RecordedCall]]:
    """Record this thread's calls of `row_stats` within this context."""
    before = watching.calls
    calls: list[RecordedCall] = []
    watching.calls = calls
    try:
        yield calls
    finally:
        watching.calls = before


def row_stats(pairs: Pairs, *rows: Term, cols: Sequence[Term] = ()) -> tuple[Tensor, ...]:
    """Gather statistics of every row, then those of every column, of the similarities of `pairs`.

    R_i = gather_j∈side f(t_ij, args) over the pairs inside the window, where t is the similarity or
    minus the distance. An empty side gives the identity (0, −inf, +inf, −inf for sum, lse, lowest,
    highest) and no gradient. Gradients reach x, y and the tensor arguments, any number of times;
    never the windows.

    Args:
        pairs: who is compared with whom, from `Pairs.of` or `Pairs.paired`.
        rows: terms, one statistic for each row.
        cols: terms, one statistic for each column.

    Returns:
        Tensors in the caller's order: (N,) for each of `rows`, then (M,) for each of `cols`;
        float32, or float64 for float64 embeddings. An extreme with `index=True` has a pair of
        tensors in its place, (value, index); a type checker takes it for a tensor, which it may
        unpack.

    Raises:
        ValueError, TypeError: there is no term, or a term does not fit; the message names it.
    """
    if type(pairs) is not Pairs and not isinstance(pairs, Pairs):
        raise TypeError(f"pairs is {type(pairs).__name__}; it must be pairops.Pairs")
    if type(cols) is not tuple:
        cols = _terms(cols)
    for term in (*rows, *cols):
        if type(term) is not Term and not isinstance(term, Term):
            raise TypeError(f"a term of rows or cols is {type(term).__name__}; {_WANTED}")
    if not rows and not cols:
        raise ValueError("row_stats got no terms; rows or cols must hold at least one")
    try:
        at_once = eager.at_once(pairs, rows, cols)
        if at_once is not None:
            return at_once if watching.calls is None else _noted(pairs, rows, cols, at_once)
        with no_autocast(pairs.x.device.type):
            rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
            rows, cols = eager.final(pairs, rows, cols)
            result = eager.joined(rows + cols, _row_stats(pairs, rows, cols))
    except Exception as error:
        found = refused(error)
        if pairs.shards is not None:  # the other ranks wait for this one
            pairs.shards.group.report(found)
        if found is error:
            raise
        raise found from error
    return _noted(pairs, rows, cols, result)


_WANTED = "it must be a pairops.Term, as of lse(NEG)"


def _terms(cols: Any) -> tuple[Term, ...]:
    if isinstance(cols, (str, bytes)) or not isinstance(cols, Sequence):
        raise TypeError(f"cols is {type(cols).__name__}; it must be a sequence of pairops.Term")
    return tuple(cols)


def _noted(
    pairs: Pairs, rows: tuple[Term, ...], cols: tuple[Term, ...], result: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """Record the result, if calls are recorded, with terms whose windows are tensors; return it."""
    if watching.calls is not None:
        rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
        values = tuple([z if isinstance(z, Tensor) else z[0] for z in result])
        watching.calls.append(RecordedCall(pairs, *eager.final(pairs, rows, cols), values))
    return result


def _row_stats(pairs: Pairs, rows: tuple[Term, ...], cols: tuple[Term, ...]) -> tuple[Tensor, ...]:
    """Return statistics, and then the indices asked for."""
    compiling = torch.compiler.is_compiling()
    if compiling and not _reads_at_once(pairs.x.device):
        n, m = pairs.shape
        rows = tuple([_of_tensors(term, n, pairs) for term in rows])
        cols = tuple([_of_tensors(term, m, pairs) for term in cols])
    engine = engines.choose(pairs, rows, cols)
    if pairs.shards is not None:
        return tuple(sharded.row_stats(pairs, rows, cols, engine))
    serving = engines.ENGINES[engine]
    asked = indices(rows + cols)
    if serving.backward is None:
        statistics, arguments, _ = picked_rows.forward(serving, pairs, rows, cols)
        return (*statistics, *[arguments[k] for k in asked])
    tensors = [z for term in (*rows, *cols) for _, z, _ in term.operands()]
    if followed_by_autograd_alone(pairs.x, pairs.y, tensors):
        return eager.statistics(pairs, rows, cols, serving, tensors)
    recipe, numbers, vectors = pack(rows, cols)
    prepared = picked_rows.prepare(serving, pairs)
    traced = None
    if compiling and _reads_at_once(pairs.x.device):
        numbers, traced = _traced(numbers)
    terms = *rows, *cols
    call, given = RowStatsCall.of(pairs, recipe, numbers, traced, vectors, prepared, engine, terms)
    # torch.compile refuses the same tensor twice among the inputs of a node.
    if compiling:
        given = tuple([None if t is None else t.view_as(t) for t in given])
    results = RowStats.of(call, *given)
    return (*results[: call.terms], *[results[call.terms + k] for k in asked])


# torch.compile would compile once more for each value of a float among the arguments of an op, so
# numbers travel as tensors under it.


def _reads_at_once(device: torch.device) -> bool:
    """Return whether a tensor's value can be read without waiting."""
    return device.type == "cpu"


def _traced(numbers: list[float]) -> tuple[list[float], Tensor | None]:
    """Put numbers in one tensor, which an op's body turns into the same numbers again."""
    if not numbers:
        return numbers, None
    return [], torch.stack([torch.full((), value, dtype=torch.float64) for value in numbers])


def _of_tensors(term: Term, owners: int, pairs: Pairs) -> Term:
    """Turn numbers of the term into tensors on the device, one value for all owners."""
    args = [
        a
        if isinstance(a, (Tensor, Partner, Table, Between, EarlierAt))
        else pairs.x.new_full((), a, dtype=pairs.dtype).expand(owners)
        for a in term.args
    ]
    return replace(term, args=tuple(args))
