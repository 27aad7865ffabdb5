"""What one rank holds while a call over the rows of all ranks is served: `sharded.py`, counted."""

from collections.abc import Iterator
from dataclasses import replace

from pairops.ops.row_stats.ring_blocks import GATHERED
from pairops.ops.terms.term import Term
from pairops.ops.engines.memory import Call

_RELATED = 80  # bytes for each row of a block and each of one's own, while they are related


def meetings(call: Call, ranks: int, weighing: bool) -> Iterator[tuple[Call, int]]:
    """Each call that an engine serves in a ring, and what is held besides.

    call: of the rows that one rank holds, as if there were no others.
    """
    if ranks == 1:
        yield call, 0
        return
    own = [(*call.rows, *call.cols), ()] if call.same else [call.rows, call.cols]
    before = 0
    for axis in (0,) if call.same else (0, 1):
        mine, theirs = own[axis], own[0] if call.same else own[1 - axis]
        if weighing and call.wanted[axis]:
            travelling = sum(_known(term, call.wide) for term in theirs)
            met, passing = _passing(call, axis, ranks, travelling)
            rows, cols = (mine, theirs) if axis == 0 else (theirs, mine)
            wanted = axis == 0, axis == 1
            # Of the blocks so far; of this block it is a part of what the engine holds.
            gradient = call.copies((call.n, call.m)[axis])
            met = replace(met, rows=rows, cols=cols, wanted=wanted)
            yield met, before + gradient + passing
            before += gradient
        elif mine and not weighing:
            met, passing = _passing(call, axis, ranks, sum(_met(term) for term in mine))
            rows, cols = (mine, ()) if axis == 0 else ((), mine)
            yield replace(met, rows=rows, cols=cols), passing


def _passing(call: Call, axis: int, ranks: int, travelling: int) -> tuple[Call, int]:
    """The extents that the own rows (axis 0) or columns (1) have with a block of the others, and
    what is held of blocks: two of them, or of few rows those of all ranks, in pieces and joined.

    travelling: bytes that go with a row, besides its embedding, key and place.
    """
    owners, others = (call.n, call.m) if axis == 0 else (call.m, call.n)
    row = call.d * call.dtype.itemsize
    if max(call.n, call.m) * row < GATHERED:
        others, held = ranks * others, 2
    else:
        held = min(2, ranks - 1)
    n, m = (owners, others) if axis == 0 else (others, owners)
    size = others * (held * row + (held + 1) * (16 + travelling)) + _RELATED * (owners + others)
    return replace(call, n=n, m=m, same=False), size


def _met(term: Term) -> int:
    return sum(z.element_size() for z in term.met())


def _known(term: Term, wide: int) -> int:
    """Bytes per owner: arguments, windows, statistic, cotangent, who attained an extreme."""
    own = sum(z.element_size() for z in term.owned())
    return own + 2 * wide + 8 * term.keeps_argument
